// The past: pagination to the beginning, context, jump to a date, lazily loaded members.
import test from "node:test";
import assert from "node:assert/strict";
import { EventTimeline, Filter } from "matrix-js-sdk";
import { cast, device, have, newcomer, refused, sees, sharedRoom, texts, until } from "./stage.js";

const count = 130;
let long;
/** A room with a long past: alice and bob said `count` things in turn. */
function longRoom() {
    long ??= (async () => {
        const { alice, bob } = await cast();
        const roomId = await sharedRoom({ alice, bob });
        const ids = [];
        for (let i = 0; i < count; i++) {
            const speaker = i % 2 ? bob.desk : alice.desk;
            ids.push((await speaker.sendTextMessage(roomId, `number ${i}`)).event_id);
        }
        return { roomId, ids };
    })();
    return long;
}

test("pagination walks to the beginning, with nothing twice and nothing missing", async () => {
    const { bob } = await cast();
    const { roomId } = await longRoom();
    const tablet = await device(bob.id, { initialSyncLimit: 8 });
    const room = tablet.getRoom(roomId);
    assert.ok(room.getLiveTimeline().getEvents().length <= 8);
    let pages = 0;
    while (room.oldState.paginationToken !== null) {
        await tablet.scrollback(room, 25);
        assert.ok(++pages < 30, "no end in sight");
    }
    const events = room.getLiveTimeline().getEvents();
    assert.equal(events[0].getType(), "m.room.create");
    assert.equal(new Set(events.map((event) => event.getId())).size, events.length);
    assert.deepEqual(texts(tablet, roomId), Array.from({ length: count }, (_, i) => `number ${i}`));
    tablet.stopClient();
});

test("pagination forwards from the beginning", async () => {
    const { bob } = await cast();
    const { roomId, ids } = await longRoom();
    const seen = [];
    let from = null;
    for (let pages = 0; ; pages++) {
        assert.ok(pages < 30, "no end in sight");
        const page = await bob.desk.http.authedRequest(
            "GET", `/rooms/${encodeURIComponent(roomId)}/messages`, { dir: "f", limit: 40, ...(from && { from }) });
        seen.push(...page.chunk);
        if (!page.end) break;
        from = page.end;
    }
    assert.equal(seen[0].type, "m.room.create");
    assert.deepEqual(seen.filter(({ type }) => type === "m.room.message").map(({ event_id }) => event_id), ids);
});

test("a place in the past opens both ways", async () => {
    const { bob } = await cast();
    const { roomId, ids } = await longRoom();
    const tablet = await device(bob.id, { initialSyncLimit: 5 });
    const room = tablet.getRoom(roomId);
    const timeline = await tablet.getEventTimeline(room.getUnfilteredTimelineSet(), ids[40]);
    assert.ok(timeline.getEvents().some((event) => event.getId() === ids[40]));
    await tablet.paginateEventTimeline(timeline, { backwards: true, limit: 20 });
    await tablet.paginateEventTimeline(timeline, { backwards: false, limit: 20 });
    const bodies = timeline.getEvents().map((event) => event.getContent().body).filter(Boolean);
    const first = Number(bodies[0].split(" ")[1]);
    const last = Number(bodies.at(-1).split(" ")[1]);
    assert.ok(first <= 20 && last >= 60, `${first} to ${last}`);
    assert.deepEqual(bodies, Array.from({ length: last - first + 1 }, (_, i) => `number ${first + i}`));
    const power = timeline.getState(EventTimeline.BACKWARDS).getStateEvents("m.room.power_levels", "");
    assert.ok(power, "the state at that place");
    tablet.stopClient();
});

test("the event closest to a moment is found, either way", async () => {
    const { bob } = await cast();
    const { roomId, ids } = await longRoom();
    const { origin_server_ts: ts } = await bob.desk.fetchRoomEvent(roomId, ids[70]);
    const forward = await bob.desk.timestampToEvent(roomId, ts, "f");
    const backward = await bob.desk.timestampToEvent(roomId, ts, "b");
    assert.equal(forward.origin_server_ts, ts);
    assert.equal(backward.origin_server_ts, ts);
    await refused(bob.desk.timestampToEvent(roomId, 1_000, "b"), 404, "M_NOT_FOUND");
});

test("a filter picks what pagination gives", async () => {
    const { alice, bob } = await cast();
    const { roomId } = await longRoom();
    const filter = new Filter(bob.id);
    filter.setDefinition({ room: { timeline: { types: ["m.room.message"], senders: [alice.id] } } });
    const page = await bob.desk.createMessagesRequest(roomId, null, 30, "b", filter);
    assert.equal(page.chunk.length, 30);
    assert.ok(page.chunk.every(({ type, sender }) => type === "m.room.message" && sender === alice.id));
});

test("members are loaded lazily, and all of them when asked", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob }, { preset: "public_chat", name: "crowd" });
    const crowd = await Promise.all(Array.from({ length: 6 }, (_, i) => newcomer(`crowd${i}`)));
    for (const client of crowd) await client.joinRoom(roomId);
    let last;
    for (let i = 0; i < 12; i++) ({ event_id: last } = await alice.desk.sendTextMessage(roomId, `speech ${i}`));

    const tablet = await device(bob.id, { initialSyncLimit: 5, lazyLoadMembers: true });
    assert.ok(tablet.hasLazyLoadMembersEnabled());
    await sees(tablet, roomId, last);
    const room = tablet.getRoom(roomId);
    const known = () => room.currentState.getMembers().map(({ userId }) => userId);
    assert.ok(known().includes(alice.id), "who speaks in the timeline is known");
    assert.ok(!known().includes(crowd[0].getUserId()), "who is silent is not sent");
    assert.equal(room.getJoinedMemberCount(), 8);

    // One of the silent speaks: the client learns who that is in the same answer.
    const { event_id: spoke } = await crowd[3].sendTextMessage(roomId, "I am here");
    await sees(tablet, roomId, spoke);
    assert.ok(known().includes(crowd[3].getUserId()));
    assert.ok(!known().includes(crowd[1].getUserId()));

    await room.loadMembersIfNeeded();
    assert.equal(room.getJoinedMembers().length, 8);

    // Pages of the past carry their senders too.
    const page = await tablet.createMessagesRequest(roomId, null, 5, "b");
    assert.ok(page.chunk.length > 0);
    tablet.stopClient();
    for (const client of crowd) client.stopClient();
    await have([bob.desk], roomId, "join");
});

test("a client that was away gets a limited timeline, the new state, and can fill the gap", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    const sync = (since, timeout = 0) =>
        bob.desk.http.authedRequest("GET", "/sync", {
            timeout,
            ...(since && { since }),
            filter: JSON.stringify({ room: { timeline: { limit: 5 } } }),
        });
    const first = await sync();
    const ids = [];
    for (let i = 0; i < 30; i++) {
        ids.push((await alice.desk.sendTextMessage(roomId, `while away ${i}`)).event_id);
        if (i === 3) await alice.desk.setRoomName(roomId, "renamed meanwhile");
    }
    const second = await sync(first.next_batch);
    const { timeline, state } = second.rooms.join[roomId];
    assert.equal(timeline.limited, true);
    assert.deepEqual(timeline.events.map(({ event_id }) => event_id), ids.slice(-5));
    assert.ok(state.events.some(({ type, content }) => type === "m.room.name" && content.name === "renamed meanwhile"));

    const gap = [];
    let from = timeline.prev_batch;
    while (from && gap.length < 200) {
        const page = await bob.desk.http.authedRequest(
            "GET", `/rooms/${encodeURIComponent(roomId)}/messages`, { dir: "b", from, to: first.next_batch, limit: 10 });
        gap.unshift(...page.chunk.toReversed());
        from = page.end;
    }
    assert.deepEqual(gap.filter(({ type }) => type === "m.room.message").map(({ event_id }) => event_id), ids.slice(0, -5));

    // The same token gives the same answer again, and a waiting sync is woken.
    const again = await sync(first.next_batch);
    assert.deepEqual(again.rooms.join[roomId].timeline.events.map(({ event_id }) => event_id), ids.slice(-5));
    const waiting = sync(again.next_batch, 20_000);
    const began = Date.now();
    const { event_id: fresh } = await alice.desk.sendTextMessage(roomId, "wake up");
    let answer = await waiting;
    while (!answer.rooms?.join?.[roomId]?.timeline?.events.length) answer = await sync(answer.next_batch, 20_000);
    assert.deepEqual(answer.rooms.join[roomId].timeline.events.map(({ event_id }) => event_id), [fresh]);
    assert.ok(Date.now() - began < 5_000, "the long poll slept on");
    await until("all is told", async () => !(await sync(answer.next_batch)).rooms?.join?.[roomId]);
});
