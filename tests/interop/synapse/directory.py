"""Finding rooms: aliases, the list of public rooms, spaces."""

from people import person, unique
from stage import scenario
from waiting import refused, until


@scenario
async def join_by_alias(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    name = unique("square")
    alias = f"#{name}:{host.name}"
    room = await anna.create_room(preset="public_chat", room_alias_name=name)
    found = await ben.call("GET", "directory", "room", alias)
    assert found["room_id"] == room and host.name in found["servers"], found
    # Nobody says where: the alias does.
    assert await ben.join(alias) == room
    await anna.sees_member(room, ben, "join")
    assert (await ben.state(room, "m.room.canonical_alias"))["alias"] == alias
    await anna.call("DELETE", "directory", "room", alias)
    await refused(ben.call("GET", "directory", "room", alias), 404)
    await refused(ben.call("GET", "directory", "room", f"#{unique('nowhere')}:{host.name}"), 404)


@scenario
async def public_rooms_of_the_other_server(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    name = unique("market")
    room = await anna.create_room(preset="public_chat", visibility="public", name=name, topic="fish")
    hidden = await anna.create_room(preset="public_chat", name=f"{name} hidden")

    async def listed():
        found.clear()
        query = {}
        while query is not None:
            page = await ben.call("GET", "publicRooms", server=host.name, limit=5, **query)
            found.update({entry["room_id"]: entry for entry in page["chunk"]})
            query = {"since": page["next_batch"]} if "next_batch" in page else None
        return room in found

    found = {}
    await until("ben finds the room in the list", listed, pause=0.3)
    entry = found[room]
    assert (entry["name"], entry["topic"], entry["num_joined_members"]) == (name, "fish", 1), entry
    assert hidden not in found
    search = {"limit": 10, "filter": {"generic_search_term": name}}
    page = await ben.call("POST", "publicRooms", body=search, server=host.name)
    assert [entry["room_id"] for entry in page["chunk"]] == [room], page


@scenario
async def a_space_of_the_other_server(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await anna.create_room(preset="public_chat", name="a room inside")
    private = await anna.create_room(preset="private_chat", name="a private room inside")
    children = [
        {"type": "m.space.child", "state_key": child, "content": {"via": [host.name]}} for child in (room, private)
    ]
    space = await anna.create_room(
        preset="public_chat", name="a space", creation_content={"type": "m.space"}, initial_state=children
    )
    await ben.join(space, via=host)
    await anna.sees_member(space, ben, "join")
    found = await ben.call("GET", "rooms", space, "hierarchy", version="v1")
    names = {entry["room_id"]: entry.get("name") for entry in found["rooms"]}
    assert names == {space: "a space", room: "a room inside"}, names
