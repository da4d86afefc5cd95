"""Whole nodes in one process, and how much faster than real time they live.

    python -m bench.bottle [--nodes 5] [--remotes 0] [--clients 3] [--seconds 120] [--seed 1]
                           [--faults] [--profile]

Everything is on: consensus, gossip with its seals, trust, autopilot, leases, agents, and clients
that submit jobs through any node and wait for them. The clock begins when all have met. With
--faults a daemon is killed or stopped, or a host cut off, every ten seconds. --profile says by
function where the time goes, and makes it about twice as long.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import trio

from bench.facts import machine
from swarmd.cluster.opening import OpeningSettings
from swarmd.cluster.replica import ReplicaSettings
from swarmd.sim.bottle import Bottle
from swarmd.sim.clients import Clients
from swarmd.sim.world import run_in

SETTLE_S = 5.0
FAULT_EVERY_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description="how fast whole nodes live in the bottle")
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--remotes", type=int, default=0, help="so many of them without a replica")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120.0, help="of simulated time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    print(machine())
    replicas = ReplicaSettings(replicas_max=given.nodes - given.remotes)
    with tempfile.TemporaryDirectory(prefix="bench-bottle-") as folder:
        run = Run(given)
        settings = OpeningSettings(replica=replicas)
        run_in(Bottle, given.seed, Path(folder), run.body, settings)
    print(run.report())


class Run:
    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._profile = cProfile.Profile() if given.profile else None
        self._words: list[str] = []

    async def body(self, bottle: Bottle) -> None:
        given = self._given
        names = [f"n{number}" for number in range(given.nodes)]
        began = time.perf_counter()
        await bottle.populate(*names)
        await trio.sleep(SETTLE_S)
        met_s = time.perf_counter() - began
        self._words.append(
            f"{given.nodes} nodes, {given.remotes} without a replica, met in {met_s:.2f} s"
            f" ({trio.current_time():.1f} simulated)"
        )
        await self._measure(bottle)

    async def _measure(self, bottle: Bottle) -> None:
        given, network = self._given, bottle.network
        clients = Clients(bottle, given.seed)
        before, kinds = network.delivered, Counter(network.kinds)
        if self._profile is not None:
            self._profile.enable()
        began, began_cpu, began_at = time.perf_counter(), time.process_time(), trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clients.run, given.clients)
            if given.faults:
                nursery.start_soon(self._do_harm, bottle)
            await trio.sleep(given.seconds)
            clients.over.set()
            took_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
            simulated_s = trio.current_time() - began_at
            if self._profile is not None:
                self._profile.disable()
            nursery.cancel_scope.cancel()
        by_kind = Counter[str]()
        for (kind, _), count in (network.kinds - kinds).items():
            by_kind[kind] += count
        ended = sum(wanted.seen is not None for wanted in clients.wanted.values())
        self._words += [
            f"{simulated_s:.0f} simulated seconds in {took_s:.2f} s ({cpu_s:.2f} s of CPU):"
            f" {simulated_s / took_s:.1f} x real time, {simulated_s / cpu_s:.1f} x by CPU",
            f"{len(clients.wanted)} jobs, {ended} of them seen to end; refused:"
            f" {dict(clients.refusals)}",
            f"{(network.delivered - before) / simulated_s:.0f} deliveries a simulated second: "
            + ", ".join(f"{k} {n / simulated_s:.0f}" for k, n in by_kind.most_common(8)),
        ]

    async def _do_harm(self, bottle: Bottle) -> None:
        rng = random.Random(self._given.seed)
        while True:
            await trio.sleep(FAULT_EVERY_S)
            victim = rng.choice(bottle.there())
            match rng.randrange(3):
                case 0:
                    await bottle.crash(victim)
                    await trio.sleep(2)
                    await bottle.start(victim)
                case 1:
                    bottle.network.isolate(victim)
                    await trio.sleep(4)
                    bottle.network.heal()
                case _:
                    await bottle.freeze(victim, 3)

    def report(self) -> str:
        if self._profile is not None:
            pstats.Stats(self._profile).sort_stats("tottime").print_stats(45)
        return "\n".join(self._words)


if __name__ == "__main__":
    main()
