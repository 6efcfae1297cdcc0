// Talking: send, edit, react, thread, redact; transaction ids; receipts and unread counts; typing.
import test from "node:test";
import assert from "node:assert/strict";
import { cast, dropUnsent, have, held, raw, refused, sees, sharedRoom, texts, until } from "./stage.js";

const path = (roomId, rest) => `/_matrix/client/v3/rooms/${encodeURIComponent(roomId)}/${rest}`;

test("a message reaches all four devices, once", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    const { event_id: eventId } = await alice.desk.sendTextMessage(roomId, "hello");
    for (const client of [alice.desk, alice.phone, bob.desk, bob.phone]) {
        const event = await sees(client, roomId, eventId);
        assert.equal(event.getContent().body, "hello");
        assert.equal(event.getSender(), alice.id);
        assert.deepEqual(texts(client, roomId), ["hello"]);
    }
    // Only the sending device is told its transaction id.
    assert.ok(held(alice.desk, roomId, eventId).getUnsigned().transaction_id);
    for (const client of [alice.phone, bob.desk]) {
        assert.equal(held(client, roomId, eventId).getUnsigned().transaction_id, undefined);
    }
});

test("what is said in turn is seen in that order by everyone", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    const said = [];
    let last;
    for (let i = 0; i < 12; i++) {
        const speaker = [alice.desk, bob.phone, alice.phone, bob.desk][i % 4];
        said.push(`line ${i}`);
        ({ event_id: last } = await speaker.sendTextMessage(roomId, `line ${i}`));
    }
    for (const client of [alice.desk, alice.phone, bob.desk, bob.phone]) {
        await sees(client, roomId, last);
        assert.deepEqual(texts(client, roomId), said);
    }
});

test("a repeated transaction id gives the same event, also at the same time", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    const send = () =>
        raw(alice.desk, "PUT", path(roomId, "send/m.room.message/txn-1"), { body: { msgtype: "m.text", body: "once" } });
    const answers = await Promise.all([send(), send(), send(), send()]);
    answers.push(await send());
    const ids = new Set(answers.map(({ status, bytes }) => assert.equal(status, 200) ?? JSON.parse(bytes).event_id));
    assert.equal(ids.size, 1);
    const { event_id: marker } = await alice.desk.sendTextMessage(roomId, "after");
    await sees(bob.desk, roomId, marker);
    assert.deepEqual(texts(bob.desk, roomId), ["once", "after"]);
    // Another device's transaction ids are its own.
    const other = await raw(alice.phone, "PUT", path(roomId, "send/m.room.message/txn-1"), {
        body: { msgtype: "m.text", body: "once more" } });
    assert.ok(!ids.has(JSON.parse(other.bytes).event_id));
});

test("an edit replaces the text for the other and for who comes later", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    const { event_id: eventId } = await alice.desk.sendTextMessage(roomId, "teh");
    await sees(bob.desk, roomId, eventId);
    const edit = (client, body) =>
        client.sendMessage(roomId, {
            msgtype: "m.text",
            body: `* ${body}`,
            "m.new_content": { msgtype: "m.text", body },
            "m.relates_to": { rel_type: "m.replace", event_id: eventId },
        });
    await edit(alice.desk, "the");
    const { event_id: latest } = await edit(alice.phone, "The");
    for (const client of [alice.desk, bob.desk, bob.phone]) {
        await until("the edited text", () => held(client, roomId, eventId)?.getContent().body === "The");
    }
    const alone = await bob.desk.fetchRoomEvent(roomId, eventId);
    assert.equal(alone.unsigned["m.relations"]["m.replace"].event_id, latest);
    // An edit by someone else counts for nothing.
    await edit(bob.desk, "bob was here");
    const again = await alice.desk.fetchRoomEvent(roomId, eventId);
    assert.equal(again.unsigned["m.relations"]["m.replace"].event_id, latest);
    // Redacting the last edit brings the one before back.
    await alice.desk.redactEvent(roomId, latest);
    const before = await until("the earlier edit", async () => {
        const event = await alice.desk.fetchRoomEvent(roomId, eventId);
        return event.unsigned["m.relations"]["m.replace"].event_id !== latest && event;
    });
    assert.equal(before.unsigned["m.relations"]["m.replace"].content["m.new_content"].body, "the");
});

test("reactions: seen, counted, not doubled, taken back", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    const { event_id: eventId } = await alice.desk.sendTextMessage(roomId, "cake?");
    const react = (client, key) =>
        client.sendEvent(roomId, "m.reaction", {
            "m.relates_to": { rel_type: "m.annotation", event_id: eventId, key } });
    await sees(bob.desk, roomId, eventId);
    const { event_id: reaction } = await react(bob.desk, "👍");
    await react(alice.phone, "👍");
    await refused(react(bob.phone, "👍"), 400, "M_DUPLICATE_ANNOTATION");
    dropUnsent(bob.phone, roomId);
    await react(bob.phone, "🎂");
    const counts = (client) => {
        const found = client.getRoom(roomId).relations.getChildEventsForEvent(eventId, "m.annotation", "m.reaction");
        return Object.fromEntries(found?.getSortedAnnotationsByKey()?.map(([key, events]) => [key, events.size]) ?? []);
    };
    await until("the reactions", () => counts(alice.desk)["👍"] === 2 && counts(alice.desk)["🎂"] === 1);
    const listed = await alice.desk.fetchRelations(roomId, eventId, "m.annotation", "m.reaction", { limit: 10 });
    assert.equal(listed.chunk.length, 3);
    await bob.desk.redactEvent(roomId, reaction);
    await until("one taken back", () => counts(alice.desk)["👍"] === 1);
    const left = await alice.desk.fetchRelations(roomId, eventId, "m.annotation", "m.reaction", { limit: 10 });
    assert.equal(left.chunk.length, 2);
    await react(bob.desk, "👍");
});

/**
 * Replies in a thread without the SDK's local echo: it takes a threaded event for failed, and waits half a minute, when
 * /sync brings the event before the answer to the send is read.
 */
const reply = (client, roomId, rootId, body) =>
    client.http.authedRequest(
        "PUT", `/rooms/${encodeURIComponent(roomId)}/send/m.room.message/${client.makeTxnId()}`, undefined,
        { msgtype: "m.text", body, "m.relates_to": { rel_type: "m.thread", event_id: rootId } });

test("a thread: its replies, its summary, its place in the list, its own unread count", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    const { event_id: rootId } = await alice.desk.sendTextMessage(roomId, "a topic of its own");
    const { event_id: otherRoot } = await alice.desk.sendTextMessage(roomId, "a second one");
    await sees(bob.desk, roomId, otherRoot);
    const replies = [];
    for (let i = 0; i < 4; i++) {
        const speaker = i % 2 ? alice.desk : bob.desk;
        const { event_id } = await reply(speaker, roomId, rootId, `reply ${i}`);
        replies.push(event_id);
        await sees(i % 2 ? bob.desk : alice.desk, roomId, event_id);
    }
    for (const client of [alice.desk, alice.phone, bob.desk, bob.phone]) {
        const thread = await until("the thread", () => client.getRoom(roomId).getThread(rootId));
        await until(`four replies, not ${thread.length}`, () => thread.length === 4);
        await until("the last reply", () => thread.replyToEvent?.getId() === replies[3]);
        assert.ok(thread.hasCurrentUserParticipated);
        // Threaded replies are not in the main timeline.
        assert.deepEqual(texts(client, roomId), ["a topic of its own", "a second one"]);
    }
    const root = await alice.desk.fetchRoomEvent(roomId, rootId);
    const summary = root.unsigned["m.relations"]["m.thread"];
    assert.equal(summary.count, 4);
    assert.equal(summary.latest_event.event_id, replies[3]);
    assert.equal(summary.current_user_participated, true);

    await reply(alice.desk, roomId, otherRoot, "mine alone");
    const threads = (include) =>
        raw(bob.desk, "GET", `/_matrix/client/v1/rooms/${encodeURIComponent(roomId)}/threads?include=${include}`)
            .then(({ bytes }) => JSON.parse(bytes).chunk.map(({ event_id }) => event_id));
    assert.deepEqual(await threads("all"), [otherRoot, rootId]);
    assert.deepEqual(await threads("participated"), [rootId]);

    // No thread grows from a threaded reply.
    const nested = await raw(alice.desk, "PUT", path(roomId, "send/m.room.message/nested"), {
        body: { msgtype: "m.text", body: "deeper", "m.relates_to": { rel_type: "m.thread", event_id: replies[0] } } });
    assert.equal(nested.status, 400);

    const room = bob.phone.getRoom(roomId);
    await until("bob's unread count in alice's thread", () => room.getThreadUnreadNotificationCount(otherRoot, "total") === 1);
    const thread = await until("the second thread", () => room.getThread(otherRoot));
    await until("its reply", () => thread.replyToEvent);
    await bob.desk.sendReadReceipt(thread.replyToEvent);
    await until("bob has read it", () => room.getThreadUnreadNotificationCount(otherRoot, "total") === 0);
});

test("replies and references are related to what they answer", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    const { event_id: eventId } = await alice.desk.sendTextMessage(roomId, "question");
    const { event_id: answer } = await bob.desk.sendMessage(roomId, {
        msgtype: "m.text", body: "answer", "m.relates_to": { "m.in_reply_to": { event_id: eventId } } });
    const { event_id: reference } = await bob.desk.sendEvent(roomId, "org.example.note", {
        "m.relates_to": { rel_type: "m.reference", event_id: eventId } });
    const event = await sees(alice.desk, roomId, answer);
    assert.equal(event.replyEventId, eventId);
    const listed = await alice.desk.fetchRelations(roomId, eventId, "m.reference", null, {});
    assert.deepEqual(listed.chunk.map(({ event_id }) => event_id), [reference]);
    const bundled = (await alice.desk.fetchRoomEvent(roomId, eventId)).unsigned["m.relations"]["m.reference"];
    assert.deepEqual(bundled.chunk, [{ event_id: reference }]);
});

test("a redaction empties the event everywhere", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    const { event_id: eventId } = await alice.desk.sendTextMessage(roomId, "forget this");
    await sees(bob.phone, roomId, eventId);
    await refused(bob.desk.redactEvent(roomId, eventId), 403, "M_FORBIDDEN");
    const { event_id: redaction } = await alice.desk.redactEvent(roomId, eventId, undefined, { reason: "a slip" });
    for (const client of [alice.desk, alice.phone, bob.desk, bob.phone]) {
        await until("it is redacted", () => held(client, roomId, eventId)?.isRedacted());
        assert.deepEqual(held(client, roomId, eventId).getContent(), {});
    }
    const event = await bob.desk.fetchRoomEvent(roomId, eventId);
    assert.deepEqual(event.content, {});
    assert.equal(event.unsigned.redacted_because.event_id, redaction);
    assert.equal(event.unsigned.redacted_because.content.reason, "a slip");
});

test("receipts: seen by the other, private ones only by oneself, never backwards", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    const events = [];
    for (const body of ["one", "two", "three"]) {
        const { event_id } = await alice.desk.sendTextMessage(roomId, body);
        events.push(await sees(bob.desk, roomId, event_id));
        await sees(bob.phone, roomId, event_id);
    }
    const [one, two, three] = events;
    const unread = (client) => client.getRoom(roomId).getUnreadNotificationCount("total");
    await until("three unread", () => unread(bob.phone) === 3);
    const readUpTo = (client) => client.getRoom(roomId).getReadReceiptForUserId(bob.id, true, "m.read")?.eventId;
    await bob.desk.sendReadReceipt(two);
    await until("alice sees what bob read", () => readUpTo(alice.desk) === two.getId());
    await until("and her phone too", () => alice.phone.getRoom(roomId).hasUserReadEvent(bob.id, one.getId()));
    await until("one unread is left", () => unread(bob.phone) === 1);

    await bob.desk.sendReadReceipt(three, "m.read.private");
    await until("nothing unread", () => unread(bob.phone) === 0);
    const privately = (client) => client.getRoom(roomId).getReadReceiptForUserId(bob.id, true, "m.read.private")?.eventId;
    await until("bob's phone knows", () => privately(bob.phone) === three.getId());
    const { event_id: marker } = await bob.desk.sendTextMessage(roomId, "marker");
    await sees(alice.desk, roomId, marker);
    assert.equal(privately(alice.desk), undefined, "alice sees a private receipt");
    assert.equal(readUpTo(alice.desk), two.getId());

    await bob.desk.sendReadReceipt(one);
    await bob.desk.setRoomReadMarkers(roomId, two.getId(), three);
    await until("alice sees the third read", () => readUpTo(alice.desk) === three.getId());
    await until("the fully-read marker on the phone", () =>
        bob.phone.getRoom(roomId).getAccountData("m.fully_read")?.getContent().event_id === two.getId());
});

test("unread counts: a mention is a highlight, one's own words are none", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    const count = (client, type) => client.getRoom(roomId).getUnreadNotificationCount(type);
    await alice.desk.sendTextMessage(roomId, "anyone?");
    const { event_id: last } = await alice.desk.sendMessage(roomId, {
        msgtype: "m.text", body: "bob!", "m.mentions": { user_ids: [bob.id] } });
    for (const client of [bob.desk, bob.phone]) {
        await until("two unread, one of them loud", () => count(client, "total") === 2 && count(client, "highlight") === 1);
    }
    assert.equal(count(alice.phone, "total"), 0);
    await bob.phone.sendReadReceipt(held(bob.phone, roomId, last));
    await until("all read on the other device", () => count(bob.desk, "total") === 0 && count(bob.desk, "highlight") === 0);
});

test("typing is seen by the other, and ends", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    const typing = (client) => client.getRoom(roomId).getMember(alice.id).typing;
    await alice.desk.sendTyping(roomId, true, 20_000);
    await until("bob sees alice type", () => typing(bob.desk) && typing(bob.phone));
    await alice.desk.sendTyping(roomId, false, 0);
    await until("bob sees her stop", () => !typing(bob.desk) && !typing(bob.phone));
    await alice.desk.sendTyping(roomId, true, 1_000);
    await until("bob sees her again", () => typing(bob.desk));
    await until("and the time runs out", () => !typing(bob.desk));
});

test("an event too large is refused and leaves no trace", async () => {
    const { alice, bob } = await cast();
    const roomId = await sharedRoom({ alice, bob });
    await refused(alice.desk.sendTextMessage(roomId, "x".repeat(70_000)), 413, "M_TOO_LARGE");
    dropUnsent(alice.desk, roomId);
    const { event_id: marker } = await alice.desk.sendTextMessage(roomId, "x".repeat(40_000));
    await sees(bob.desk, roomId, marker);
    assert.equal(texts(bob.desk, roomId).length, 1);
    await have([bob.desk], roomId, "join");
});
