"""People: a user of a server on one device, who syncs and keeps all that the syncs brought.

* What others do is seen through a person's own /sync, and waited for with a bound. What did not come is named.
* A request that is refused raises `Refused`.
"""

import asyncio
import contextvars
import itertools
import json
import secrets
from urllib.parse import quote

import aiohttp
from waiting import Refused, until
from yarl import URL

FILTER = json.dumps({"room": {"timeline": {"limit": 200}}})
TAG = secrets.token_hex(3)
_numbers = itertools.count(1)

# Everybody in the scenario that plays.
cast = contextvars.ContextVar("cast")


def unique(name):
    """A name that nothing else has."""
    return f"{name}-{next(_numbers)}-{TAG}"


class Person:
    def __init__(self, server, session):
        self.server = server
        self.session = session
        self.token = None
        self.id = None
        self.sections = {}
        self.stripped = {}
        self.events = {}
        self.typing = {}
        self.receipts = {}
        self.presence = {}
        self._task = None

    # --- requests ------------------------------------------------------------------------------------------------

    async def call(self, verb, *path, body=None, version="v3", **query):
        """Asks the client API for `path`, whose parts are quoted, and gives the answer's JSON."""
        _, content = await self.raw(verb, f"client/{version}", *path, body=body, **query)
        return json.loads(content)

    async def raw(self, verb, api, *path, body=None, content_type="application/json", **query):
        """The headers and the bytes of an answer."""
        url = f"{self.server.url}/_matrix/{api}/{'/'.join(quote(part, safe='') for part in path)}"
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if verb != "GET":
            headers["Content-Type"] = content_type
            body = body if isinstance(body, bytes) else json.dumps({} if body is None else body)
        pairs = [(key, one) for key, value in query.items() for one in (value if isinstance(value, list) else [value])]
        # The path is quoted already.
        url = URL(url, encoded=True).extend_query(pairs)
        async with self.session.request(verb, url, data=body, headers=headers) as answer:
            content = await answer.read()
            if answer.status >= 400:
                try:
                    said = json.loads(content)
                except ValueError:
                    said = content[:200]
                raise Refused(f"{verb} /{'/'.join(path)} by {self.id}", answer.status, said)
            return answer.headers, content

    async def register(self, name):
        request = {"username": unique(name), "password": "a long enough password 1", "initial_device_display_name": name}
        try:
            return await self.call("POST", "register", body=request)
        except Refused as refusal:
            auth = {"type": "m.login.dummy", "session": refusal.body["session"]}
        return await self.call("POST", "register", body={**request, "auth": auth})

    async def create_room(self, **options):
        return (await self.call("POST", "createRoom", body=options))["room_id"]

    async def join(self, room, via=None, **body):
        query = {"via": via.name, "server_name": via.name} if via else {}
        return (await self.call("POST", "join", room, body=body, **query))["room_id"]

    async def knock(self, room, via, reason):
        query = {"via": via.name, "server_name": via.name}
        return (await self.call("POST", "knock", room, body={"reason": reason}, **query))["room_id"]

    async def invite(self, room, whom):
        await self.call("POST", "rooms", room, "invite", body={"user_id": whom.id})

    async def leave(self, room):
        await self.call("POST", "rooms", room, "leave")

    async def kick(self, room, whom, reason="kicked"):
        await self.call("POST", "rooms", room, "kick", body={"user_id": whom.id, "reason": reason})

    async def ban(self, room, whom, reason="banned"):
        await self.call("POST", "rooms", room, "ban", body={"user_id": whom.id, "reason": reason})

    async def unban(self, room, whom):
        await self.call("POST", "rooms", room, "unban", body={"user_id": whom.id})

    async def send(self, room, kind, content):
        path = ("rooms", room, "send", kind, unique("t"))
        return (await self.call("PUT", *path, body=content))["event_id"]

    async def says(self, room, text):
        return await self.send(room, "m.room.message", {"msgtype": "m.text", "body": text})

    async def redact(self, room, event_id, reason="redacted"):
        path = ("rooms", room, "redact", event_id, unique("t"))
        return (await self.call("PUT", *path, body={"reason": reason}))["event_id"]

    async def sets(self, room, kind, content, key=""):
        return (await self.call("PUT", "rooms", room, "state", kind, key, body=content))["event_id"]

    async def state(self, room, kind, key=""):
        return await self.call("GET", "rooms", room, "state", kind, key)

    async def gives_power(self, room, whom, level):
        levels = await self.state(room, "m.room.power_levels")
        levels.setdefault("users", {})[whom.id] = level
        return await self.sets(room, "m.room.power_levels", levels)

    async def event(self, room, event_id):
        return await self.call("GET", "rooms", room, "event", event_id)

    async def full_state(self, room):
        """The room's state: which event has which key."""
        events = await self.call("GET", "rooms", room, "state")
        return {(event["type"], event["state_key"]): event["event_id"] for event in events}

    async def history(self, room, pages=60):
        """All that the person may see of the room, newest first, page by page."""
        found, query = [], {}
        for _ in range(pages):
            page = await self.call("GET", "rooms", room, "messages", dir="b", limit=20, **query)
            found += page["chunk"]
            if "end" not in page:
                return found
            query = {"from": page["end"]}
        raise AssertionError(f"the history of {room} does not end for {self.id}: {len(found)} events")

    # --- what the syncs brought ----------------------------------------------------------------------------------

    async def _sync_forever(self):
        query = {"timeout": 0, "filter": FILTER, "set_presence": "offline"}
        while True:
            try:
                self._take(answer := await self.call("GET", "sync", **query))
                query.update(since=answer["next_batch"], timeout=10000)
            except (aiohttp.ClientError, asyncio.TimeoutError, Refused):
                await asyncio.sleep(0.1)

    def _take(self, answer):
        for event in answer.get("presence", {}).get("events", []):
            self.presence[event["sender"]] = event["content"]
        rooms = answer.get("rooms", {})
        for section, inside in (("invite", "invite_state"), ("knock", "knock_state")):
            for room, update in rooms.get(section, {}).items():
                self.sections[room] = section
                self.stripped[room] = update.get(inside, {}).get("events", [])
        for section in ("join", "leave"):
            for room, update in rooms.get(section, {}).items():
                self.sections[room] = section
                seen = self.events.setdefault(room, [])
                for part in ("state", "state_after", "timeline"):
                    seen += update.get(part, {}).get("events", [])
                for event in update.get("ephemeral", {}).get("events", []):
                    self._take_ephemeral(room, event)

    def _take_ephemeral(self, room, event):
        if event["type"] == "m.typing":
            self.typing[room] = event["content"]["user_ids"]
        elif event["type"] == "m.receipt":
            for event_id, kinds in event["content"].items():
                for kind, users in kinds.items():
                    for user in users:
                        self.receipts.setdefault(room, {}).setdefault((kind, user), []).append(event_id)

    async def finds(self, room, section):
        """Waits until the syncs have the room among the joined, the left, the invites or the knocks."""
        look = lambda: self.sections.get(room) == section  # noqa: E731
        await until(lambda: f"{self.id} finds {room} under {section}, not {self.sections.get(room)}", look)

    async def sees(self, room, event_id):
        """Waits until the syncs bring an event."""
        look = lambda: next((e for e in self.events.get(room, []) if e["event_id"] == event_id), None)  # noqa: E731
        return await until(f"{self.id} sees {event_id} in {room}", look)

    async def sees_member(self, room, whom, membership, **content):
        """Waits until the newest membership of somebody that the syncs brought is this one."""

        def newest():
            of_them = [e for e in self.events.get(room, []) if e["type"] == "m.room.member" and e["state_key"] == whom.id]
            return of_them[-1]["content"] if of_them else {}

        wanted = {"membership": membership, **content}
        look = lambda: wanted.items() <= newest().items()  # noqa: E731
        await until(lambda: f"{self.id} sees {whom.id} as {wanted}, not {newest()}", look)

    async def hears(self, room, text):
        look = lambda: text in self.texts(room)  # noqa: E731
        await until(f"{self.id} hears {text!r} in {room}", look)

    def texts(self, room):
        return texts(self.events.get(room, []))

    async def stop(self):
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.session.close()


def texts(events):
    return [event["content"]["body"] for event in events if event["type"] == "m.room.message" and event["content"]]


async def person(server, name):
    """A new user of a server, syncing."""
    session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))
    one = Person(server, session)
    cast.get().append(one)
    account = await one.register(name)
    one.id, one.token = account["user_id"], account["access_token"]
    one._task = asyncio.create_task(one._sync_forever())
    return one


async def shared_room(host, *guests, **options):
    """A public room of the host with the guests in it; everybody sees everybody there."""
    room = await host.create_room(**{"preset": "public_chat", **options})
    for guest in guests:
        await guest.join(room, via=host.server)
    for one in (host, *guests):
        for other in (host, *guests):
            await one.sees_member(room, other, "join")
    return room


async def agree(room, *people, patience=30.0):
    """Waits until the room has the same state for all of them, and gives it."""
    states = []

    async def look():
        states[:] = [await one.full_state(room) for one in people]
        return all(state == states[0] for state in states)

    def differences():
        keys = sorted({key for state in states for key in state if any(other.get(key) != state[key] for other in states)})
        return f"{room} has the same state for {[one.id for one in people]}: it differs in {keys}"

    await until(differences, look, patience, pause=0.2)
    return states[0]
