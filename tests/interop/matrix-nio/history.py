"""The past: pagination, context, lazily loaded members, gaps, tokens that stay good."""

import asyncio
import json
import time
from urllib.parse import quote

from nio import RoomCreateEvent
from nio.api import MessageDirection
from stage import cast, device, log_in, newcomer, ok, shared_room, story, stranger

COUNT = 110
_long = None


async def long_room():
    """A room in which anna and ben said COUNT things in turn."""
    global _long
    if _long is None:
        anna, ben = await cast()
        room_id = await shared_room(anna, ben)
        ids = [await (anna.desk, ben.desk)[i % 2].says(room_id, f"number {i}") for i in range(COUNT)]
        _long = room_id, ids
    return _long


@story
async def pagination_to_the_beginning_and_back():
    _, ben = await cast()
    room_id, ids = await long_room()
    client = await log_in(ben.id)
    synced = await ok(client.sync(timeout=0, sync_filter={"room": {"timeline": {"limit": 6}}}))
    timeline = synced.rooms.join[room_id].timeline
    assert timeline.limited and len(timeline.events) == 6
    backwards = timeline.events[::-1]
    token = timeline.prev_batch
    while token:
        page = await ok(client.room_messages(room_id, token, limit=17))
        backwards += page.chunk
        token = page.end
        assert len(backwards) < 400, "no end in sight"
    assert isinstance(backwards[-1], RoomCreateEvent)
    assert [e.event_id for e in backwards if hasattr(e, "body")] == ids[::-1]
    assert len({e.event_id for e in backwards}) == len(backwards)

    forwards, token = [], None
    while True:
        page = await ok(client.room_messages(room_id, token, direction=MessageDirection.front, limit=30))
        forwards += page.chunk
        token = page.end
        if not token:
            break
        assert len(forwards) < 400, "no end in sight"
    assert [e.event_id for e in forwards] == [e.event_id for e in backwards[::-1]]
    await client.logout()
    await client.close()


@story
async def context_leads_on_both_ways():
    _, ben = await cast()
    room_id, ids = await long_room()
    client = ben.desk.client
    found = await ok(client.room_context(room_id, ids[50], limit=10))
    assert found.event.event_id == ids[50]
    assert [e.event_id for e in found.events_before] == ids[45:50][::-1], found.events_before
    assert [e.event_id for e in found.events_after] == ids[51:56], found.events_after
    assert any(e.source["type"] == "m.room.create" for e in found.state if hasattr(e, "source"))
    older = await ok(client.room_messages(room_id, found.start, limit=5))
    assert [e.event_id for e in older.chunk] == ids[40:45][::-1]
    newer = await ok(client.room_messages(room_id, found.end, direction=MessageDirection.front, limit=5))
    assert [e.event_id for e in newer.chunk] == ids[56:61]
    eve = await newcomer("peeper")
    path = f"/_matrix/client/v3/rooms/{quote(room_id, safe='')}/context/{quote(ids[50], safe='')}"
    assert (await eve.raw("GET", path))[0] in (403, 404)
    await eve.stop()


@story
async def filters_pick_from_the_past():
    anna, ben = await cast()
    room_id, ids = await long_room()
    only = {"types": ["m.room.message"], "senders": [anna.id]}
    page = await ok(ben.desk.client.room_messages(room_id, limit=20, message_filter=only))
    assert [e.event_id for e in page.chunk] == ids[::-1][1:41:2], page.chunk
    none = await ok(ben.desk.client.room_messages(room_id, limit=20, message_filter={"not_types": ["m.room.*"]}))
    assert none.chunk == []


@story
async def members_come_lazily():
    anna, ben = await cast()
    room_id = await shared_room(anna, ben, name="crowd")
    crowd = [await newcomer(f"crowd{i}") for i in range(4)]
    for one in crowd:
        await ok(anna.desk.client.room_invite(room_id, one.user_id))
        await ok(one.client.join(room_id))
    for i in range(8):
        await anna.desk.says(room_id, f"speech {i}")
    client = await log_in(ben.id)
    lazily = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 4}}}

    def senders(synced):
        room = synced.rooms.join[room_id]
        return {e.source["state_key"] for e in room.state if e.source["type"] == "m.room.member"}

    synced = await ok(client.sync(timeout=0, sync_filter=lazily))
    assert anna.id in senders(synced) and not senders(synced) & {one.user_id for one in crowd}, senders(synced)
    summary = synced.rooms.join[room_id].summary
    assert summary.joined_member_count == 6, summary

    await crowd[2].says(room_id, "I am here")
    synced = await ok(client.sync(timeout=5_000, sync_filter=lazily, since=synced.next_batch))
    assert crowd[2].user_id in senders(synced), senders(synced)
    assert crowd[1].user_id not in senders(synced), senders(synced)
    members = (await ok(client.joined_members(room_id))).members
    assert {m.user_id for m in members} == {anna.id, ben.id, *(one.user_id for one in crowd)}
    for one in crowd:
        await one.stop()
    await client.logout()
    await client.close()


@story
async def a_gap_is_told_and_can_be_filled():
    anna, ben = await cast()
    room_id = await shared_room(anna, ben)
    client = await log_in(ben.id)
    little = {"room": {"timeline": {"limit": 5}}}
    first = (await ok(client.sync(timeout=0, sync_filter=little))).next_batch
    ids = []
    for i in range(25):
        ids.append(await anna.desk.says(room_id, f"while away {i}"))
        if i == 2:
            await ok(anna.desk.client.room_put_state(room_id, "m.room.topic", {"topic": "changed meanwhile"}))
    synced = await ok(client.sync(timeout=0, sync_filter=little, since=first))
    room = synced.rooms.join[room_id]
    assert room.timeline.limited and [e.event_id for e in room.timeline.events] == ids[-5:]
    assert [e.topic for e in room.state if e.source["type"] == "m.room.topic"] == ["changed meanwhile"]
    gap, token = [], room.timeline.prev_batch
    while token:
        page = await ok(client.room_messages(room_id, token, end=first, limit=6))
        gap += page.chunk
        token = page.end
        assert len(gap) < 100, "no end in sight"
    assert [e.event_id for e in gap if hasattr(e, "body")] == ids[:-5][::-1]

    # A token stays good, and gives the same again.
    again = await ok(client.sync(timeout=0, sync_filter=little, since=first))
    assert [e.event_id for e in again.rooms.join[room_id].timeline.events] == ids[-5:]
    await client.logout()
    await client.close()


@story
async def a_waiting_sync_is_woken():
    anna, ben = await cast()
    room_id = await shared_room(anna, ben)
    client = await log_in(ben.id)
    quiet = {"presence": {"types": []}, "room": {"rooms": [room_id], "ephemeral": {"types": []}}}
    token = (await ok(client.sync(timeout=0, sync_filter=quiet))).next_batch
    for round_ in range(10):
        waiting = asyncio.create_task(ok(client.sync(timeout=20_000, sync_filter=quiet, since=token)))
        await asyncio.sleep(0.03 * (round_ % 3))
        began = time.monotonic()
        event_id = await anna.desk.says(room_id, f"wake up {round_}")
        while True:
            synced = await waiting
            token = synced.next_batch
            room = synced.rooms.join.get(room_id)
            if room and event_id in [e.event_id for e in room.timeline.events]:
                break
            waiting = asyncio.create_task(ok(client.sync(timeout=20_000, sync_filter=quiet, since=token)))
        assert time.monotonic() - began < 4, "it slept on"
    began = time.monotonic()
    synced = await ok(client.sync(timeout=300, sync_filter=quiet, since=token))
    assert not synced.rooms.join and 0.25 < time.monotonic() - began < 5
    await client.logout()
    await client.close()


@story
async def a_made_up_token_is_refused():
    _, ben = await cast()
    one = await device(ben.id)
    status, _, body = await one.raw("GET", "/_matrix/client/v3/sync?since=nonsense&timeout=0")
    assert status == 400, (status, body)
    assert json.loads(body)["errcode"]
    await one.client.logout()
    await one.stop()
    client = stranger()
    response = await client.send("GET", "/_matrix/client/v3/sync")
    assert response.status == 401 and (await response.json())["errcode"] == "M_MISSING_TOKEN"
    await client.close()
