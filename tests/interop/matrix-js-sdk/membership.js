// Coming and going: invite, join, refuse, leave, kick, ban, unban, knock, forget, restricted rooms.
import test from "node:test";
import assert from "node:assert/strict";
import { cast, foreign, have, newcomer, refused, sees, sharedRoom, until } from "./stage.js";

const memberEvent = (client, roomId, userId) => client.getRoom(roomId).getMember(userId)?.events.member;

test("an invite is seen on both devices and can be declined", async () => {
    const { alice, bob } = await cast();
    const { room_id: roomId } = await alice.desk.createRoom({ name: "party" });
    await alice.desk.invite(roomId, bob.id, { reason: "cake" });
    await have([bob.desk, bob.phone], roomId, "invite");
    assert.equal(memberEvent(bob.desk, roomId, bob.id).getContent().reason, "cake");
    await until("alice sees the invite", () => alice.phone.getRoom(roomId).getMember(bob.id)?.membership === "invite");
    await refused(bob.desk.sendTextMessage(roomId, "not yet"), 403, "M_FORBIDDEN");
    await bob.desk.leave(roomId);
    await have([bob.desk, bob.phone], roomId, "leave");
    await until("alice sees the refusal", () => alice.phone.getRoom(roomId).getMember(bob.id).membership === "leave");
});

test("joining on one device joins on the other, with the room's past and its members", async () => {
    const { alice, bob } = await cast();
    const { room_id: roomId } = await alice.desk.createRoom({ preset: "private_chat" });
    const { event_id: before } = await alice.desk.sendTextMessage(roomId, "before you came");
    await alice.desk.invite(roomId, bob.id);
    await have([bob.phone], roomId, "invite");
    await bob.phone.joinRoom(roomId);
    await have([bob.desk, bob.phone], roomId, "join");
    for (const client of [bob.desk, bob.phone]) {
        await sees(client, roomId, before);
        const room = client.getRoom(roomId);
        await room.loadMembersIfNeeded();
        assert.deepEqual(room.getJoinedMembers().map(({ userId }) => userId).sort(), [alice.id, bob.id].sort());
    }
    assert.ok((await bob.desk.getJoinedRooms()).joined_rooms.includes(roomId));
    assert.deepEqual(
        Object.keys((await bob.desk.getJoinedRoomMembers(roomId)).joined).sort(), [alice.id, bob.id].sort());
    // A second join is no second event.
    const joined = memberEvent(alice.desk, roomId, bob.id);
    await bob.desk.http.authedRequest("POST", `/join/${encodeURIComponent(roomId)}`, undefined, {});
    const { event_id: marker } = await bob.desk.sendTextMessage(roomId, "marker");
    await sees(alice.desk, roomId, marker);
    assert.equal(memberEvent(alice.desk, roomId, bob.id).getId(), joined.getId());
});

test("leaving ends what one sees, and coming back needs an invite", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    await bob.desk.leave(roomId);
    await have([bob.desk, bob.phone], roomId, "leave");
    const { event_id: unseen } = await alice.desk.sendTextMessage(roomId, "behind his back");
    await refused(bob.desk.joinRoom(roomId), 403, "M_FORBIDDEN");
    await refused(bob.desk.sendTextMessage(roomId, "let me in"), 403, "M_FORBIDDEN");
    const back = await bob.desk.createMessagesRequest(roomId, null, 50, "b");
    assert.ok(!back.chunk.some(({ event_id }) => event_id === unseen), "he reads what was said after he left");
    assert.ok(back.chunk.length > 0, "he reads what was said before he left");
    await alice.desk.invite(roomId, bob.id);
    await have([bob.desk, bob.phone], roomId, "invite");
    await bob.desk.joinRoom(roomId);
    await have([bob.desk, bob.phone], roomId, "join");
    await sees(bob.phone, roomId, unseen);
});

test("kick with a reason", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    await refused(bob.desk.kick(roomId, alice.id), 403, "M_FORBIDDEN");
    await alice.desk.kick(roomId, bob.id, "too loud");
    await have([bob.desk, bob.phone], roomId, "leave");
    const event = memberEvent(bob.phone, roomId, bob.id);
    assert.equal(event.getSender(), alice.id);
    assert.equal(event.getContent().reason, "too loud");
    await until("alice's phone sees it", () => alice.phone.getRoom(roomId).getMember(bob.id).isKicked());
    await refused(alice.desk.kick(roomId, bob.id), 403);
});

test("ban, refused entry, unban, entry", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob }, { preset: "public_chat" });
    await alice.desk.ban(roomId, bob.id, "enough");
    await have([bob.desk, bob.phone], roomId, "ban");
    assert.equal(memberEvent(bob.phone, roomId, bob.id).getContent().reason, "enough");
    await refused(bob.desk.joinRoom(roomId), 403, ["M_FORBIDDEN", "M_BAD_STATE"]);
    await refused(alice.desk.invite(roomId, bob.id), 403, ["M_FORBIDDEN", "M_BAD_STATE"]);
    await alice.desk.unban(roomId, bob.id);
    await until("alice's phone sees the unban", () => alice.phone.getRoom(roomId).getMember(bob.id).membership === "leave");
    await bob.desk.joinRoom(roomId);
    await have([bob.desk, bob.phone], roomId, "join");
});

test("a forgotten room is gone, and comes back with a new invite", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    await refused(bob.desk.forget(roomId, false), 400);
    await bob.desk.leave(roomId);
    await have([bob.desk, bob.phone], roomId, "leave");
    const archive = async () => {
        const filter = JSON.stringify({ room: { rooms: [roomId], include_leave: true } });
        const answer = await bob.desk.http.authedRequest("GET", "/sync", { filter, timeout: 0 });
        return answer.rooms?.leave?.[roomId];
    };
    assert.ok(await archive(), "a left room is in the archive");
    await bob.desk.forget(roomId);
    assert.equal(bob.desk.getRoom(roomId), null);
    await refused(bob.desk.createMessagesRequest(roomId, null, 10, "b"), 403, "M_FORBIDDEN");
    if (!foreign) assert.equal(await archive(), undefined);
    await alice.desk.invite(roomId, bob.id);
    await have([bob.desk, bob.phone], roomId, "invite");
});

test("knocking: seen by the host, granted by an invite", async () => {
    const { alice, bob } = await cast();
    const { room_id: roomId } = await alice.desk.createRoom({
        name: "behind a door",
        initial_state: [{ type: "m.room.join_rules", content: { join_rule: "knock" } }],
    });
    await refused(bob.desk.joinRoom(roomId), 403, "M_FORBIDDEN");
    await bob.desk.knockRoom(roomId, { reason: "it is me" });
    await have([bob.desk, bob.phone], roomId, "knock");
    assert.equal(bob.phone.getRoom(roomId).name, "behind a door");
    await until("alice hears the knock", () => alice.phone.getRoom(roomId)?.getMember(bob.id)?.membership === "knock");
    assert.equal(memberEvent(alice.phone, roomId, bob.id).getContent().reason, "it is me");
    await alice.desk.invite(roomId, bob.id);
    await have([bob.desk], roomId, "invite");
    await bob.desk.joinRoom(roomId);
    await have([bob.desk, bob.phone], roomId, "join");
});

test("a restricted room opens to members of the other room", async () => {
    const { alice, bob } = await cast();
    const lobby = await sharedRoom({ alice, bob });
    const { room_id: roomId } = await alice.desk.createRoom({
        initial_state: [{
            type: "m.room.join_rules",
            content: { join_rule: "restricted", allow: [{ type: "m.room_membership", room_id: lobby }] },
        }],
    });
    const eve = await newcomer("outsider");
    await refused(eve.joinRoom(roomId), 403, "M_FORBIDDEN");
    await bob.desk.joinRoom(roomId);
    await have([bob.desk, bob.phone], roomId, "join");
    await until("who vouched for bob", () =>
        memberEvent(alice.desk, roomId, bob.id)?.getContent().join_authorised_via_users_server === alice.id);
});

test("the list of members can be asked by membership", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    const guest = await newcomer("invited");
    await alice.desk.invite(roomId, guest.getUserId());
    await bob.desk.leave(roomId);
    const ids = async (wanted, unwanted) =>
        (await alice.desk.members(roomId, wanted, unwanted)).chunk.map(({ state_key }) => state_key).sort();
    assert.deepEqual(await ids("join"), [alice.id]);
    assert.deepEqual(await ids("invite"), [guest.getUserId()]);
    assert.deepEqual(await ids(undefined, "leave"), [alice.id, guest.getUserId()].sort());
});

test("names of unnamed rooms come from those in it", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    await until("bob's name on the room", () => alice.phone.getRoom(roomId).name === alice.phone.getRoom(roomId).getMember(bob.id).name);
    await bob.desk.leave(roomId);
    await until("an empty room that was bob's", () => /Empty room/.test(alice.phone.getRoom(roomId).name));
});
