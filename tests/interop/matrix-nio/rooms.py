"""Creating rooms with each preset, coming and going, aliases, the directory, state."""

import json
from urllib.parse import quote

from nio import InviteMemberEvent, RoomMemberEvent, RoomPreset, RoomVisibility
from stage import Refused, cast, newcomer, ok, refused, shared_room, story, unique, until

PRESETS = {
    RoomPreset.private_chat: ("invite", "can_join"),
    RoomPreset.trusted_private_chat: ("invite", "can_join"),
    RoomPreset.public_chat: ("public", "forbidden"),
}


@story
async def a_room_of_each_preset():
    anna, ben = await cast()
    for preset, (join_rule, guest_access) in PRESETS.items():
        created = await ok(
            anna.desk.client.room_create(preset=preset, name=preset.value, topic="a topic", invite=[ben.id], is_direct=True)
        )
        room_id = created.room_id
        for one in anna.devices:
            await one.is_joined(room_id)
        room = anna.desk.client.rooms[room_id]
        await until("the topic", lambda room=room: room.topic == "a topic")
        assert (room.name, room.join_rule, room.guest_access) == (preset.value, join_rule, guest_access), vars(room)
        for one in ben.devices:
            await one.is_invited(room_id)
            invited = one.client.invited_rooms[room_id]
            assert invited.name == preset.value, invited.name
            await until("who invited", lambda invited=invited: invited.inviter == anna.id)
            member = [e for e in one.invites[room_id] if isinstance(e, InviteMemberEvent) and e.state_key == ben.id]
            assert member[-1].content["is_direct"] is True, member
        await ok(ben.phone.client.join(room_id))
        for one in ben.devices:
            await one.is_joined(room_id)
        levels = (await ok(ben.desk.client.room_get_state_event(room_id, "m.room.power_levels", ""))).content
        create = (await ok(ben.desk.client.room_get_state_event(room_id, "m.room.create", ""))).content
        equal = levels["users"].get(ben.id) == 100 or ben.id in create.get("additional_creators", [])
        assert equal == (preset is RoomPreset.trusted_private_chat), (levels, create)


@story
async def rooms_with_options():
    anna, _ = await cast()
    created = await ok(
        anna.desk.client.room_create(
            visibility=RoomVisibility.public,
            alias=unique("plaza"),
            name="plaza",
            room_version="11",
            federate=False,
            space=True,
            initial_state=[{"type": "m.room.history_visibility", "content": {"history_visibility": "world_readable"}}],
            power_level_override={"events_default": 7},
        )
    )
    room_id = created.room_id
    await anna.phone.is_joined(room_id)
    room = anna.phone.client.rooms[room_id]
    await until("the name", lambda: room.name == "plaza")
    assert (room.room_version, room.room_type, room.federate) == ("11", "m.space", False), vars(room)
    assert room.canonical_alias == f"#{unique('plaza')}:{anna.id.split(':', 1)[1]}", room.canonical_alias
    assert room.history_visibility == "world_readable"
    assert room.power_levels.defaults.events_default == 7
    assert (await ok(anna.desk.client.room_get_visibility(room_id))).visibility == "public"


@story
async def every_room_version_can_be_created_and_spoken_in():
    anna, ben = await cast()
    _, _, body = await anna.desk.raw("GET", "/_matrix/client/v3/capabilities")
    versions = json.loads(body)["capabilities"]["m.room_versions"]["available"]
    for version in (v for v in versions if v.isdecimal()):
        room_id = await shared_room(anna, ben, room_version=version)
        event_id = await ben.phone.says(room_id, f"in version {version}")
        assert (await anna.phone.sees(room_id, event_id)).body == f"in version {version}"
        await ok(anna.desk.client.room_redact(room_id, event_id, reason="gone"))
        event = (await ok(ben.desk.client.room_get_event(room_id, event_id))).event
        assert type(event).__name__ == "RedactedEvent", event


@story
async def inviting_declining_kicking_banning_unbanning():
    anna, ben = await cast()
    host, guest = anna.desk.client, ben.desk.client
    room_id = (await ok(host.room_create(preset=RoomPreset.private_chat))).room_id
    await refused(guest.join(room_id), 403, "M_FORBIDDEN")

    await ok(host.room_invite(room_id, ben.id))
    await ben.phone.is_invited(room_id)
    await ok(guest.room_leave(room_id))
    await ben.phone.is_out_of(room_id)

    await ok(host.room_invite(room_id, ben.id))
    await ben.phone.is_invited(room_id)
    await ok(guest.join(room_id))
    await ben.phone.is_joined(room_id)
    await refused(guest.room_kick(room_id, anna.id), 403, "M_FORBIDDEN")

    await ok(host.room_kick(room_id, ben.id, "too loud"))
    await ben.phone.is_out_of(room_id)
    await refused(guest.join(room_id), 403, "M_FORBIDDEN")

    await ok(host.room_invite(room_id, ben.id))
    await ok(guest.join(room_id))
    await ben.phone.is_joined(room_id)
    await ok(host.room_ban(room_id, ben.id, "enough"))
    await ben.phone.is_out_of(room_id)
    for request in (guest.join(room_id), host.room_invite(room_id, ben.id)):
        await refused(request, 403, "M_FORBIDDEN", "M_BAD_STATE")

    await ok(host.room_unban(room_id, ben.id))
    await ok(host.room_invite(room_id, ben.id))
    await ok(guest.join(room_id))
    await ben.phone.is_joined(room_id)

    def changes():
        found = [e for e in anna.phone.timeline(room_id) if isinstance(e, RoomMemberEvent) and e.state_key == ben.id]
        return [e.membership for e in found]

    expected = ["invite", "leave", "invite", "join", "leave", "invite", "join", "ban", "leave", "invite", "join"]
    await until("every change, in order", lambda: changes() == expected)


@story
async def leaving_and_forgetting():
    anna, ben = await cast()
    room_id = await shared_room(anna, ben)
    client = ben.desk.client
    await refused(client.room_forget(room_id), 400)
    await ok(client.room_leave(room_id))
    for one in ben.devices:
        await one.is_out_of(room_id)
    unseen = await anna.desk.says(room_id, "behind his back")
    page = await ok(client.room_messages(room_id, limit=50))
    assert page.chunk and unseen not in [e.event_id for e in page.chunk]
    await ok(client.room_forget(room_id))
    await refused(client.room_messages(room_id), 403, "M_FORBIDDEN")
    assert room_id not in (await ok(client.joined_rooms())).rooms
    await ok(anna.desk.client.room_invite(room_id, ben.id))
    await ben.phone.is_invited(room_id)


@story
async def knocking():
    anna, ben = await cast()
    room_id = (await ok(anna.desk.client.room_create(name="a door"))).room_id
    await anna.desk.is_joined(room_id)
    await refused(ben.desk.client.room_knock(room_id), 403, "M_FORBIDDEN")
    rule = {"join_rule": "knock"}
    await ok(anna.desk.client.room_put_state(room_id, "m.room.join_rules", rule))
    await ok(ben.desk.client.room_knock(room_id, "it is me"))

    def knocked():
        return [e for e in anna.phone.timeline(room_id) if isinstance(e, RoomMemberEvent) and e.membership == "knock"]

    await until("anna hears it", knocked)
    assert knocked()[0].content["reason"] == "it is me"
    await ok(anna.desk.client.room_invite(room_id, ben.id))
    await ben.phone.is_invited(room_id)
    await ok(ben.desk.client.join(room_id))
    await ben.phone.is_joined(room_id)


@story
async def aliases_and_the_directory():
    anna, ben = await cast()
    host = anna.desk.client
    server = anna.id.split(":", 1)[1]
    alias = f"#{unique('market')}:{server}"
    word = unique("word").replace("-", "")
    made = await ok(host.room_create(preset=RoomPreset.public_chat, name=f"market of {word}", topic="fish"))
    room_id = made.room_id
    await refused(ben.desk.client.room_resolve_alias(alias), 404, "M_NOT_FOUND")
    await ok(host.room_put_alias(alias, room_id))
    resolved = await ok(ben.desk.client.room_resolve_alias(alias))
    assert resolved.room_id == room_id and server in resolved.servers, resolved
    await ok(ben.desk.client.join(alias))
    await ben.phone.is_joined(room_id)
    await ok(host.room_put_state(room_id, "m.room.canonical_alias", {"alias": alias}))
    await until("the alias", lambda: ben.phone.client.rooms[room_id].canonical_alias == alias)

    path = f"/_matrix/client/v3/directory/list/room/{quote(room_id, safe='')}"
    status, _, body = await anna.desk.raw("PUT", path, json.dumps({"visibility": "public"}))
    assert status == 200, body
    listed = await _search(ben.desk, word)
    assert [(r["room_id"], r["num_joined_members"], r["topic"]) for r in listed] == [(room_id, 2, "fish")], listed
    public = await ok(ben.desk.client.list_public_rooms(limit=100))
    assert room_id in [r.room_id for r in public.public_rooms]

    await refused(ben.desk.client.room_delete_alias(alias), 403, "M_FORBIDDEN")
    await ok(host.room_delete_alias(alias))
    await refused(ben.desk.client.room_resolve_alias(alias), 404, "M_NOT_FOUND")


async def _search(one, word):
    search = json.dumps({"limit": 5, "filter": {"generic_search_term": word}})
    status, _, body = await one.raw("POST", "/_matrix/client/v3/publicRooms", search)
    assert status == 200, body
    return json.loads(body)["chunk"]


@story
async def state_is_written_read_and_guarded():
    anna, ben = await cast()
    room_id = await shared_room(anna, ben)
    key = "a/b #c?d"
    path = f"/_matrix/client/v3/rooms/{quote(room_id, safe='')}/state/org.example.thing/{quote(key, safe='')}"
    status, _, body = await anna.desk.raw("PUT", path, json.dumps({"n": 1}))
    assert status == 200, body
    first = json.loads(body)["event_id"]
    _, _, body = await anna.desk.raw("PUT", path, json.dumps({"n": 1}))
    assert json.loads(body)["event_id"] == first, "identical state makes no second event"
    _, _, body = await ben.desk.raw("GET", path)
    assert json.loads(body) == {"n": 1}, body
    whole = (await ok(ben.desk.client.room_get_state(room_id))).events
    assert {"n": 1} in [e["content"] for e in whole if e["type"] == "org.example.thing"]
    await refused(ben.desk.client.room_put_state(room_id, "m.room.name", {"name": "ben's"}), 403, "M_FORBIDDEN")
    await refused(ben.desk.client.room_get_state_event(room_id, "org.example.other", ""), 404, "M_NOT_FOUND")
    members = (await ok(ben.desk.client.joined_members(room_id))).members
    assert {m.user_id for m in members} == {anna.id, ben.id}
    eve = await newcomer("eve")
    await refused(eve.client.room_get_state(room_id), 403, "M_FORBIDDEN")
    await refused(eve.client.room_messages(room_id), 403, "M_FORBIDDEN")
    try:
        await eve.says(room_id, "hello?")
        raise AssertionError("a stranger spoke")
    except Refused as refusal:
        assert (refusal.status, refusal.errcode) == (403, "M_FORBIDDEN"), refusal
    await eve.stop()
