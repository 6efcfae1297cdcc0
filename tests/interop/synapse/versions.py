"""Room versions: a short life of a room of each."""

from people import agree, person, shared_room
from stage import scenario
from waiting import until


@scenario(each=range(1, 13))
async def room_version(host, guest, version):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben, room_version=str(version))
    create = await ben.state(room, "m.room.create")
    assert create.get("room_version", "1") == str(version), create
    await ben.sees(room, await anna.gives_power(room, ben, 50))
    said = await anna.says(room, "said by anna")
    await ben.sees(room, said)
    await anna.sees(room, await ben.says(room, "said by ben"))
    await anna.sees(room, await ben.redact(room, said))
    for one in (anna, ben):
        await until(f"the redacted is gone for {one.id}", lambda: _is_gone(one, room, said))
    await anna.sees(room, await ben.sets(room, "m.room.topic", {"topic": "by ben"}))
    await agree(room, anna, ben)


async def _is_gone(one, room, event_id):
    return (await one.event(room, event_id))["content"] == {}
