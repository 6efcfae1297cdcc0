"""Registering, logging in and out, devices, refresh tokens, profile, presence, settings."""

import json

from nio import DeleteDevicesAuthResponse
from stage import FOREIGN, PASSWORD, Device, cast, log_in, ok, refused, register, shared_room, story, stranger, unique, until


@story
async def two_users_register_each_on_two_devices():
    anna, ben = await cast()
    for player in (anna, ben):
        assert player.desk.device_id != player.phone.device_id
        for one in player.devices:
            me = await ok(one.client.whoami())
            assert (me.user_id, me.device_id) == (player.id, one.device_id), me


@story
async def registering_a_taken_name_is_refused():
    anna, _ = await cast()
    client = stranger()
    try:
        name = anna.id.split(":")[0].removeprefix("@")
        await refused(client.register(name, PASSWORD), 400, "M_USER_IN_USE")
    finally:
        await client.close()


@story
async def logging_in_needs_the_password_and_out_ends_the_token():
    anna, _ = await cast()
    client = stranger(anna.id)
    flows = (await ok(client.login_info())).flows
    assert "m.login.password" in flows, flows
    await refused(client.login("wrong"), 403, "M_FORBIDDEN")
    await client.close()

    client = await log_in(anna.id, device_name="for a moment")
    names = {d.id: d.display_name for d in (await ok(client.devices())).devices}
    assert names[client.device_id] == "for a moment", names
    await ok(client.update_device(client.device_id, {"display_name": "a moment longer"}))
    names = {d.id: d.display_name for d in (await ok(client.devices())).devices}
    assert names[client.device_id] == "a moment longer", names
    one = Device(client)
    token = client.access_token
    await ok(client.logout())
    client.access_token = token
    status, _, body = await one.raw("GET", "/_matrix/client/v3/account/whoami")
    assert status == 401 and json.loads(body)["errcode"] == "M_UNKNOWN_TOKEN", body
    await client.close()


@story
async def devices_are_deleted_with_the_password():
    anna, _ = await cast()
    victims = [Device(await log_in(anna.id)) for _ in range(2)]
    ids = [victim.device_id for victim in victims]
    asked = await anna.desk.client.delete_devices(ids)
    assert isinstance(asked, DeleteDevicesAuthResponse), asked
    assert any("m.login.password" in flow["stages"] for flow in asked.flows), asked.flows
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": anna.id},
        "password": PASSWORD,
        "session": asked.session,
    }
    await ok(anna.desk.client.delete_devices(ids, auth))
    left = {d.id for d in (await ok(anna.desk.client.devices())).devices}
    assert left == {one.device_id for one in anna.devices}, left
    for victim in victims:
        status, _, body = await victim.raw("GET", "/_matrix/client/v3/account/whoami")
        assert status == 401 and json.loads(body)["errcode"] == "M_UNKNOWN_TOKEN", body
        await victim.client.close()


@story
async def a_refresh_token_keeps_the_session_going():
    anna, _ = await cast()
    client = stranger(anna.id)
    one = Device(client)
    login = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": anna.id},
        "password": PASSWORD,
        "refresh_token": True,
    }
    _, _, body = await one.raw("POST", "/_matrix/client/v3/login", json.dumps(login))
    session = json.loads(body)
    client.access_token = session["access_token"]
    assert (await ok(client.whoami())).device_id == session["device_id"]
    for _ in range(3):
        request = json.dumps({"refresh_token": session["refresh_token"]})
        status, _, body = await one.raw("POST", "/_matrix/client/v3/refresh", request)
        assert status == 200, body
        fresh = json.loads(body)
        assert fresh["access_token"] != session["access_token"]
        session |= fresh
        client.access_token = session["access_token"]
        assert (await ok(client.whoami())).device_id == session["device_id"]
    # A transaction id is the device's, whatever its token.
    room_id = (await ok(anna.desk.client.room_create())).room_id
    path = f"/_matrix/client/v3/rooms/{room_id}/send/m.room.message/t1".replace("!", "%21")
    message = json.dumps({"msgtype": "m.text", "body": "once"})
    _, _, first = await one.raw("PUT", path, message)
    request = json.dumps({"refresh_token": session["refresh_token"]})
    _, _, body = await one.raw("POST", "/_matrix/client/v3/refresh", request)
    client.access_token = json.loads(body)["access_token"]
    _, _, second = await one.raw("PUT", path, message)
    if not FOREIGN:
        assert json.loads(first) == json.loads(second), (first, second)
    await one.raw("POST", "/_matrix/client/v3/logout")
    await client.close()


@story
async def a_new_name_and_picture_reach_the_other():
    anna, ben = await cast()
    room_id = await shared_room(anna, ben)
    await ok(anna.desk.client.set_displayname("Anna Livia"))
    await ok(anna.desk.client.set_avatar("mxc://example.org/river"))

    for one in ben.devices + (anna.phone,):
        def changed(one=one):
            member = one.member(room_id, anna.id)
            return member.display_name == "Anna Livia" and member.avatar_url == "mxc://example.org/river"

        await until("the new name and picture", changed)
    profile = await ok(ben.desk.client.get_profile(anna.id))
    assert (profile.displayname, profile.avatar_url) == ("Anna Livia", "mxc://example.org/river"), profile
    assert (await ok(ben.desk.client.get_displayname(anna.id))).displayname == "Anna Livia"
    assert (await ok(ben.desk.client.get_avatar(anna.id))).avatar_url == "mxc://example.org/river"
    nobody = f"@{unique('nobody')}:{anna.id.split(':', 1)[1]}"
    await refused(ben.desk.client.get_profile(nobody), 404)


@story
async def presence_is_seen_by_who_shares_a_room():
    anna, ben = await cast()
    await shared_room(anna, ben)
    await ok(ben.desk.client.set_presence("online", "reading"))
    await until("ben's status", lambda: any(p.user_id == ben.id and p.status_msg == "reading" for p in anna.phone.presence))
    asked = await ok(anna.desk.client.get_presence(ben.id))
    assert (asked.presence, asked.status_msg) == ("online", "reading"), asked


@story
async def filters_and_push_rules_are_kept():
    anna, _ = await cast()
    response = await ok(anna.desk.client.upload_filter(room={"timeline": {"limit": 3}}))
    assert response.filter_id
    synced = await ok(anna.desk.client.sync(timeout=0, sync_filter=response.filter_id))
    assert all(len(room.timeline.events) <= 3 for room in synced.rooms.join.values())
    client, rule = anna.desk.client, unique("pie")
    from nio import PushRuleKind

    await ok(client.set_pushrule("global", PushRuleKind.content, rule, pattern="pie", actions=[]))
    await ok(client.enable_pushrule("global", PushRuleKind.content, rule, False))
    _, _, body = await anna.phone.raw("GET", f"/_matrix/client/v3/pushrules/global/content/{rule}")
    assert json.loads(body)["enabled"] is False, body
    await ok(client.delete_pushrule("global", PushRuleKind.content, rule))
    status, _, _ = await anna.phone.raw("GET", f"/_matrix/client/v3/pushrules/global/content/{rule}")
    assert status == 404


@story
async def a_third_device_starts_with_what_the_others_have():
    anna, ben = await cast()
    room_id = await shared_room(anna, ben, name="the same for all")
    event_id = await anna.desk.says(room_id, "for every device")
    third = await Device(await log_in(anna.id)).start()
    await third.sees(room_id, event_id)
    assert third.client.rooms[room_id].name == "the same for all"
    assert set(third.client.rooms) == set(anna.desk.client.rooms)
    await third.client.logout()
    await third.stop()


@story
async def registering_tells_what_it_made():
    client = await register("guest-list")
    assert client.access_token and client.device_id and client.user_id.startswith("@guest-list")
    assert (await ok(client.whoami())).user_id == client.user_id
    await client.close()
