"""Resolves the random rooms that random_rooms prints with Synapse's own resolver, and compares.

    random_rooms VERSION COUNT | compare.py [--corpus FILE]

Prints how many rooms there were, in how many the result differs from what the newest event of each key would give (a
resolver that knew no rules would pass the others), and each disagreement. --corpus adds the smallest of the
interesting rooms to a file.
"""

import argparse
import asyncio
import json
import sys

# event_auth first: synapse.state.v2 and it import each other.
import synapse.event_auth  # noqa: F401
from synapse.api.room_versions import KNOWN_ROOM_VERSIONS
from synapse.events import make_event_from_dict
from synapse.state import v2
from synapse.storage.databases.main.event_federation import StateDifference

# Rooms in which the rules decide, of a hundred.
FLOOR = 20
KEPT = 4


class Clock:
    async def sleep(self, _):
        return None


class Store:
    """The events of one room, as the resolver asks for them."""

    def __init__(self, events):
        self.events = events

    async def get_events(self, event_ids, allow_rejected=False):
        return {id_: self.events[id_] for id_ in event_ids if id_ in self.events}

    def chain(self, event_ids):
        found, open_ = set(), [auth for id_ in event_ids for auth in self.events[id_].auth_event_ids()]
        while open_:
            id_ = open_.pop()
            if id_ not in found:
                found.add(id_)
                open_.extend(self.events[id_].auth_event_ids())
        return found

    async def get_auth_chain_difference(self, room_id, state_sets, conflicted_state, additional):
        # A state's own events are part of its chain, as in Synapse's own store.
        chains = [set(state) | self.chain(state) for state in state_sets]
        difference = set.union(*chains) - set.intersection(*chains)
        subgraph = None
        if conflicted_state is not None:
            start = conflicted_state | (additional or set())
            below = {id_: {id_} | self.chain([id_]) for id_ in start | self.chain(start)}
            reached = set().union(*(below[id_] for id_ in start))
            subgraph = {id_ for id_ in reached if below[id_] & start}
        return StateDifference(auth_difference=difference, conflicted_subgraph=subgraph)


async def resolve(room):
    version = KNOWN_ROOM_VERSIONS[room["room_version"]]
    events = {}
    for event in room["events"]:
        made = make_event_from_dict(event["pdu"], version)
        assert made.event_id == event["event_id"], f"{made.event_id} is {event['event_id']} for us"
        events[made.event_id] = made
    states = [{(kind, key): id_ for kind, key, id_ in state} for state in room["states"]]
    resolved = await v2.resolve_events_with_store(Clock(), room["room_id"], version, states, None, Store(events))
    return {key: resolved[key] for key in resolved}


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus")
    options = parser.parse_args()
    count = interesting = 0
    disagreements, corpus = [], []
    for line in sys.stdin:
        room = json.loads(line)
        ours = {(kind, key): id_ for kind, key, id_ in room["resolved"]}
        theirs = await resolve(room)
        count += 1
        if ours != theirs:
            disagreements.append(room["seed"])
            keys = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
            print(f"  version {room['room_version']} seed {room['seed']}: {keys}")
        if room["differs_from_last_writer_wins"]:
            interesting += 1
            corpus.append((len(room["events"]), line))
    if options.corpus:
        with open(options.corpus, "a", encoding="utf-8") as file:
            file.writelines(line for _, line in sorted(corpus)[:KEPT])
    share = 100 * interesting / max(count, 1)
    print(f"{count} rooms, the rules decide in {share:.0f} of 100 (at least {FLOOR}), {len(disagreements)} disagreements")
    sys.exit(0 if count and not disagreements and share >= FLOOR else 1)


asyncio.run(main())
