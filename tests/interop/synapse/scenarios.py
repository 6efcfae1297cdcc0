"""Plays Hearth and Synapse against each other: `scenarios.py DIR FIRST_PORT [WORD_OF_A_TITLE…]`, with six free ports.

Environment:
  INTEROP_PEERS  the two kinds of servers (default: hearth,synapse); synapse,synapse checks the scenarios themselves
  INTEROP_ALL    play also those that do not pass yet
"""

import asyncio
import os
import re
import signal
import sys

import directory  # noqa: F401
import ephemeral  # noqa: F401
import history  # noqa: F401
import media  # noqa: F401
import membership  # noqa: F401
import messages  # noqa: F401
import outages  # noqa: F401
import partitions  # noqa: F401
import profiles  # noqa: F401
import server_acl  # noqa: F401
import servers
import stage
import upgrades  # noqa: F401
import versions  # noqa: F401

# What Hearth does not pass yet, as which of the two, and why.
NOT_YET = {
    ("upgrade_and_follow", "host"): "rooms cannot be upgraded here yet",
    ("a_space_of_the_other_server", "guest"): "clients cannot walk through spaces here yet",
}


def reason(part):
    roles = zip(("host", "guest"), part.arguments, strict=False)
    reasons = [NOT_YET.get((part.play.__name__, role)) for role, server in roles if server.kind == "hearth"]
    return next(filter(None, reasons), None)


def errors_of(server):
    """What a server must not have to say. Synapse has its own ideas of errors."""
    if server.kind != "hearth":
        return []
    lines = server.log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if re.search("ERROR|panicked", line)]


async def main():
    # Servers are stopped whatever ends this.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    folder, first_port, words = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    kinds = os.environ.get("INTEROP_PEERS", "hearth,synapse").split(",")
    pair = await servers.start(kinds, folder, first_port)
    try:
        parts = stage.programme(*pair, words)
        left_out = [] if os.environ.get("INTEROP_ALL") else [part for part in parts if reason(part)]
        parts = [part for part in parts if part not in left_out]
        await stage.perform(parts)
    finally:
        for server in pair:
            await server.link.cut()
        await asyncio.gather(*(server.down() for server in pair))
    failed = sum(part.failure is not None for part in parts)
    for part in left_out:
        print(f"– not yet: {part.title}: {reason(part)}")
    for server in pair:
        if errors := errors_of(server):
            failed += 1
            print(f"✖ {server} logged errors")
            print("\n".join(f"    {line}" for line in errors[:20]))
    print(f"{sum(part.failure is None for part in parts)} passed, {failed} failed")
    return 1 if failed or not parts else 0


sys.exit(asyncio.run(main()))
