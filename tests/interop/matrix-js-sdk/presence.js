// Who one is: names, pictures, other profile fields, presence, the user directory.
import test from "node:test";
import assert from "node:assert/strict";
import { cast, foreign, raw, refused, sharedRoom, unique, until } from "./stage.js";

test("a new name and picture reach the other's sync", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    await alice.desk.setDisplayName("Alice of Wonderland");
    await alice.desk.setAvatarUrl("mxc://example.org/portrait");
    for (const client of [alice.phone, bob.desk, bob.phone]) {
        const member = () => client.getRoom(roomId).getMember(alice.id);
        await until("the name and picture", () =>
            member().rawDisplayName === "Alice of Wonderland" && member().getMxcAvatarUrl() === "mxc://example.org/portrait");
        assert.equal(member().membership, "join");
    }
    const profile = await bob.desk.getProfileInfo(alice.id);
    assert.equal(profile.displayname, "Alice of Wonderland");
    assert.equal(profile.avatar_url, "mxc://example.org/portrait");
    const nobody = `@${unique("nobody")}:${alice.desk.getDomain()}`;
    await refused(bob.desk.getProfileInfo(nobody), 404, foreign ? undefined : "M_NOT_FOUND");
    const other = await raw(bob.desk, "PUT", `/_matrix/client/v3/profile/${encodeURIComponent(alice.id)}/displayname`, {
        body: { displayname: "Mallory" } });
    assert.ok([400, 403].includes(other.status), String(other.status));
    // A room made later has the name too.
    const later = await sharedRoom({ alice, bob });
    assert.equal(bob.desk.getRoom(later).getMember(alice.id).rawDisplayName, "Alice of Wonderland");
});

test("profile fields of one's own making", async () => {
    const { alice, bob } = await cast();
    assert.ok(await alice.desk.doesServerSupportExtendedProfiles());
    await alice.desk.setExtendedProfileProperty("org.example.shoe", { size: 38 });
    assert.deepEqual(await bob.desk.getExtendedProfileProperty(alice.id, "org.example.shoe"), { size: 38 });
    assert.deepEqual((await bob.desk.getExtendedProfile(alice.id))["org.example.shoe"], { size: 38 });
    await alice.desk.deleteExtendedProfileProperty("org.example.shoe");
    // Asked without the SDK, which answers from what it kept.
    const profile = `/_matrix/client/v3/profile/${encodeURIComponent(alice.id)}`;
    assert.equal(JSON.parse((await raw(bob.desk, "GET", profile)).bytes)["org.example.shoe"], undefined);
    const field = await raw(bob.desk, "GET", `${profile}/org.example.shoe`);
    assert.equal(field.status, 404);
    assert.equal(JSON.parse(field.bytes).errcode, "M_NOT_FOUND");
});

test("presence and its message are seen by who shares a room", async () => {
    const { alice, bob } = await cast();
    await sharedRoom({ alice, bob });
    await bob.desk.setPresence({ presence: "online", status_msg: "at the lake" });
    await until("alice sees bob's status", () => alice.desk.getUser(bob.id)?.presenceStatusMsg === "at the lake");
    assert.equal(alice.desk.getUser(bob.id).presence, "online");
    const asked = await alice.desk.getPresence(bob.id);
    assert.equal(asked.presence, "online");
    assert.equal(asked.status_msg, "at the lake");
});

test("the user directory finds who shares a room", async () => {
    const { alice, bob } = await cast();
    await sharedRoom({ alice, bob });
    const found = await until("bob is found", async () => {
        const { results } = await alice.desk.searchUserDirectory({ term: bob.desk.getUserIdLocalpart(), limit: 10 });
        return results.find(({ user_id }) => user_id === bob.id);
    });
    assert.equal(found.user_id, bob.id);
    const { results } = await alice.desk.searchUserDirectory({ term: unique("no-such-person"), limit: 10 });
    assert.deepEqual(results, []);
});

test("an unknown path and a wrong method answer by the book", { skip: foreign }, async () => {
    const { alice } = await cast();
    const unknown = await raw(alice.desk, "GET", "/_matrix/client/v3/no/such/thing");
    assert.equal(unknown.status, 404);
    assert.equal(JSON.parse(unknown.bytes).errcode, "M_UNRECOGNIZED");
    const wrong = await raw(alice.desk, "DELETE", "/_matrix/client/v3/account/whoami");
    assert.equal(wrong.status, 405);
    assert.equal(JSON.parse(wrong.bytes).errcode, "M_UNRECOGNIZED");
    for (const answer of [unknown, wrong]) assert.equal(answer.headers.get("access-control-allow-origin"), "*");
    const preflight = await raw(undefined, "OPTIONS", "/_matrix/client/v3/sync");
    assert.ok(preflight.status === 200 || preflight.status === 204);
    assert.match(preflight.headers.get("access-control-allow-headers"), /authorization/i);
});
