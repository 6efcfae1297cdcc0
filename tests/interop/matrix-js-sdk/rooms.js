// Creating rooms: every preset and every option, aliases, the directory, state.
import test from "node:test";
import assert from "node:assert/strict";
import { cast, have, newcomer, refused, sees, stranger, unique, until } from "./stage.js";

const presets = {
    private_chat: { rule: "invite", visibility: "shared", guests: "can_join" },
    trusted_private_chat: { rule: "invite", visibility: "shared", guests: "can_join" },
    public_chat: { rule: "public", visibility: "shared", guests: "forbidden" },
};

for (const [preset, expected] of Object.entries(presets)) {
    test(`a room of preset ${preset}`, async () => {
        const { alice, bob } = await cast();
        const { room_id: roomId } = await alice.desk.createRoom({ preset, invite: [bob.id], name: preset, topic: "a topic" });
        await have([alice.desk, alice.phone], roomId, "join");
        await have([bob.desk, bob.phone], roomId, "invite");

        const room = alice.desk.getRoom(roomId);
        const state = (type, key = "") => room.currentState.getStateEvents(type, key)?.getContent();
        await until("the whole state", () => state("m.room.topic"));
        assert.equal(state("m.room.join_rules").join_rule, expected.rule);
        assert.equal(state("m.room.history_visibility").history_visibility, expected.visibility);
        assert.equal(state("m.room.guest_access")?.guest_access ?? "forbidden", expected.guests);
        assert.equal(state("m.room.name").name, preset);
        assert.equal(room.name, preset);
        assert.equal(state("m.room.topic").topic, "a topic");
        assert.equal(room.getCreator(), alice.id);
        const capabilities = await alice.desk.getCapabilities();
        assert.equal(room.getVersion(), capabilities["m.room_versions"].default);
        // Invited into a trusted private chat, bob is the creator's equal.
        const member = await until("the invite on alice's side", () => room.getMember(bob.id));
        assert.equal(member.powerLevel >= 100, preset === "trusted_private_chat");

        const invitation = bob.desk.getRoom(roomId);
        assert.equal(invitation.name, preset);
        assert.ok(invitation.currentState.getStateEvents("m.room.create", ""), "no create event beside the invite");
        assert.equal(invitation.getMember(bob.id).events.member.getSender(), alice.id);
        assert.equal(invitation.getDMInviter(), undefined);

        await bob.phone.joinRoom(roomId);
        await have([bob.desk, bob.phone], roomId, "join");
        await until("bob has the whole state", () =>
            bob.desk.getRoom(roomId).currentState.getStateEvents("m.room.topic", ""));
    });
}

test("every option of room creation", async () => {
    const { alice, bob } = await cast();
    const { room_id: roomId } = await alice.desk.createRoom({
        preset: "private_chat",
        room_alias_name: unique("options"),
        name: "options",
        invite: [bob.id],
        is_direct: true,
        initial_state: [
            { type: "m.room.history_visibility", content: { history_visibility: "invited" } },
            { type: "org.example.thing", state_key: "a/b #c", content: { value: 7 } },
        ],
        creation_content: { type: "org.example.room_type", "m.federate": false },
        power_level_content_override: { events_default: 10, users_default: 5 },
    });
    const room = await until("the room", () => alice.desk.getRoom(roomId));
    const state = (type, key = "") => room.currentState.getStateEvents(type, key)?.getContent();
    await until("its state", () => state("org.example.thing", "a/b #c"));
    assert.equal(state("m.room.history_visibility").history_visibility, "invited");
    assert.equal(state("org.example.thing", "a/b #c").value, 7);
    assert.equal(state("m.room.create").type, "org.example.room_type");
    assert.equal(state("m.room.create")["m.federate"], false);
    assert.equal(state("m.room.power_levels").events_default, 10);
    assert.equal(state("m.room.power_levels").users_default, 5);
    assert.equal(room.getCanonicalAlias(), `#${unique("options")}:${alice.desk.getDomain()}`);
    await have([bob.desk], roomId, "invite");
    assert.equal(bob.desk.getRoom(roomId).getDMInviter(), alice.id);
    assert.deepEqual(await alice.desk.getStateEvent(roomId, "org.example.thing", "a/b #c"), { value: 7 });
    await refused(alice.desk.getStateEvent(roomId, "org.example.thing", ""), 404, "M_NOT_FOUND");
    await refused(alice.desk.createRoom({ room_alias_name: unique("options") }), 400, "M_ROOM_IN_USE");
    await refused(alice.desk.createRoom({ room_version: "org.example.none" }), 400, "M_UNSUPPORTED_ROOM_VERSION");
});

test("every stable room version can be created and spoken in", async () => {
    const { alice } = await cast();
    const { available } = (await alice.desk.getCapabilities())["m.room_versions"];
    const versions = Object.keys(available).filter((version) => /^\d+$/.test(version));
    assert.ok(versions.includes("10") && versions.includes("11") && versions.includes("12"), versions.join(" "));
    for (const version of versions) {
        const { room_id: roomId } = await alice.desk.createRoom({ room_version: version });
        await until(`the room of version ${version}`, () => alice.desk.getRoom(roomId)?.getVersion() === version);
        const { event_id: eventId } = await alice.desk.sendTextMessage(roomId, `version ${version}`);
        await sees(alice.phone, roomId, eventId);
        assert.equal((await alice.desk.fetchRoomEvent(roomId, eventId)).content.body, `version ${version}`);
        await alice.desk.redactEvent(roomId, eventId);
        await until(`redacted in version ${version}`, () => alice.phone.getRoom(roomId).findEventById(eventId).isRedacted());
    }
});

test("aliases lead to a room, and the canonical one must exist", async () => {
    const { alice, bob } = await cast();
    const alias = (name) => `#${unique(name)}:${alice.desk.getDomain()}`;
    const { room_id: roomId } = await alice.desk.createRoom({ preset: "public_chat" });
    await refused(alice.desk.getRoomIdForAlias(alias("square")), 404, "M_NOT_FOUND");
    await alice.desk.createAlias(alias("square"), roomId);
    await alice.desk.createAlias(alias("with/slash"), roomId);
    await refused(alice.desk.createAlias(alias("square"), roomId), 409);
    assert.equal((await bob.desk.getRoomIdForAlias(alias("square"))).room_id, roomId);
    assert.equal((await bob.desk.getRoomIdForAlias(alias("with/slash"))).room_id, roomId);
    assert.deepEqual((await alice.desk.getLocalAliases(roomId)).aliases.sort(), [alias("square"), alias("with/slash")].sort());

    await refused(
        alice.desk.sendStateEvent(roomId, "m.room.canonical_alias", { alias: alias("made-up") }), 400, "M_BAD_ALIAS");
    await alice.desk.sendStateEvent(roomId, "m.room.canonical_alias", { alias: alias("square") });
    await bob.desk.joinRoom(alias("square"));
    await have([bob.desk, bob.phone], roomId, "join");
    await until("the alias names the room", () => bob.phone.getRoom(roomId).getCanonicalAlias() === alias("square"));

    await refused(bob.desk.deleteAlias(alias("with/slash")), 403, "M_FORBIDDEN");
    await alice.desk.deleteAlias(alias("with/slash"));
    await refused(bob.desk.getRoomIdForAlias(alias("with/slash")), 404, "M_NOT_FOUND");
});

test("the directory lists what was published, and finds it by a word", async () => {
    const { alice, bob } = await cast();
    const word = unique("word").replace("-", "");
    const made = [];
    for (let i = 0; i < 3; i++) {
        const { room_id } = await alice.desk.createRoom({
            preset: "public_chat", visibility: "public", name: `the ${word} of ${i}`, topic: "found" });
        made.push(room_id);
    }
    assert.equal((await stranger().getRoomDirectoryVisibility(made[0])).visibility, "public");
    const search = (extra) => bob.desk.publicRooms({ limit: 10, filter: { generic_search_term: word }, ...extra });
    const all = await search();
    assert.deepEqual(all.chunk.map(({ room_id }) => room_id).sort(), made.toSorted());
    const entry = all.chunk.find(({ room_id }) => room_id === made[1]);
    assert.equal(entry.name, `the ${word} of 1`);
    assert.equal(entry.topic, "found");
    assert.equal(entry.num_joined_members, 1);
    assert.equal(entry.join_rule ?? "public", "public");

    const seen = [];
    let since;
    do {
        const page = await search({ limit: 1, since });
        seen.push(...page.chunk.map(({ room_id }) => room_id));
        since = page.next_batch;
    } while (since && seen.length < 10);
    assert.deepEqual(seen.sort(), made.toSorted());

    await alice.desk.setRoomDirectoryVisibility(made[2], "private");
    assert.equal((await search()).chunk.length, 2);
    await refused(bob.desk.setRoomDirectoryVisibility(made[2], "public"), 403, "M_FORBIDDEN");
});

test("state is sent, read and refused by power", async () => {
    const { alice, bob } = await cast();
    const { room_id: roomId } = await alice.desk.createRoom({ preset: "public_chat" });
    await bob.desk.joinRoom(roomId);
    await have([bob.desk], roomId, "join");
    await refused(bob.desk.setRoomName(roomId, "bob's"), 403, "M_FORBIDDEN");
    await alice.desk.setPowerLevel(roomId, bob.id, 50);
    await until("bob has power", () => bob.desk.getRoom(roomId).getMember(bob.id)?.powerLevel === 50);
    await bob.desk.setRoomName(roomId, "bob's");
    await until("alice sees the name", () => alice.phone.getRoom(roomId).name === "bob's");
    const { event_id: first } = await bob.desk.setRoomTopic(roomId, "the same");
    const { event_id: second } = await bob.desk.setRoomTopic(roomId, "the same");
    assert.equal(first, second, "identical state makes no second event");
    const whole = await bob.desk.roomState(roomId);
    for (const type of ["m.room.create", "m.room.power_levels", "m.room.join_rules", "m.room.topic", "m.room.name"]) {
        assert.equal(whole.filter((event) => event.type === type).length, 1, type);
    }
});

test("a room is peered into by no stranger", async () => {
    const { alice } = await cast();
    const eve = await newcomer("eve");
    const { room_id: roomId } = await alice.desk.createRoom({ preset: "private_chat" });
    const { event_id: eventId } = await alice.desk.sendTextMessage(roomId, "secret");
    await refused(eve.roomState(roomId), 403, "M_FORBIDDEN");
    await refused(eve.sendTextMessage(roomId, "hello?"), 403, "M_FORBIDDEN");
    await refused(eve.fetchRoomEvent(roomId, eventId), 404, "M_NOT_FOUND").catch(() =>
        refused(eve.fetchRoomEvent(roomId, eventId), 403, "M_FORBIDDEN"));
    await refused(eve.createMessagesRequest(roomId, null, 10, "b"), 403, "M_FORBIDDEN");
    await refused(eve.joinRoom(roomId), 403, "M_FORBIDDEN");
});
