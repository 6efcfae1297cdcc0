"""A room is given up for a newer one, and people of the other server follow."""

from people import person, shared_room
from stage import scenario
from waiting import refused, until


@scenario
async def upgrade_and_follow(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    old = await shared_room(anna, ben, room_version="10", name="to be upgraded")
    new = (await anna.call("POST", "rooms", old, "upgrade", body={"new_version": "12"}))["replacement_room"]
    tombstone = next(id_ for (kind, _), id_ in (await anna.full_state(old)).items() if kind == "m.room.tombstone")
    assert (await ben.sees(old, tombstone))["content"]["replacement_room"] == new
    await until("the old room lets nobody speak", lambda: _is_silent(ben, old))
    await refused(ben.says(old, "is this still on?"), "M_FORBIDDEN")
    await ben.join(new, via=host)
    await anna.sees_member(new, ben, "join")
    create = await ben.state(new, "m.room.create")
    assert create["predecessor"]["room_id"] == old and create["room_version"] == "12", create
    assert (await ben.state(new, "m.room.name"))["name"] == "to be upgraded"
    await anna.sees(new, await ben.says(new, "I followed"))


async def _is_silent(one, room):
    return (await one.state(room, "m.room.power_levels")).get("events_default", 0) > 0
