"""What passes: typing, receipts, presence."""

from people import person, shared_room
from stage import scenario
from waiting import until


@scenario
async def typing_both_ways(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    for typist, watcher in ((anna, ben), (ben, anna)):
        path = ("rooms", room, "typing", typist.id)
        await typist.call("PUT", *path, body={"typing": True, "timeout": 30000})
        await until(f"{watcher.id} sees typing", lambda: watcher.typing.get(room) == [typist.id])
        await typist.call("PUT", *path, body={"typing": False})
        await until(f"{watcher.id} sees typing end", lambda: watcher.typing.get(room) == [])


@scenario
async def receipts_both_ways(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    for speaker, reader in ((anna, ben), (ben, anna)):
        said = await speaker.says(room, "read this")
        await reader.sees(room, said)
        await reader.call("POST", "rooms", room, "receipt", "m.read", said)
        read = lambda: speaker.receipts.get(room, {}).get(("m.read", reader.id))  # noqa: E731
        await until(f"{speaker.id} sees that {reader.id} read", lambda: read() == [said])


@scenario
async def private_receipts_stay_at_home(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    first, second = await anna.says(room, "one"), await anna.says(room, "two")
    await ben.sees(room, second)
    await ben.call("POST", "rooms", room, "receipt", "m.read.private", first)
    await ben.call("POST", "rooms", room, "receipt", "m.read", second)
    read = lambda kind: anna.receipts.get(room, {}).get((kind, ben.id))  # noqa: E731
    await until("anna sees that ben read", lambda: read("m.read") == [second])
    assert read("m.read.private") is None, anna.receipts


@scenario
async def presence_both_ways(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    await shared_room(anna, ben)
    for one, watcher in ((anna, ben), (ben, anna)):
        for presence, message in (("online", "at the desk"), ("unavailable", "at lunch")):
            wanted = {"presence": presence, "status_msg": message}
            await one.call("PUT", "presence", one.id, "status", body=wanted)
            seen = lambda: watcher.presence.get(one.id, {})  # noqa: E731
            what = lambda: f"{watcher.id} sees {one.id} as {wanted}, not {seen()}"  # noqa: E731
            await until(what, lambda: wanted.items() <= seen().items())
