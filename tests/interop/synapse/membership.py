"""Coming and going: join, invite, leave, kick, ban, knock, and rooms that members of another room may join."""

from people import person, shared_room, unique
from stage import scenario
from waiting import refused, until


@scenario
async def join_a_public_room(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await anna.create_room(preset="public_chat", name="plaza", topic="all are welcome")
    assert await ben.join(room, via=host) == room
    await ben.finds(room, "join")
    for one in (anna, ben):
        await one.sees_member(room, ben, "join")
        members = (await one.call("GET", "rooms", room, "joined_members"))["joined"]
        assert set(members) == {anna.id, ben.id}, members
    assert (await ben.state(room, "m.room.name"))["name"] == "plaza"
    assert (await ben.state(room, "m.room.topic"))["topic"] == "all are welcome"
    assert await ben.full_state(room) == await anna.full_state(room)


@scenario
async def join_a_room_that_is_not_there(host, guest):
    ben = await person(guest, "ben")
    version_11 = f"!{unique('nowhere')}:{host.name}"
    for room in (version_11, "!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"):
        await refused(ben.join(room, via=host), 400, 403, 404, 502)


@scenario
async def a_private_room_lets_nobody_in(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await anna.create_room(preset="private_chat")
    await refused(ben.join(room, via=host), "M_FORBIDDEN")


@scenario
async def invite_and_accept(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await anna.create_room(preset="private_chat", name="parlour")
    await anna.invite(room, ben)
    await ben.finds(room, "invite")
    stripped = {(event["type"], event["state_key"]): event for event in ben.stripped[room]}
    assert stripped["m.room.name", ""]["content"]["name"] == "parlour", stripped
    assert stripped["m.room.member", ben.id]["sender"] == anna.id, stripped
    await anna.sees_member(room, ben, "invite")
    # Without being told where: the invite says it.
    await ben.join(room)
    await ben.finds(room, "join")
    await anna.sees_member(room, ben, "join")
    await ben.sees(room, await anna.says(room, "welcome"))


@scenario
async def invite_while_creating(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await anna.create_room(preset="trusted_private_chat", invite=[ben.id], is_direct=True)
    await ben.finds(room, "invite")
    member = next(e for e in ben.stripped[room] if e["type"] == "m.room.member" and e["state_key"] == ben.id)
    assert member["content"].get("is_direct") is True, member
    await ben.join(room)
    await anna.sees_member(room, ben, "join")
    await anna.sees(room, await ben.says(room, "here I am"))


@scenario
async def invite_and_decline(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await anna.create_room(preset="private_chat")
    await anna.invite(room, ben)
    await ben.finds(room, "invite")
    await ben.leave(room)
    await ben.finds(room, "leave")
    await anna.sees_member(room, ben, "leave")
    await refused(ben.join(room, via=host), "M_FORBIDDEN")
    # Somebody who declined can be asked again.
    await anna.invite(room, ben)
    await ben.finds(room, "invite")
    await ben.join(room)
    await anna.sees_member(room, ben, "join")


@scenario
async def a_guest_invites(host, guest):
    anna, carl = await person(host, "anna"), await person(host, "carl")
    ben = await person(guest, "ben")
    room = await shared_room(anna, ben)
    await ben.sees(room, await anna.gives_power(room, ben, 50))
    await ben.invite(room, carl)
    await carl.finds(room, "invite")
    await carl.join(room)
    for one in (anna, ben):
        await one.sees_member(room, carl, "join")


@scenario
async def leave_and_come_back(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    await ben.leave(room)
    await ben.finds(room, "leave")
    await anna.sees_member(room, ben, "leave")
    await anna.sets(room, "m.room.topic", {"topic": "while you were out"})
    missed = await anna.says(room, "he is gone")
    await ben.join(room, via=host)
    await ben.finds(room, "join")
    await anna.sees_member(room, ben, "join")
    assert (await ben.state(room, "m.room.topic"))["topic"] == "while you were out"
    await until("ben finds what was said while he was out", lambda: _in_history(ben, room, missed), pause=0.3)
    await ben.sees(room, await anna.says(room, "back again"))


async def _in_history(one, room, event_id):
    return any(event["event_id"] == event_id for event in await one.history(room))


@scenario
async def kick_and_come_back(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    await anna.kick(room, ben, "too loud")
    await ben.finds(room, "leave")
    await ben.sees_member(room, ben, "leave", reason="too loud")
    await refused(ben.says(room, "hey"), "M_FORBIDDEN")
    await ben.join(room, via=host)
    await anna.sees_member(room, ben, "join")


@scenario
async def ban_and_unban(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    await anna.ban(room, ben, "far too loud")
    await ben.finds(room, "leave")
    await ben.sees_member(room, ben, "ban", reason="far too loud")
    await refused(ben.join(room, via=host), 403)
    await anna.unban(room, ben)
    await ben.join(room, via=host)
    await ben.finds(room, "join")
    await anna.sees_member(room, ben, "join")


@scenario
async def a_moderator_on_the_other_server(host, guest):
    anna, carl = await person(host, "anna"), await person(host, "carl")
    ben = await person(guest, "ben")
    room = await shared_room(anna, carl, ben)
    await refused(ben.kick(room, carl), "M_FORBIDDEN")
    await ben.sees(room, await anna.gives_power(room, ben, 50))
    await ben.kick(room, carl, "not here")
    await carl.finds(room, "leave")
    await carl.join(room)
    await ben.sees_member(room, carl, "join")
    await ben.ban(room, carl, "really not here")
    await anna.sees_member(room, carl, "ban")
    await refused(carl.join(room), 403)
    await refused(ben.kick(room, anna), "M_FORBIDDEN")


@scenario
async def knock_and_be_let_in(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    rules = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room = await anna.create_room(preset="private_chat", name="study", initial_state=[rules])
    await refused(ben.join(room, via=host), "M_FORBIDDEN")
    assert await ben.knock(room, host, "let me in") == room
    await ben.finds(room, "knock")
    stripped = {event["type"]: event["content"] for event in ben.stripped[room]}
    assert stripped["m.room.name"]["name"] == "study", stripped
    await anna.sees_member(room, ben, "knock", reason="let me in")
    await anna.invite(room, ben)
    await ben.finds(room, "invite")
    await ben.join(room)
    await anna.sees_member(room, ben, "join")


@scenario
async def knock_and_think_better_of_it(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    rules = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room = await anna.create_room(preset="private_chat", initial_state=[rules])
    await ben.knock(room, host, "let me in")
    await anna.sees_member(room, ben, "knock")
    await ben.leave(room)
    await ben.finds(room, "leave")
    # A Synapse takes its knocks back for its own users only.
    if guest.kind != "synapse":
        await anna.sees_member(room, ben, "leave")


@scenario
async def knocking_where_it_is_not_allowed(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await anna.create_room(preset="private_chat")
    await refused(ben.knock(room, host, "let me in"), "M_FORBIDDEN")


@scenario
async def restricted_join(host, guest):
    anna = await person(host, "anna")
    ben, dora, emil = [await person(guest, name) for name in ("ben", "dora", "emil")]
    club = await shared_room(anna, ben, dora, name=unique("club"))
    allow = [{"type": "m.room_membership", "room_id": club}]
    rules = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "restricted", "allow": allow}}
    # Only anna may invite, so only her server can let others in.
    powers = {"invite": 50}
    room = await anna.create_room(preset="private_chat", initial_state=[rules], power_level_content_override=powers)
    await refused(emil.join(room, via=host), "M_FORBIDDEN")
    await ben.join(room, via=host)
    await anna.sees_member(room, ben, "join", join_authorised_via_users_server=anna.id)
    # Ben's server is in the room now, and has to ask the host all the same.
    await dora.join(room, via=host)
    for one in (anna, ben):
        await one.sees_member(room, dora, "join", join_authorised_via_users_server=anna.id)
    await refused(emil.join(room, via=host), "M_FORBIDDEN")
    assert await anna.full_state(room) == await dora.full_state(room)
