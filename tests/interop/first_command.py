#!/usr/bin/env python3
"""Checks README's promise: its first command runs a server that answers within two seconds of its start.

    first_command.py

The command is run as README has it (the build is cargo's, and over before the clock starts), in an empty folder. HEARTH
in the environment names a binary to run instead of cargo's, with the same arguments.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
URL = "http://127.0.0.1:8008/_matrix/client/versions"
PROMISE_SECONDS = 2.0


def first_command():
    """The first line of README's first code block."""
    block = re.search(r"^```[a-z]*\n(.*?)\n```|\n\n((?:    .*\n)+)", (REPOSITORY / "README.md").read_text(), re.M | re.S)
    lines = (block[1] or block[2]).strip().splitlines()
    return shlex.split(lines[0].strip().removeprefix("$ "), comments=True)


def is_the_server(pid):
    try:
        return Path(os.readlink(f"/proc/{pid}/exe")).name.startswith("hearth")
    except OSError:
        return False


def answers():
    try:
        with urllib.request.urlopen(URL, timeout=2) as answer:
            return b"versions" in answer.read()
    except (urllib.error.URLError, OSError):
        return False


def main():
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 8008))  # Somebody else's server there would answer for ours.
    command = first_command()
    print(f"README says: {shlex.join(command)}")
    if binary := os.environ.get("HEARTH"):
        arguments = command[command.index("--") + 1 :] if "--" in command else []
        command = [str(Path(binary).resolve()), *arguments]
    elif command[0] == "cargo":
        at = command.index("--") if "--" in command else len(command)
        command[at:at] = ["--manifest-path", str(REPOSITORY / "Cargo.toml")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEARTH_")}
    environment["no_proxy"] = "127.0.0.1"
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE)
        try:
            while not is_the_server(process.pid):
                if process.poll() is not None:
                    raise SystemExit(process.stderr.read().decode() + "README's first command ended")
                time.sleep(0.002)
            began = time.monotonic()
            while not answers():
                if process.poll() is not None:
                    raise SystemExit(process.stderr.read().decode() + "the server ended")
                if time.monotonic() - began > 30:
                    raise SystemExit("no answer within 30 s")
                time.sleep(0.01)
            seconds = time.monotonic() - began
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
    good = seconds <= PROMISE_SECONDS
    print(f"{'✔' if good else '✖'} it answers after {seconds * 1000:.0f} ms")
    print(f"{int(good)} passed, {int(not good)} failed")
    return 0 if good else 1


os.environ["NO_PROXY"] = "127.0.0.1"
sys.exit(main())
