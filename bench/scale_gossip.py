"""Membership at a size, in the bottle: the joining of all at once, a death, a change, and rest.

The cores are the real ones; network and clock are those of `swarmd.sim.gossip`: what a host's
processor or its sockets would add is not in these figures, nor the seal (61 bytes a datagram).
"""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

import msgspec

from mesh.swim import LAN, Change, Event, MemberChanged, Self, State, Swim
from mesh.swim.messages import SPOKEN, Alive, Entry, SyncAnswer, encode, encode_sync
from swarmd.sim.gossip import GossipWorld, Host

Row = dict[str, float]

MEMBERS_A_SYNC = 4_000
"""Of these words: 700 KB hold no more."""
STORM_S_MAX = 300.0
KNOWN_S_MAX = 60.0
TAGS = {"version": "0.1.0", "machine": "1", "session": "0123456789abcdef" * 2}
"""As a daemon says them."""


def name(number: int) -> str:
    """As long as a real one."""
    return f"00000000-0000-4000-8000-{number:012}"


def storm(count: int, seeds: int, seed: int = 1) -> Row:
    """All start at one moment, and know one or a few of them."""
    world, ids = GossipWorld(seed), [name(n) for n in range(count)]
    met: dict[str, int] = {}
    whole_at: list[float] = []
    dead = 0

    def heed(host: Host, event: Event) -> bool:
        nonlocal dead
        if isinstance(event, MemberChanged):
            dead += event.change is Change.DIED
            if event.change is Change.JOINED:
                met[host.id] = met.get(host.id, 0) + 1
                if met[host.id] == count - 1:
                    whole_at.append(world.now)
        return False

    world.heeds = heed
    with without_collecting(), timed() as took:
        for id in ids:
            world.start(id, seeds=ids[:seeds], tags=TAGS).by_second = {}
        began = world.now
        world.run_until(lambda: len(whole_at) == count, STORM_S_MAX)
    hosts = world.running()
    asked = [world.hosts[id] for id in ids[:seeds]]
    return {
        "nodes": count,
        "seeds": seeds,
        "half_s": median(whole_at) - began,
        "all_s": max(whole_at) - began,
        "called_dead": dead,
        "bytes": sum(h.sent_bytes + h.sync_bytes for h in hosts) / count,
        "datagrams": sum(h.sent for h in hosts) / count,
        "syncs": sum(h.syncs for h in hosts) / count,
        "seed_syncs": max(h.syncs for h in asked),
        "seed_peak_bytes_s": max(max((h.by_second or {0: 0}).values()) for h in asked),
        "other_peak_bytes_s": max(
            max((h.by_second or {0: 0}).values()) for h in hosts if h.id not in ids[:seeds]
        ),
        "cpu_s": took(),
    }


def settled(count: int, seed: int = 1) -> tuple[GossipWorld, list[str]]:
    """All have known each other for a while, and have nothing to tell."""
    world, ids = GossipWorld(seed), [name(n) for n in range(count)]
    world.heeds = lambda host, event: False
    for id in ids:
        world.start(id, tags=TAGS)
    world.acquaint(ids)
    world.run(5.0)  # each tells of itself, and asks one other for all that it knows
    return world, ids


def rest(count: int, for_s: float = 5.0) -> Row:
    """Once all know each other: nothing happens; one changes its tags; one dies, in either way."""
    with without_collecting():
        with timed() as took:
            world, ids = settled(count)
        row: Row = {"nodes": count, "settling_cpu_s": took()}
        hosts = world.running()
        before = [(h.sent, h.sent_bytes, h.syncs) for h in hosts]
        with timed() as took:
            world.run(for_s)
        pairs = [*zip(hosts, before, strict=True)]
        row["idle_datagrams_s"] = sum(h.sent - b[0] for h, b in pairs) / for_s / count
        row["idle_bytes_s"] = sum(h.sent_bytes - b[1] for h, b in pairs) / for_s / count
        row["second_cpu_s"] = took() / for_s
        turns = 9 if count <= 100 else 5 if count <= 1000 else 1
        row["turns"] = turns = min(turns, count // 4)
        chosen = world.rng.sample(ids, 3 * turns)
        found: dict[str, list[Row]] = {"update": [], "kill": [], "unplug": []}
        for at in range(turns):
            for id, what in zip(chosen[3 * at : 3 * at + 3], found, strict=True):
                change, act = acts(world)[what]
                found[what].append(told(world, change, id, partial(act, id)))
        for what, rows in found.items():
            row |= {f"{what}_{key}": median(r[key] for r in rows) for key in rows[0]}
        row["unplug_all_s_max"] = max(r["all_s"] for r in found["unplug"])
        wrong = [
            id for host in world.running() for id in ids
            if world.hosts[id].running and id != host.id
            and (view := host.swim.member(id)) is not None and view.state is State.DEAD
        ] if count <= 1000 else []  # fmt: skip
        row["called_dead"] = len(wrong)
    return row


def acts(world: GossipWorld) -> dict[str, tuple[Change, Callable[[str], None]]]:
    tags = {**TAGS, "role": "voter"}
    return {
        "update": (Change.UPDATED, lambda id: world.update(id, tags=tags)),
        "kill": (Change.DIED, world.kill),
        "unplug": (Change.DIED, world.unplug),
    }


def told(world: GossipWorld, change: Change, of: str, act: Callable[[], None]) -> Row:
    """When the first, half and all others know; and what it cost each."""
    known: dict[str, float] = {}

    def heed(host: Host, event: Event) -> bool:
        if isinstance(event, MemberChanged) and event.change is change and event.member.id == of:
            known.setdefault(host.id, world.now)
        return False

    world.heeds = heed
    hosts = world.running()
    sent, began, others = sum(h.sent_bytes for h in hosts), world.now, len(hosts) - 1
    with timed() as took:
        act()
        world.run_until(lambda: len(known) >= others, KNOWN_S_MAX)
    world.heeds = lambda host, event: False
    times = sorted(at - began for at in known.values())
    spent = sum(h.sent_bytes for h in hosts) - sent
    world.run(3.0)  # until nobody speaks of it
    return {
        "first_s": times[0], "half_s": median(times), "all_s": times[-1],
        "bytes": spent / len(hosts), "cpu_s": took(),
    }  # fmt: skip


# One core by itself


def alone(count: int) -> Row:
    """What a sync of so many takes of a node's loop, and what knowing them takes of its memory."""
    tales = _tales(count, by=1)
    with without_collecting():
        tracemalloc.start()
        one = _swim(0, random.Random(1))
        _acquaint(one, tales)
        one.take()
        size_bytes = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        fresh = _swim(0, random.Random(1))
        steps = _acquaint(fresh, tales)
        asking = [_ms(lambda: one.sync_ask(2.0)) for _ in range(5)]
        body = one.sync_ask(2.0)
        other = _swim(1, random.Random(2))
        _acquaint(other, _tales(count, by=0))
        other.take()
        newcomer = _swim(count, random.Random(3)).sync_ask(0.0)
        same, to_new = [], []
        for turn in range(5):
            now = 2.0 + 9 * turn
            same.append(_ms(partial(other.sync_answer, now, name(0), body)))
            to_new.append(_ms(partial(other.sync_answer, now + 5, name(count), newcomer)))
    return {
        "nodes": count,
        "sync_bytes": len(body),
        "words_bytes": len(encode(_words(1))),
        "ask_ms": median(asking),
        "answer_same_ms": median(same),
        "answer_newcomer_ms": median(to_new),
        "merge_all_new_ms": sum(steps),
        "longest_step_ms": max(steps),
        "memory_bytes": size_bytes,
        "sync_every_s": LAN.sync_interval_s * (1 + (int(max(1.0, count / 32)) - 1).bit_length()),
    }


def _swim(number: int, rng: random.Random) -> Swim:
    return Swim(LAN, Self(id=name(number), boot=1, name=f"host{number:05}",
                          addresses=(_address(number),), tags=TAGS), 0.0, rng)  # fmt: skip


def _acquaint(swim: Swim, tales: dict[str, list[bytes]]) -> list[float]:
    """The parts of long syncs, each as the loop would run it, in milliseconds."""
    steps, now = [], 0.0
    for by, bodies in tales.items():
        for body in bodies:
            steps.append(_ms(partial(swim.sync_done, now, by, body)))
            end = now + 0.09
            while swim.next_deadline() <= end:
                now = max(now, swim.next_deadline())
                steps.append(_ms(partial(swim.tick, now)))
                swim.take()
            now = end
    return steps


def _tales(count: int, by: int) -> dict[str, list[bytes]]:
    """So many members, in as many syncs as it takes."""
    others = [n for n in range(count) if n != by]
    bodies = []
    for start in range(0, len(others), MEMBERS_A_SYNC):
        order = [by, *others[start : start + MEMBERS_A_SYNC]]
        raws = (msgspec.Raw(encode(_words(n))) for n in order)
        entries = tuple(Entry(State.ALIVE, raw, 100.0) for raw in raws)
        bodies.append(encode_sync(SyncAnswer(SPOKEN, entries)))
    return {name(by): bodies}


def _words(number: int) -> Alive:
    return Alive(name(number), 1 << 20, f"host{number:05}", (_address(number),), TAGS, number, 1, 1)


def _address(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:8473"


def _ms(act: Callable[[], object]) -> float:
    began = time.process_time()
    act()
    return (time.process_time() - began) * 1000


@contextmanager
def timed(
    clock: Callable[[], float] = time.process_time,
) -> Iterator[Callable[[], float]]:
    """Answers, behind the block, how many seconds of a processor it took."""
    began = clock()
    ended: list[float] = []
    yield lambda: ended[0] - began
    ended.append(clock())


@contextmanager
def without_collecting() -> Iterator[None]:
    """Looking for cycles among millions of members takes longer than the run."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
