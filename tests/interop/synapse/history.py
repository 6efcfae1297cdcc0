"""What was said before: who comes later reads it, as far as the room lets them."""

from people import person, shared_room, texts
from stage import scenario
from waiting import refused, until

BEFORE = 45


@scenario
async def a_late_joiner_reads_all(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await anna.create_room(preset="public_chat")
    said = [f"number {number}" for number in range(BEFORE)]
    for text in said:
        last = await anna.says(room, text)
    await ben.join(room, via=host)

    async def all_is_there():
        found[:] = await ben.history(room)
        return texts(reversed(found)) == said

    found = []
    await until(lambda: f"ben reads all, not only {texts(found)}", all_is_there, pause=0.5)
    ids = [event["event_id"] for event in found]
    assert len(ids) == len(set(ids)), "something is twice in the history"
    assert found[-1]["type"] == "m.room.create", found[-1]
    assert ids == [event["event_id"] for event in await anna.history(room)]
    # What came by backfill is there like anything else.
    around = await ben.call("GET", "rooms", room, "context", last, limit=4)
    assert around["event"]["event_id"] == last, around


@scenario
async def history_hidden_from_who_comes_later(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    visibility = {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "joined"}}
    room = await anna.create_room(preset="public_chat", initial_state=[visibility])
    secret = await anna.says(room, "before he came")
    await ben.join(room, via=host)
    await anna.sees_member(room, ben, "join")
    await ben.sees(room, await anna.says(room, "after he came"))
    assert "before he came" not in texts(await ben.history(room))
    await refused(ben.event(room, secret), 403, 404)


@scenario
async def history_from_the_invite_on(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    visibility = {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "invited"}}
    room = await anna.create_room(preset="private_chat", initial_state=[visibility])
    await anna.says(room, "before the invite")
    await anna.invite(room, ben)
    await ben.finds(room, "invite")
    await anna.says(room, "after the invite")
    await ben.join(room)
    await anna.sees_member(room, ben, "join")

    async def as_it_should_be():
        found[:] = texts(await ben.history(room))
        return found == ["after the invite"]

    found = []
    await until(lambda: f"ben reads what was said since his invite: {found}", as_it_should_be, pause=0.5)


@scenario
async def the_event_of_a_time(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await anna.create_room(preset="public_chat")
    said = await anna.says(room, "when was this?")
    at = (await anna.event(room, said))["origin_server_ts"]
    await ben.join(room, via=host)
    await anna.sees_member(room, ben, "join")
    found = await ben.call("GET", "rooms", room, "timestamp_to_event", version="v1", ts=at, dir="f")
    assert found["origin_server_ts"] >= at, found


@scenario
async def both_sides_have_the_same_history(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    for number in range(8):
        one = (anna, ben)[number % 2]
        last = await one.says(room, f"number {number}")
        await ((ben, anna)[number % 2]).sees(room, last)
    histories = [[event["event_id"] for event in await one.history(room)] for one in (anna, ben)]
    assert histories[0] == histories[1], histories
