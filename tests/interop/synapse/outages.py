"""A server is down for a while: nothing that was said meanwhile is lost, and nobody waits for it for ever."""

import asyncio

from people import agree, person, shared_room, texts
from stage import scenario
from waiting import refused, until

MISSED = 15


async def sign_of_life(one, room, noticed_by):
    """A Synapse tries a server that was down once a minute, or when it hears of it. Hearth needs no reminder."""
    if noticed_by.kind == "synapse":
        await one.says(room, "I am up")


@scenario(alone=True)
async def down_and_catch_up(host, guest):
    anna, carl, ben = await person(host, "anna"), await person(host, "carl"), await person(guest, "ben")
    first, second = await shared_room(anna, ben), await shared_room(anna, ben)
    await guest.down()
    said = [f"missed {number}" for number in range(MISSED)]
    for text in said:
        await anna.says(first, text)
    topic = await anna.sets(second, "m.room.topic", {"topic": "changed meanwhile"})
    await carl.join(second)
    invited = await anna.create_room(preset="public_chat")
    await guest.up()
    await sign_of_life(ben, second, noticed_by=host)

    await ben.hears(first, said[-1])
    await ben.sees(second, topic)
    await ben.sees_member(second, carl, "join")

    async def all_is_there():
        found[:] = texts(reversed(await ben.history(first)))
        return [text for text in found if text in said] == said

    found = []
    await until(lambda: f"ben reads all that he missed, not only {found}", all_is_there, pause=0.5)
    for room in (first, second):
        await agree(room, anna, ben)
        await anna.sees(room, await ben.says(room, "I am back"))
    # What could not be delivered then is no burden now.
    await anna.invite(invited, ben)
    await ben.finds(invited, "invite")


@scenario(alone=True)
async def what_a_server_said_alone(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    await host.down()
    said = [f"alone {number}" for number in range(5)]
    for text in said:
        await ben.says(room, text)
    await host.up()
    await sign_of_life(anna, room, noticed_by=guest)
    for text in said:
        await anna.hears(room, text)
    await ben.sees(room, await anna.says(room, "heard"))


@scenario(alone=True)
async def nobody_answers(host, guest):
    """A peer that cannot be reached gives an error soon, and does not keep anybody from the rooms that are here."""
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await anna.create_room(preset="public_chat")
    shared = await shared_room(anna, ben)
    await host.link.cut()
    try:
        async with asyncio.timeout(30):
            await refused(ben.join(room, via=host), 404, 500, 502, 503, 504)
            await refused(ben.call("GET", "directory", "room", f"#a:{host.name}"), 404, 500, 502, 503, 504)
            await refused(ben.call("GET", "publicRooms", server=host.name), 404, 500, 502, 503, 504)
        async with asyncio.timeout(5):
            said = await ben.says(shared, "is anybody there?")
    finally:
        await host.link.mend()
    await anna.sees(shared, said)
    await until("ben can join again", lambda: _joins(ben, room, host), pause=0.5)


async def _joins(one, room, via):
    try:
        return await one.join(room, via=via)
    except Exception:
        return None


@scenario(alone=True)
async def decline_when_the_inviter_is_gone(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await anna.create_room(preset="private_chat")
    await anna.invite(room, ben)
    await ben.finds(room, "invite")
    await host.link.cut()
    try:
        async with asyncio.timeout(30):
            await ben.leave(room)
            await ben.finds(room, "leave")
    finally:
        await host.link.mend()
