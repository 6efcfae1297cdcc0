#!/usr/bin/env python3
"""Checks what hearth-up.sh and hearth-down.sh promise, and what the federation port serves.

    contract.py DIR CLIENT_PORT FEDERATION_PORT
"""

import base64
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent


def check_promises(directory, client_port, federation_port):
    name = f"localhost:{federation_port}"

    def up():
        command = [HERE / "hearth-up.sh", directory, str(client_port), str(federation_port), name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def down():
        subprocess.run([HERE / "hearth-down.sh", directory], check=True)

    def call(method, path, body=None, token=None, url=f"http://127.0.0.1:{client_port}", context=None):
        request = urllib.request.Request(url + path, method=method, data=body and json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=10, context=context) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def runs(pid):
        return Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() != b""

    pid = up()
    yield "the PID is printed and kept", (
        pid.isdecimal() and runs(pid) and Path(directory, "pids").read_text().split() == pid.split(",")
    )
    data = Path(directory, "data-dir").read_text().strip()
    yield "DIR/data-dir names the data", Path(data).is_dir() and any(Path(data).iterdir())
    yield "a server that runs only has its PID printed", up() == pid

    status, health = call("GET", "/health")
    yield "it is healthy", (status, health.get("status")) == (200, "ok")
    status, answer = call("POST", "/_matrix/client/v3/register", {"username": "keeper", "password": "a long password 1"})
    auth = {"type": "m.login.dummy", "session": answer["session"]}
    status, keeper = call(
        "POST", "/_matrix/client/v3/register", {"username": "keeper", "password": "a long password 1", "auth": auth}
    )
    yield "registration is open", status == 200 and keeper["user_id"] == f"@keeper:{name}"

    context = ssl.create_default_context(cafile=os.environ.get("HSB_CA_DIR", Path(directory).parent / "ca") / Path("ca.pem"))
    peer = {"url": f"https://{name}", "context": context}
    status, version = call("GET", "/_matrix/federation/v1/version", **peer)
    yield "the federation port tells the version, under our CA", status == 200 and version["server"]["name"] == "Hearth"
    status, keys = call("GET", "/_matrix/key/v2/server", **peer)
    verify = {name_: base64.b64decode(key["key"] + "==") for name_, key in keys["verify_keys"].items()}
    yield "it serves its signing key", (
        status == 200
        and keys["server_name"] == name
        and all(len(key) == 32 for key in verify.values())
        and set(keys["signatures"][name]) == set(verify)
        and keys["valid_until_ts"] > time.time() * 1000
    )

    began = time.monotonic()
    down()
    yield "it stops soon when asked to", not runs(pid) and time.monotonic() - began < 10
    yield "DIR/pids is gone with it", not Path(directory, "pids").exists()
    again = up()
    status, me = call("GET", "/_matrix/client/v3/account/whoami", token=keeper["access_token"])
    yield "it starts again with its data", again != pid and (status, me.get("user_id")) == (200, keeper["user_id"])
    _, keys_again = call("GET", "/_matrix/key/v2/server", **peer)
    yield "and with its signing key", keys_again["verify_keys"] == keys["verify_keys"]
    down()


def main():
    counts = {True: 0, False: 0}
    for promise, kept in check_promises(str(Path(sys.argv[1]).resolve()), int(sys.argv[2]), int(sys.argv[3])):
        print(f"{'✔' if kept else '✖'} {promise}", flush=True)
        counts[bool(kept)] += 1
    print(f"{counts[True]} passed, {counts[False]} failed")
    return 1 if counts[False] else 0


os.environ["NO_PROXY"] = "127.0.0.1,localhost"
sys.exit(main())
