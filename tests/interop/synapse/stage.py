"""The stage: scenarios are put on the programme, and played between two servers in both directions.

* A scenario is a coroutine function of a `host` and a `guest`, each server being either once.
* It makes its own people and rooms, so several play at once. `alone` is for those that stop servers or cut links.
* A scenario that fails does not keep the others from playing.
"""

import asyncio
import time
import traceback
from pathlib import Path

import people

AT_ONCE = 4
LONGEST = 90.0

PROGRAMME = []


def scenario(play=None, *, alone=False, each=(None,)):
    """Puts a scenario on the programme, once for each value of `each`, which it is called with."""

    def put(play):
        for value in each:
            PROGRAMME.append((play, value, alone))
        return play

    return put(play) if play else put


class Part:
    """A scenario in one direction."""

    def __init__(self, play, value, alone, host, guest):
        self.play = play
        self.alone = alone
        self.name = play.__name__ if value is None else f"{play.__name__} {value}"
        self.direction = f"{host} → {guest}"
        self.arguments = (host, guest) if value is None else (host, guest, value)
        self.failure = None

    @property
    def title(self):
        return f"{self.name.replace('_', ' ')}: {self.direction}"

    async def perform(self):
        began = time.monotonic()
        present = []
        people.cast.set(present)
        try:
            await asyncio.wait_for(self.play(*self.arguments), LONGEST)
        except Exception as failure:
            self.failure = failure
        await asyncio.gather(*(one.stop() for one in present))
        mark = "✖" if self.failure else "✔"
        print(f"{mark} {self.title} ({(time.monotonic() - began) * 1000:.0f}ms)", flush=True)
        if self.failure:
            print(_told(self.failure), flush=True)


def _told(failure):
    """What went wrong, and where in the scenario."""
    here = str(Path(__file__).resolve().parent)
    frames = [f for f in traceback.extract_tb(failure.__traceback__) if f.filename.startswith(here)]
    places = [f"{Path(f.filename).name}:{f.lineno} {f.line}" for f in frames if Path(f.filename).name != "stage.py"]
    what = str(failure) if isinstance(failure, AssertionError) else f"{type(failure).__name__}: {failure}"
    return "\n".join(f"    {line}" for line in [what or "an assertion does not hold", *places])


def programme(first, second, words):
    """The parts whose title has one of the words, or all."""
    directions = [(first, second), (second, first)]
    parts = [Part(*entry, host, guest) for entry in PROGRAMME for host, guest in directions]
    return [part for part in parts if not words or any(word in part.title for word in words)]


async def perform(parts):
    """Plays them all: first several at once, then those that need the servers for themselves."""
    free = asyncio.Semaphore(AT_ONCE)

    async def in_turn(part):
        async with free:
            await part.perform()

    await asyncio.gather(*(in_turn(part) for part in parts if not part.alone))
    for part in parts:
        if part.alone:
            await asyncio.create_task(part.perform())
