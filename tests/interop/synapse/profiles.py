"""Profiles: asked of the other server, and shown in shared rooms."""

from people import person, shared_room, unique
from stage import scenario
from waiting import refused


@scenario
async def profiles_of_others(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    await anna.call("PUT", "profile", anna.id, "displayname", body={"displayname": "Anna of the Host"})
    await anna.call("PUT", "profile", anna.id, "avatar_url", body={"avatar_url": "mxc://example.org/anna"})
    profile = await ben.call("GET", "profile", anna.id)
    assert {"displayname": "Anna of the Host", "avatar_url": "mxc://example.org/anna"}.items() <= profile.items(), profile
    name = await ben.call("GET", "profile", anna.id, "displayname")
    assert name == {"displayname": "Anna of the Host"}, name
    await refused(ben.call("GET", "profile", f"@{unique('nobody')}:{host.name}"), 404)


@scenario
async def a_new_name_in_shared_rooms(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    for one, other in ((anna, ben), (ben, anna)):
        await one.call("PUT", "profile", one.id, "displayname", body={"displayname": f"new {one.id}"})
        await one.call("PUT", "profile", one.id, "avatar_url", body={"avatar_url": "mxc://example.org/new"})
        await other.sees_member(room, one, "join", displayname=f"new {one.id}", avatar_url="mxc://example.org/new")
