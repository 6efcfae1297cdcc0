"""Talking: send, edit, react, thread, redact, reply; transaction ids; receipts, typing, unread counts."""

import asyncio

from nio import ReceiptEvent, ReceiptType, RedactedEvent, TypingNoticeEvent
from nio.api import MessageDirection, RelationshipType
from stage import cast, ok, refused, shared_room, story, unique, until


@story
async def messages_reach_everyone_in_order_and_once():
    anna, ben = await cast()
    room_id = await shared_room(anna, ben)
    speakers = (anna.desk, ben.phone, anna.phone, ben.desk)
    said = []
    for i in range(16):
        said.append(f"line {i}")
        last = await speakers[i % 4].says(room_id, f"line {i}")
    for one in speakers:
        await one.sees(room_id, last)
        assert one.texts(room_id) == said, one.texts(room_id)


@story
async def a_repeated_transaction_is_one_event():
    anna, ben = await cast()
    room_id = await shared_room(anna, ben)
    content = {"msgtype": "m.text", "body": "once"}

    def send(one):
        return ok(one.client.room_send(room_id, "m.room.message", content, tx_id="t-1"))

    answers = await asyncio.gather(*(send(anna.desk) for _ in range(5)))
    answers.append(await send(anna.desk))
    assert len({a.event_id for a in answers}) == 1, answers
    other = (await send(anna.phone)).event_id
    assert other != answers[0].event_id
    await ben.desk.sees(room_id, other)
    assert ben.desk.texts(room_id) == ["once", "once"]
    # The device that sent it is told its id, no other.
    mine = await anna.desk.sees(room_id, answers[0].event_id)
    assert mine.source["unsigned"]["transaction_id"] == "t-1", mine.source
    his = await ben.desk.sees(room_id, answers[0].event_id)
    assert "transaction_id" not in his.source.get("unsigned", {}), his.source


@story
async def edits_reactions_replies_and_redactions():
    anna, ben = await cast()
    room_id = await shared_room(anna, ben)
    event_id = await anna.desk.says(room_id, "teh")
    edit = await anna.desk.says(
        room_id,
        "* the",
        **{
            "m.new_content": {"msgtype": "m.text", "body": "the"},
            "m.relates_to": {"rel_type": "m.replace", "event_id": event_id},
        },
    )
    seen = await ben.desk.sees(room_id, edit)
    assert seen.source["content"]["m.new_content"]["body"] == "the"
    event = (await ok(ben.desk.client.room_get_event(room_id, event_id))).event
    assert event.source["unsigned"]["m.relations"]["m.replace"]["event_id"] == edit, event.source

    key = {"m.relates_to": {"rel_type": "m.annotation", "event_id": event_id, "key": "🐟"}}
    reaction = (await ok(ben.desk.client.room_send(room_id, "m.reaction", key))).event_id
    seen = await anna.phone.sees(room_id, reaction)
    assert (seen.reacts_to, seen.key) == (event_id, "🐟")
    await refused(ben.phone.client.room_send(room_id, "m.reaction", key), 400, "M_DUPLICATE_ANNOTATION")
    related = [
        e.event_id
        async for e in ben.desk.client.room_get_event_relations(
            room_id, event_id, RelationshipType.annotation, "m.reaction", MessageDirection.back, 10
        )
    ]
    assert related == [reaction], related

    reply = await ben.desk.says(room_id, "so?", **{"m.relates_to": {"m.in_reply_to": {"event_id": event_id}}})
    seen = await anna.desk.sees(room_id, reply)
    assert seen.source["content"]["m.relates_to"]["m.in_reply_to"]["event_id"] == event_id

    await refused(ben.desk.client.room_redact(room_id, event_id), 403, "M_FORBIDDEN")
    redaction = (await ok(anna.desk.client.room_redact(room_id, event_id, reason="a slip"))).event_id
    for one in ben.devices:
        seen = await one.sees(room_id, redaction)
        assert (seen.redacts, seen.reason) == (event_id, "a slip"), seen
    event = (await ok(ben.desk.client.room_get_event(room_id, event_id))).event
    assert isinstance(event, RedactedEvent) and event.source["content"] == {}, event.source
    assert event.reason == "a slip" and event.redacter == anna.id


@story
async def a_thread_is_listed_and_summed_up():
    anna, ben = await cast()
    room_id = await shared_room(anna, ben)
    root = await anna.desk.says(room_id, "let us talk")
    replies = []
    for i in range(3):
        one = (ben.desk, anna.desk)[i % 2]
        replies.append(await one.says(room_id, f"reply {i}", **{"m.relates_to": {"rel_type": "m.thread", "event_id": root}}))
    await anna.phone.sees(room_id, replies[-1])
    threads = [e async for e in ben.desk.client.room_get_threads(room_id)]
    assert [e.event_id for e in threads] == [root], threads
    summary = threads[0].source["unsigned"]["m.relations"]["m.thread"]
    assert summary["count"] == 3 and summary["latest_event"]["event_id"] == replies[-1], summary
    related = [
        e.event_id
        async for e in ben.desk.client.room_get_event_relations(room_id, root, RelationshipType.thread, limit=2)
    ]
    assert related == replies[::-1], related


@story
async def receipts_are_seen_by_the_other_and_private_ones_are_not():
    anna, ben = await cast()
    room_id = await shared_room(anna, ben)
    _, second, third = [await anna.desk.says(room_id, str(i)) for i in range(3)]
    for one in ben.devices:
        await one.sees(room_id, third)

    def unread(one):
        return one.client.rooms[room_id].unread_notifications

    await until("three unread", lambda: unread(ben.phone) == 3)

    def receipts(one):
        found = [e for r, e in one.ephemeral if r == room_id and isinstance(e, ReceiptEvent)]
        return [(x.event_id, x.receipt_type) for e in found for x in e.receipts if x.user_id == ben.id]

    await ok(ben.desk.client.update_receipt_marker(room_id, second))
    for one in anna.devices:
        await until("anna sees what ben read", lambda one=one: (second, "m.read") in receipts(one))
    await until("one unread", lambda: unread(ben.phone) == 1)
    await ok(ben.desk.client.update_receipt_marker(room_id, third, ReceiptType.read_private))
    await until("none unread", lambda: unread(ben.phone) == 0)
    await until("ben's phone knows", lambda: (third, "m.read.private") in receipts(ben.phone))
    await anna.phone.sees(room_id, await ben.desk.says(room_id, "marker"))
    assert third not in [e for e, _ in receipts(anna.desk) + receipts(anna.phone)], "a private receipt was shown"

    await ok(ben.desk.client.room_read_markers(room_id, second, third))
    await until("the public one now", lambda: (third, "m.read") in receipts(anna.desk))
    await until("the marker", lambda: ben.phone.client.rooms[room_id].fully_read_marker == second)


@story
async def a_mention_is_a_highlight():
    anna, ben = await cast()
    room_id = await shared_room(anna, ben)
    await anna.desk.says(room_id, "anyone?")
    last = await anna.desk.says(room_id, "ben!", **{"m.mentions": {"user_ids": [ben.id]}})
    room = ben.phone.client.rooms[room_id]
    await until("two unread, one loud", lambda: (room.unread_notifications, room.unread_highlights) == (2, 1))
    await ok(ben.desk.client.update_receipt_marker(room_id, last))
    await until("all read", lambda: (room.unread_notifications, room.unread_highlights) == (0, 0))


@story
async def typing_is_seen_and_ends():
    anna, ben = await cast()
    room_id = await shared_room(anna, ben)

    def typing(one):
        found = [e.users for r, e in one.ephemeral if r == room_id and isinstance(e, TypingNoticeEvent)]
        return found[-1] if found else []

    await ok(anna.desk.client.room_typing(room_id, True, 20_000))
    for one in ben.devices:
        await until("anna types", lambda one=one: typing(one) == [anna.id])
    await ok(anna.desk.client.room_typing(room_id, False))
    for one in ben.devices:
        await until("she stopped", lambda one=one: typing(one) == [])


@story
async def what_is_too_large_or_no_json_is_refused():
    anna, ben = await cast()
    room_id = await shared_room(anna, ben)
    content = {"msgtype": "m.text", "body": "x" * 70_000}
    await refused(anna.desk.client.room_send(room_id, "m.room.message", content), 413, "M_TOO_LARGE")
    path = f"/_matrix/client/v3/rooms/{room_id}/send/m.room.message/{unique('bad')}".replace("!", "%21")
    status, _, body = await anna.desk.raw("PUT", path, "{not json")
    assert status == 400 and b"M_NOT_JSON" in body, body
    status, _, body = await anna.desk.raw("PUT", path, "[1]")
    assert status == 400 and (b"M_BAD_JSON" in body or b"M_NOT_JSON" in body), body
