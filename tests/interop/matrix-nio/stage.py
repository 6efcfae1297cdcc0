"""The stage for the stories: where the server is, who plays, and how to wait for what must come.

* Every name carries this run's tag, so that a run may follow another on the same server.
* Waiting is always for something seen through a device's own /sync, never for time to pass.
* nio checks each answer and event against a schema: one that it cannot read fails the story.
"""

import asyncio
import os
import secrets
import sys
import time
import traceback

from nio import (
    AsyncClient,
    AsyncClientConfig,
    BadEvent,
    EphemeralEvent,
    ErrorResponse,
    Event,
    InviteEvent,
    LoginResponse,
    PresenceEvent,
    RegisterResponse,
    SyncResponse,
)

URL = os.environ.get("INTEROP_URL", "http://127.0.0.1:8008")
# Set where the server is not Hearth: what only Hearth promises is then not asked for.
FOREIGN = bool(os.environ.get("INTEROP_FOREIGN"))
PASSWORD = "a long enough password 1"
TAG = secrets.token_hex(4)

STORIES = []
_devices = []


def unique(name):
    """`name`, not used by an earlier run."""
    return f"{name}-{TAG}"


def story(play):
    """Puts a coroutine function on the programme; its name is the story's title."""
    STORIES.append(play)
    return play


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, response):
        super().__init__(str(response))
        self.errcode = getattr(response, "status_code", None)
        self.status = status_of(response)


def status_of(response):
    transport = getattr(response, "transport_response", None)
    return transport.status if transport is not None else None


async def ok(request):
    """The answer, unless it is an error: then it is raised."""
    response = await request
    # Some errors nio takes for answers.
    if isinstance(response, ErrorResponse) or (status_of(response) or 200) >= 400:
        raise Refused(response)
    return response


async def refused(request, status, *errcodes):
    """Checks that a request is refused with this status and, if given, one of these errcodes."""
    try:
        response = await ok(request)
    except Refused as refusal:
        assert refusal.status == status, f"{refusal.status}: {refusal}"
        assert not errcodes or refusal.errcode in (None, *errcodes), f"{refusal.errcode}: {refusal}"
        return refusal
    raise AssertionError(f"was not refused: {response}")


async def until(what, look, timeout=10.0):
    """Runs `look` until it gives something true."""
    deadline = time.monotonic() + timeout
    while True:
        found = look()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain: {what}")
        await asyncio.sleep(0.015)


class Device:
    """A logged-in client that syncs, and keeps all that its syncs brought."""

    def __init__(self, client):
        self.client = client
        self.user_id = client.user_id
        self.device_id = client.device_id
        self.events = {}
        self.invites = {}
        self.ephemeral = []
        self.presence = []
        self.unreadable = []
        self.sections = {}
        client.add_event_callback(self._on_event, Event)
        client.add_event_callback(self._on_unreadable, BadEvent)
        client.add_event_callback(self._on_invite, InviteEvent)
        client.add_ephemeral_callback(self._on_ephemeral, EphemeralEvent)
        client.add_presence_callback(self._on_presence, PresenceEvent)
        client.add_response_callback(self._on_sync, SyncResponse)
        self._task = None

    async def _on_sync(self, response):
        for section in ("join", "invite", "leave"):
            for room_id in getattr(response.rooms, section):
                self.sections[room_id] = section

    async def _on_event(self, room, event):
        self.events.setdefault(room.room_id, []).append(event)

    async def _on_unreadable(self, room, event):
        self.unreadable.append((room.room_id, event))

    async def _on_invite(self, room, event):
        self.invites.setdefault(room.room_id, []).append(event)

    async def _on_ephemeral(self, room, event):
        self.ephemeral.append((room.room_id, event))

    async def _on_presence(self, event):
        self.presence.append(event)

    async def start(self):
        await self._on_sync(await ok(self.client.sync(timeout=0, full_state=True)))
        self._task = asyncio.create_task(self.client.sync_forever(timeout=10_000))
        _devices.append(self)
        return self

    async def stop(self):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.client.close()
        _devices.remove(self)

    def timeline(self, room_id):
        """The room's events in the order in which syncs brought them."""
        return self.events.get(room_id, [])

    def texts(self, room_id):
        return [event.body for event in self.timeline(room_id) if hasattr(event, "body")]

    async def sees(self, room_id, event_id):
        def look():
            return next((e for e in self.timeline(room_id) if e.event_id == event_id), None)

        return await until(f"{self.user_id} on {self.device_id} sees {event_id}", look)

    async def says(self, room_id, body, **more):
        content = {"msgtype": "m.text", "body": body, **more}
        return (await ok(self.client.room_send(room_id, "m.room.message", content))).event_id

    async def is_joined(self, room_id):
        await self._finds(room_id, "join")
        assert room_id in self.client.rooms

    async def is_invited(self, room_id):
        await self._finds(room_id, "invite")
        assert room_id in self.client.invited_rooms

    async def is_out_of(self, room_id):
        await self._finds(room_id, "leave")

    async def _finds(self, room_id, section):
        """Waits until the last sync that told of the room had it in this section."""

        def look():
            return self.sections.get(room_id) == section

        await until(f"{self.user_id} on {self.device_id} finds {room_id} under {section}", look)

    def member(self, room_id, user_id):
        room = self.client.rooms.get(room_id)
        return room.users.get(user_id) if room else None

    async def raw(self, method, path, body=None, headers=None):
        """A request that nio has no function for: status, headers, content."""
        headers = {"Authorization": f"Bearer {self.client.access_token}", **(headers or {})}
        if isinstance(body, str):
            headers["Content-Type"] = "application/json"
        response = await self.client.send(method, path, body, headers)
        return response.status, response.headers, await response.read()


class Player:
    """A user on two devices."""

    def __init__(self, desk, phone):
        self.desk = desk
        self.phone = phone
        self.id = desk.user_id
        self.devices = (desk, phone)


def stranger(user=""):
    return AsyncClient(URL, user, config=AsyncClientConfig(max_timeouts=2, request_timeout=40))


async def register(localpart):
    """A new user's client, not syncing yet."""
    client = stranger(unique(localpart))
    response = await ok(client.register(unique(localpart), PASSWORD, device_name=f"{localpart}'s desk"))
    assert isinstance(response, RegisterResponse)
    client.user_id = response.user_id
    return client


async def log_in(user_id, password=PASSWORD, device_name="another device"):
    client = stranger(user_id)
    try:
        assert isinstance(await ok(client.login(password, device_name=device_name)), LoginResponse)
    except Refused:
        await client.close()
        raise
    return client


async def newcomer(localpart):
    """A new user on one syncing device."""
    return await Device(await register(localpart)).start()


async def device(user_id):
    """One more syncing device of a user."""
    return await Device(await log_in(user_id)).start()


_cast = None


async def cast():
    """The two who play in most stories, on two devices each."""
    global _cast
    if _cast is None:
        players = []
        for name in ("anna", "ben"):
            desk = await newcomer(name)
            players.append(Player(desk, await device(desk.user_id)))
        _cast = players
    return _cast


async def shared_room(anna, ben, **options):
    """A room of anna's with ben in it, seen by all four devices."""
    room_id = (await ok(anna.desk.client.room_create(invite=[ben.id], **options))).room_id
    await ben.desk.is_invited(room_id)
    await ok(ben.desk.client.join(room_id))
    for one in anna.devices + ben.devices:
        await one.is_joined(room_id)
    for one in anna.devices:
        await until("anna sees ben join", lambda one=one: one.member(room_id, ben.id) and not one.member(room_id, ben.id).invited)
    return room_id


async def perform():
    """Plays all stories; the exit status says whether all went well."""
    only = sys.argv[1:]
    failed = 0
    stories = [play for play in STORIES if not only or any(word in play.__name__ for word in only)]
    for play in stories:
        began = time.monotonic()
        title = play.__name__.replace("_", " ")
        try:
            await asyncio.wait_for(play(), 90)
            unreadable = [found for one in _devices for found in one.unreadable]
            assert not unreadable, f"nio cannot read {unreadable}"
            print(f"✔ {title} ({(time.monotonic() - began) * 1000:.0f}ms)", flush=True)
        except Exception:
            failed += 1
            print(f"✖ {title} ({(time.monotonic() - began) * 1000:.0f}ms)", flush=True)
            traceback.print_exc()
        for one in _devices:
            one.unreadable.clear()
    await asyncio.gather(*(one.stop() for one in list(_devices)))
    print(f"{len(stories) - failed} passed, {failed} failed")
    return 1 if failed else 0
