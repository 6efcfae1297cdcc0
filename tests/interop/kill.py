#!/usr/bin/env python3
"""Kills a server under load again and again, and looks whether what it had answered is there afterwards.

    kill.py DIR CLIENT_PORT FEDERATION_PORT [ROUNDS]

UP and DOWN in the environment name other scripts than hearth-up.sh and hearth-down.sh, so that other servers can be
tried. Each round: senders, an uploader, a registrar and a long-polling reader work until SIGKILL; then the server
starts again with the same DIR, and

* every event whose send was answered is in /messages, exactly once;
* a repeated transaction id gives the event of the first time, also where the first answer never arrived;
* every event that /sync had shown is still there, and the old `since` token brings the rest;
* every uploaded file comes back byte for byte, every account works.
"""

import http.client
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

HERE = Path(__file__).resolve().parent
UP = os.environ.get("UP", str(HERE / "hearth-up.sh"))
DOWN = os.environ.get("DOWN", str(HERE / "hearth-down.sh"))
SENDERS = 8
ROOMS = 3


class Unanswered(Exception):
    """The connection ended before an answer was read."""


class Client:
    """One connection to the server, for one thread."""

    def __init__(self, port, token=None):
        self.port = port
        self.token = token
        self.connection = None

    def call(self, method, path, body=None, content_type="application/json", timeout=60):
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if isinstance(body, dict):
            body = json.dumps(body)
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
            self.connection.request(method, path, body, headers)
            answer = self.connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection = None
            raise Unanswered(str(error)) from error
        return answer.status, data

    def json(self, method, path, body=None, **options):
        status, data = self.call(method, path, body, **options)
        if status != 200:
            raise AssertionError(f"{method} {path}: {status} {data[:300]!r}")
        return json.loads(data)

    def register(self, name):
        request = {"username": name, "password": "a long enough password"}
        status, data = self.call("POST", "/_matrix/client/v3/register", request)
        assert status == 401, f"{status} {data!r}"
        request["auth"] = {"type": "m.login.dummy", "session": json.loads(data)["session"]}
        answer = self.json("POST", "/_matrix/client/v3/register", request)
        self.token = answer["access_token"]
        return answer["user_id"]


def room_path(room, rest):
    return f"/_matrix/client/v3/rooms/{quote(room, safe='')}/{rest}"


class Play:
    """What is known of the server across the rounds."""

    def __init__(self, directory, client_port, federation_port):
        self.directory = directory
        self.port = client_port
        self.federation_port = federation_port
        self.tag = secrets.token_hex(4)
        self.answered = {}  # transaction id -> (sender, room, event id)
        self.unanswered = {}  # transaction id -> (sender, room)
        self.uploads = {}  # mxc -> bytes
        self.accounts = []  # (user id, token)
        self.shown = set()  # event ids that /sync brought
        self.problems = []

    def up(self):
        began = time.monotonic()
        server_name = f"localhost:{self.federation_port}"
        command = [UP, self.directory, str(self.port), str(self.federation_port), server_name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - began

    def kill(self):
        for pid in Path(self.directory, "pids").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
            # Not our child, so there is nothing to wait for but its end.
            while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
                time.sleep(0.005)
        Path(self.directory, "pids").unlink()

    def set_up(self):
        self.tokens = []
        users = []
        for i in range(SENDERS):
            client = Client(self.port)
            users.append(client.register(f"sender{i}-{self.tag}"))
            self.tokens.append(client.token)
        host = Client(self.port, self.tokens[0])
        self.rooms = []
        for _ in range(ROOMS):
            request = {"preset": "public_chat"}
            room = host.json("POST", "/_matrix/client/v3/createRoom", request)["room_id"]
            for token in self.tokens[1:]:
                Client(self.port, token).json("POST", room_path(room, "join"), {})
            self.rooms.append(room)
        self.since = host.json("GET", "/_matrix/client/v3/sync?timeout=0")["next_batch"]

    # --- the load ---------------------------------------------------------------------------------------------------

    def send(self, sender, round_, stop):
        client = Client(self.port, self.tokens[sender])
        number = 0
        while not stop.is_set():
            number += 1
            room = self.rooms[(sender + number) % ROOMS]
            transaction = f"r{round_}.s{sender}.n{number}"
            try:
                event_id = self.put(client, room, transaction)
            except Unanswered:
                self.unanswered[transaction] = (sender, room)
                return
            self.answered[transaction] = (sender, room, event_id)

    def put(self, client, room, transaction):
        content = {"msgtype": "m.text", "body": transaction}
        return client.json("PUT", room_path(room, f"send/m.room.message/{transaction}"), content)["event_id"]

    def upload(self, round_, stop):
        client = Client(self.port, self.tokens[0])
        while not stop.is_set():
            data = secrets.token_bytes(random.randrange(1, 60_000))
            try:
                status, answer = client.call(
                    "POST", "/_matrix/media/v3/upload", data, content_type="application/octet-stream"
                )
            except Unanswered:
                return
            assert status == 200, answer
            self.uploads[json.loads(answer)["content_uri"]] = data
            time.sleep(0.02)

    def register(self, round_, stop):
        number = 0
        while not stop.is_set():
            number += 1
            client = Client(self.port)
            try:
                user_id = client.register(f"late{round_}x{number}-{self.tag}")
            except Unanswered:
                return
            self.accounts.append((user_id, client.token))
            time.sleep(0.05)

    def read(self, round_, stop):
        client = Client(self.port, self.tokens[0])
        while not stop.is_set():
            try:
                self.sync(client, 10_000)
            except Unanswered:
                return

    def sync(self, client, timeout_ms):
        wanted = {"room": {"timeline": {"limit": 1000}}, "presence": {"types": []}}
        path = f"/_matrix/client/v3/sync?timeout={timeout_ms}&since={self.since}&filter={quote(json.dumps(wanted))}"
        answer = client.json("GET", path)
        count = 0
        for room in answer.get("rooms", {}).get("join", {}).values():
            events = [event["event_id"] for event in room.get("timeline", {}).get("events", [])]
            for event_id in events:
                if event_id in self.shown:
                    self.problems.append(f"/sync brought {event_id} twice")
                self.shown.add(event_id)
            count += len(events)
        self.since = answer["next_batch"]
        return count

    def guarded(self, work, *arguments):
        try:
            work(*arguments)
        except Exception as error:
            self.problems.append(f"{work.__name__}: {error!r}")

    def load_and_kill(self, round_):
        stop = threading.Event()
        jobs = [(self.send, sender) for sender in range(SENDERS)] + [(self.upload,), (self.register,), (self.read,)]
        threads = [threading.Thread(target=self.guarded, args=(*job, round_, stop)) for job in jobs]
        for thread in threads:
            thread.start()
        before, deadline = len(self.answered), time.monotonic() + 15
        while len(self.answered) < before + 50 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 1.5))
        self.kill()
        stop.set()
        for thread in threads:
            thread.join(30)
            if thread.is_alive():
                self.problems.append("a request neither was answered nor failed when the server was killed")

    # --- the look afterwards ----------------------------------------------------------------------------------------

    def history(self, client, room):
        events = []
        token = ""
        while True:
            page = client.json("GET", room_path(room, f"messages?dir=b&limit=500{token}"))
            events += page["chunk"]
            if "end" not in page:
                return events
            token = f"&from={quote(page['end'])}"

    def check(self, round_):
        clients = [Client(self.port, token) for token in self.tokens]
        for transaction, (sender, room, event_id) in self.answered.items():
            # All of this round's, some of the earlier ones.
            if transaction.startswith(f"r{round_}.") or random.random() < 0.02:
                again = self.put(clients[sender], room, transaction)
                if again != event_id:
                    self.problems.append(f"{transaction} gave {event_id}, then {again}")
        for transaction, (sender, room) in self.unanswered.items():
            self.answered[transaction] = (sender, room, self.put(clients[sender], room, transaction))
        self.unanswered.clear()

        # The token from before the kill brings all that is new.
        while self.sync(clients[0], 0):
            pass

        counts = {}
        bodies = {}
        for room in self.rooms:
            for event in self.history(clients[0], room):
                counts[event["event_id"]] = counts.get(event["event_id"], 0) + 1
                if event["type"] == "m.room.message":
                    bodies.setdefault(event["content"]["body"], []).append(event["event_id"])
        lost = [t for t, (_, _, event_id) in self.answered.items() if event_id not in counts]
        doubled = [t for t, ids in bodies.items() if len(ids) > 1]
        repeated = [event_id for event_id, count in counts.items() if count > 1]
        vanished = [event_id for event_id in self.shown if event_id not in counts]
        unshown = [t for t, (_, _, event_id) in self.answered.items() if event_id not in self.shown]
        for what, found in (
            ("answered, but lost", lost),
            ("there twice for one transaction id", doubled),
            ("twice in /messages", repeated),
            ("shown by /sync, but lost", vanished),
            ("answered, but not brought by /sync", unshown),
        ):
            if found:
                self.problems.append(f"{len(found)} events {what}: {found[:5]}")

        for mxc, data in self.uploads.items():
            _, _, server, media_id = mxc.split("/")
            status, found = clients[0].call("GET", f"/_matrix/client/v1/media/download/{server}/{media_id}")
            if status != 200 or found != data:
                self.problems.append(f"{mxc} came back as {status} with {len(found)} of {len(data)} bytes")
        self.uploads.clear()
        for user_id, token in self.accounts:
            status, data = Client(self.port, token).call("GET", "/_matrix/client/v3/account/whoami")
            if status != 200:
                self.problems.append(f"{user_id} was registered, and now: {status} {data!r}")
        self.accounts.clear()
        return len(bodies)


def main():
    directory, client_port, federation_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 8
    play = Play(directory, client_port, federation_port)
    play.up()
    play.set_up()
    failed = 0
    for round_ in range(rounds):
        before = len(play.answered)
        play.load_and_kill(round_)
        answered = len(play.answered) - before
        files, accounts = len(play.uploads), len(play.accounts)
        seconds = play.up()
        play.guarded(play.check, round_)
        failed += bool(play.problems)
        mark = "✖" if play.problems else "✔"
        print(
            f"{mark} killed after {answered} more answered sends, {files} uploads, {accounts} registrations;"
            f" up again in {seconds:.1f} s",
            flush=True,
        )
        for problem in play.problems:
            print(f"    {problem}")
        play.problems.clear()
    subprocess.run([DOWN, directory], check=True)
    print(f"{rounds - failed} passed, {failed} failed")
    return 1 if failed else 0


sys.exit(main())
