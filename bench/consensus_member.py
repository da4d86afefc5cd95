"""One member of the swarm that `bench.consensus` measures, and the clients that run in its process.

It is put together as a daemon does it, log, store, wires and control loops, without the HTTP
surfaces and without a runner. What to do comes as lines of JSON on stdin, each with one answer.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import trio

from bench.facts import percentile
from mesh.transport import Me, TransportSettings, open_transport
from mesh.wal_sqlite import open_log
from swarmd.cluster.opening import OpeningSettings, open_replica
from swarmd.cluster.replica import Replica
from swarmd.control.leadership import lead_when_elected
from swarmd.control.members import VoterSettings
from swarmd.control.upkeep import UpkeepSettings
from swarmd.daemon import SWITCH_INTERVAL_S
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Busy, SwarmError
from swarmd.domain.jobs import Fetch, JobId, JobSpec, NodeId
from swarmd.domain.nodes import Node
from swarmd.state.commands import Command, NewJob, PutSetting, SubmitJobs
from swarmd.state.machine import dump_hash
from swarmd.state.queries import GetSetting
from swarmd.state.store import StoreSettings, open_store

KEYS = 10_000
VALUE_BYTES = 128
CLIENT = Actor("client", "bench")
OVERTIME_S = 15.0

Action = Callable[[int], Awaitable[object]]


def main(name: str, folder: Path, join: tuple[str, ...], switch_ms: float | None) -> None:
    sys.setswitchinterval(SWITCH_INTERVAL_S if switch_ms is None else switch_ms / 1000)
    (folder / "copies").mkdir(parents=True)
    trio.run(_serve, name, folder, join)


async def _serve(name: str, folder: Path, join: tuple[str, ...]) -> None:
    async with _open(name, folder, join) as replica, trio.open_nursery() as nursery:
        nursery.start_soon(lead_when_elected, replica, UpkeepSettings(), VoterSettings())
        await replica.introduced.wait()
        gc.collect()
        gc.freeze()  # as the daemon does
        member = _Member(replica, folder)
        _tell({"mesh": replica.node.mesh[0], "pid": os.getpid()})
        async for line in _lines():
            order = json.loads(line)
            _tell(await member.do(order.pop("do"), order))
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open(name: str, folder: Path, join: tuple[str, ...]) -> AsyncIterator[Replica]:
    rng = random.Random(os.urandom(16))
    async with (
        open_log(folder / "raft.db", create=True) as raft_log,
        open_store(folder / "state.db", StoreSettings()) as store,
        open_transport(TransportSettings(), Me(name, raft_log.boot), rng=rng) as wires,
    ):
        async with open_replica(
            Node(NodeId(name), name, mesh=tuple(wires.addresses)),
            raft_log, store, wires, folder / "copies", OpeningSettings(), join=join, rng=rng,
            now_ms=lambda: time.time_ns() // 1_000_000,
            new_id=partial(next, (f"{name}-{n}" for n in count())),
        ) as replica:  # fmt: skip
            yield replica


class _Member:
    def __init__(self, replica: Replica, folder: Path) -> None:
        self._replica = replica
        self._folder = folder
        self._writes = count()
        self._boot = os.urandom(4).hex()
        self._actions: dict[str, Action] = {
            "put": self._put,
            "job": partial(self._submit, 1),
            "100 jobs": partial(self._submit, 100),
            "read": self._read,
        }

    async def do(self, what: str, order: dict[str, Any]) -> dict[str, Any]:
        if what == "standing":
            view, leads = self._replica.log_view(), self._replica.leadership().ready
            return {"voters": len(view.voters), "applied": view.applied, "leads": leads,
                    "last": view.last}  # fmt: skip
        if what == "applied":
            await self._replica.wait_applied(order["index"])
            return {}
        if what == "fill":
            return await self._fill()
        if what == "hash":
            # From here on nobody writes: the file stands still.
            path = self._folder / "state.db"
            return {"hash": await trio.to_thread.run_sync(_hash_of, path)}
        return await self._drive(self._actions[what], order["clients"], order["seconds"])

    async def _fill(self) -> dict[str, Any]:
        """Every key is there once, so that all that is measured are changes."""
        keys = iter(range(KEYS))

        async def put() -> None:
            for key in keys:
                await self._replica.propose(self._change(key), CLIENT)

        async with trio.open_nursery() as nursery:
            for _ in range(256):
                nursery.start_soon(put)
        return {}

    async def _drive(self, action: Action, clients: int, seconds: float) -> dict[str, Any]:
        """Each client asks again as soon as it has its answer, but waits after a Busy as it was
        told to."""
        took: list[float] = []
        busy = 0
        errors: dict[str, int] = {}
        start = time.perf_counter()
        until = start + seconds

        async def ask(client: int) -> None:
            nonlocal busy
            began = time.perf_counter()
            while began < until:
                try:
                    await action(client)
                except Busy as refusal:
                    busy += 1
                    await trio.sleep(refusal.retry_after_s or 0.1)
                    began = time.perf_counter()
                    continue
                except SwarmError as refusal:
                    errors[refusal.code] = errors.get(refusal.code, 0) + 1
                now = time.perf_counter()
                took.append(now - began)
                began = now

        with trio.fail_after(seconds + OVERTIME_S):
            async with trio.open_nursery() as nursery:
                for client in range(clients):
                    nursery.start_soon(ask, client)
        wall_s = time.perf_counter() - start
        return {
            "done": len(took) - sum(errors.values()), "wall_s": wall_s, "busy": busy,
            "errors": errors, "p50_ms": percentile(took, 0.5) * 1000,
            "p99_ms": percentile(took, 0.99) * 1000, "max_ms": max(took) * 1000,
            "last": self._replica.log_view().last,
        }  # fmt: skip

    def _change(self, key: int) -> Command[bytes]:
        value = b"%0*d" % (VALUE_BYTES, next(self._writes))
        return PutSetting(f"bench/{key:05}", value)

    async def _put(self, client: int) -> None:
        await self._replica.propose(self._change(next(self._writes) * 7919 % KEYS), CLIENT)

    async def _submit(self, jobs: int, client: int) -> None:
        ids = (JobId(f"{self._boot}-{next(self._writes):020}") for _ in range(jobs))
        command = SubmitJobs(tuple(NewJob(job_id, _SPEC) for job_id in ids))
        await self._replica.propose(command, CLIENT)

    async def _read(self, client: int) -> None:
        found = await self._replica.read(GetSetting(f"bench/{next(self._writes) * 7919 % KEYS:05}"))
        assert found is not None


_SPEC = JobSpec("bench", Fetch("blob:sha256:" + "0" * 64, "0" * 64))


def _hash_of(path: Path) -> str:
    with closing(sqlite3.connect(path)) as conn:
        return dump_hash(conn)


async def _lines() -> AsyncIterator[bytes]:
    waiting = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
        async for data in stdin:
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                yield line


def _tell(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
