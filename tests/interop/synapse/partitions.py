"""Two servers that cannot reach each other, whose users contradict each other. Afterwards both have the same state."""

import asyncio
from contextlib import asynccontextmanager

from people import agree, person, shared_room
from stage import scenario
from waiting import until


@asynccontextmanager
async def partition(*servers):
    for server in servers:
        await server.link.cut()
    try:
        yield
    finally:
        for server in servers:
            await server.link.mend()


async def heal(room, *people):
    """Waits until the sides hear each other again, and agree.

    They go on talking meanwhile: a Synapse tries a peer that failed only when there is something to say.
    """

    async def all_are_heard():
        said.extend([await one.says(room, "can you hear me?") for one in people])
        await asyncio.sleep(1)
        return all({e["event_id"] for e in one.events[room]}.issuperset(said) for one in people)

    said = []
    await until("the two sides hear each other again", all_are_heard, patience=30)
    await agree(room, *people)


@scenario(alone=True)
async def a_partition_with_different_topics(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    await ben.sees(room, await anna.gives_power(room, ben, 50))
    async with partition(host, guest):
        said = []
        for one in (anna, ben):
            for number in range(3):
                await one.sets(room, "m.room.topic", {"topic": f"topic {number} of {one.id}"})
                await one.sets(room, "org.example.own", {"number": number}, one.id)
                said.append(await one.says(room, f"{number} by {one.id}"))
        await anna.sets(room, "m.room.name", {"name": "named by anna"})
    await heal(room, anna, ben)
    for one in (anna, ben):
        for event_id in said:
            await one.sees(room, event_id)
        assert (await one.state(room, "m.room.name"))["name"] == "named by anna"
        for other in (anna, ben):
            assert (await one.state(room, "org.example.own", other.id))["number"] == 2


@scenario(alone=True)
async def a_partition_with_a_ban(host, guest):
    anna, ben, dora = await person(host, "anna"), await person(guest, "ben"), await person(guest, "dora")
    room = await shared_room(anna, ben, dora, name="before")
    for one in (ben, dora):
        await ben.sees(room, await anna.gives_power(room, one, 50))
    async with partition(host, guest):
        ban = await anna.ban(room, dora)
        await dora.sets(room, "m.room.name", {"name": "by the banned"})
        await dora.says(room, "said by the banned")
        await ben.sets(room, "m.room.topic", {"topic": "by ben"})
    await heal(room, anna, ben)
    for one in (anna, ben):
        assert (await one.state(room, "m.room.member", dora.id))["membership"] == "ban", ban
        # She was banned already, as all agree now.
        assert (await one.state(room, "m.room.name"))["name"] == "before"
        assert (await one.state(room, "m.room.topic"))["topic"] == "by ben"
    await dora.finds(room, "leave")


@scenario(alone=True)
async def a_partition_with_a_lost_office(host, guest):
    anna, carl, ben = await person(host, "anna"), await person(host, "carl"), await person(guest, "ben")
    room = await shared_room(anna, carl, ben)
    await ben.sees(room, await anna.gives_power(room, ben, 50))
    async with partition(host, guest):
        await anna.gives_power(room, ben, 0)
        await ben.kick(room, carl, "while I can")
        await ben.sees_member(room, carl, "leave")
    await heal(room, anna, ben)
    for one in (anna, ben):
        assert (await one.state(room, "m.room.member", carl.id))["membership"] == "join"
        levels = await one.state(room, "m.room.power_levels")
        assert levels["users"].get(ben.id, 0) == 0, levels
    said = await ben.says(room, "sorry")
    await until("carl is still there", lambda: carl.sees(room, said))


@scenario(alone=True)
async def a_partition_with_newcomers(host, guest):
    anna, carl = await person(host, "anna"), await person(host, "carl")
    ben, dora = await person(guest, "ben"), await person(guest, "dora")
    room = await shared_room(anna, ben)
    async with partition(host, guest):
        await carl.join(room)
        await dora.join(room)
        await ben.leave(room)
        said = [await carl.says(room, "carl is here"), await dora.says(room, "dora is here")]
    await heal(room, carl, dora)
    for one in (carl, dora):
        members = (await one.call("GET", "rooms", room, "joined_members"))["joined"]
        assert set(members) == {anna.id, carl.id, dora.id}, members
        for event_id in said:
            await one.sees(room, event_id)
