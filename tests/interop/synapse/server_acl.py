"""Rooms that deny a server."""

from people import agree, person, shared_room
from stage import scenario
from waiting import refused


async def set_acl(one, room, *denied):
    acl = {"allow": ["*"], "deny": list(denied), "allow_ip_literals": True}
    return await one.sets(room, "m.room.server_acl", acl)


def host_of(server):
    return server.name.rsplit(":", 1)[0]


@scenario
async def a_denied_server_cannot_join(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await anna.create_room(preset="public_chat")
    await set_acl(anna, room, host_of(guest))
    await refused(ben.join(room, via=host), 403)
    await set_acl(anna, room)
    await ben.join(room, via=host)
    await anna.sees_member(room, ben, "join")


@scenario
async def a_denied_server_is_not_heard(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room, other = await shared_room(anna, ben), await shared_room(anna, ben)
    await ben.sees(room, await set_acl(anna, room, host_of(guest)))
    # Synapse holds to the list of servers as it was before the change for its next transaction at most: say two things.
    unheard = await ben.says(room, "can you hear me?")
    heard = await ben.says(other, "and here?")
    await anna.sees(other, heard)
    assert unheard not in [event["event_id"] for event in anna.events[room]]
    await refused(anna.event(room, unheard), 404)
    # Typing in that room is not for us either, in the other it is.
    for where in (room, other):
        await ben.call("PUT", "rooms", where, "typing", ben.id, body={"typing": True, "timeout": 20000})
    await anna.sees(other, await ben.says(other, "typing"))
    assert not anna.typing.get(room), anna.typing
    # Allowed again, both sides come together.
    await ben.sees(room, await set_acl(anna, room))
    await anna.sees(room, await ben.says(room, "now?"))
    await agree(room, anna, ben)
