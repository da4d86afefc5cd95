"""Attendance: which builders are there, what each is at, and what is taken back from whom.

In the leader's memory alone; a new leader begins anew, and grants everyone a full term of silence.
What is decided is in the log: who came and went, what began, what went back."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from swarmd.cluster.asks import BuilderBeat, BuilderNews, BuilderSign, ListSigns, WantWork
from swarmd.cluster.handle import Cluster
from swarmd.domain.actors import SYSTEM
from swarmd.domain.jobs import AttemptId, NodeId
from swarmd.domain.nodes import Node, NodeKind
from swarmd.state.build_commands import NotePresence, ReclaimBuilds, StartBuild
from swarmd.state.build_queries import BuilderView, FindBuilder, HeldBuild, ListBuilders
from swarmd.state.versions import BUILDS_SINCE

log = logging.getLogger(__name__)

OFFLINE_S = 60.0
GONE_S = 15.0
"""The same of a member that is not there by the mesh either."""
LEASE_S = 600.0
"""A package that was given out and not begun goes back after so long."""
SILENT_S = 900.0
"""The same of one that was begun, and that its builder speaks of no more."""
IDLE_S = 10.0
"""Who came for work and got none counts as idle for so long."""
LOOK_S = 5.0
PAUSE_S = 1.0
"""Between two looks, however many come for work: each goes through all builders."""
BUILDERS_MAX = 10_000
AT_ONCE = 100


@dataclass
class Sign:
    """What a builder last said of itself."""

    at: float
    task: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    version: str = ""
    spoken_of: dict[str, float] = field(default_factory=dict)
    """When it last named each package that it holds as what it is at."""


@dataclass(frozen=True)
class Reclaim:
    attempts: tuple[AttemptId, ...]
    reason: str
    lost: bool


class Attendance:
    def __init__(self, cluster: Cluster, term: int) -> None:
        self._cluster = cluster
        self._term = term
        self._began = trio.current_time()
        self._signs: dict[NodeId, Sign] = {}
        self._idle: dict[NodeId, float] = {}
        self._wanted = trio.Event()

    # What others ask

    async def beat(self, ask: BuilderBeat) -> BuilderNews:
        """NotFound is for the op: it knows the builder from the state."""
        now = trio.current_time()
        sign = self._signs.get(ask.node_id)
        if sign is None and len(self._signs) >= BUILDERS_MAX:
            del self._signs[min(self._signs, key=lambda each: self._signs[each].at)]
        if sign is None:
            sign = self._signs[ask.node_id] = Sign(now)
        sign.at, sign.task, sign.version = now, ask.task, ask.version
        sign.metrics = dict(ask.metrics)
        view = await self._cluster.read(FindBuilder(ask.node_id))
        if view is None:
            return BuilderNews(False, None)
        held = {each.package: each for each in view.held}
        sign.spoken_of = {name: at for name, at in sign.spoken_of.items() if name in held}
        if not view.builder.online:
            came = NotePresence((ask.node_id,), (), self._term)
            await self._cluster.propose(came, SYSTEM)
        if ask.task is None:
            return BuilderNews(view.builder.paused, None)
        if ask.task not in held:
            # It is at something that is not, or no longer, its own.
            return BuilderNews(view.builder.paused, ask.task)
        sign.spoken_of[ask.task] = now
        if held[ask.task].started_at is None:
            await self._cluster.propose(StartBuild(ask.node_id, ask.task), SYSTEM)
        return BuilderNews(view.builder.paused, None)

    async def list_signs(self, ask: ListSigns) -> list[BuilderSign]:
        now, now_ms = trio.current_time(), self._cluster.now_ms()
        return [
            BuilderSign(
                node_id, now_ms - int((now - sign.at) * 1000), sign.task, sign.metrics,
                sign.version,
            )
            for node_id, sign in self._signs.items()
        ]  # fmt: skip

    async def want_work(self, ask: WantWork) -> None:
        """It came for some, and there was none for it."""
        if ask.node_id in self._signs:
            self._idle[ask.node_id] = trio.current_time()
            self._wanted.set()

    # What follows from it

    async def watch(self) -> None:
        """Runs until it is cancelled, or until the term is over."""
        while True:
            with trio.move_on_after(LOOK_S):
                await self._wanted.wait()
            self._wanted = trio.Event()
            if self._cluster.cluster_version() >= BUILDS_SINCE:
                await self._look()
            await trio.sleep(PAUSE_S)

    async def _look(self) -> None:
        views = await self._cluster.read(ListBuilders())
        now, now_ms = trio.current_time(), self._cluster.now_ms()
        silent = self.silent(views, now)
        went = tuple(v.node.id for v in views if v.builder.online and v.node.id in silent)
        if went:
            await self._cluster.propose(NotePresence((), went[:AT_ONCE], self._term), SYSTEM)
        spoken_of = {node_id: sign.spoken_of for node_id, sign in self._signs.items()}
        age_s = now - self._began
        steps = overdue(views, silent, spoken_of, now, now_ms, age_s)
        idle = {node_id for node_id, at in self._idle.items() if now - at <= IDLE_S}
        steps += steal(views, idle, silent, {n: s.task for n, s in self._signs.items()}, now_ms)
        for step in steps:
            for start in range(0, len(step.attempts), AT_ONCE):
                some = step.attempts[start : start + AT_ONCE]
                command = ReclaimBuilds(some, step.reason, step.lost, self._term)
                taken = await self._cluster.propose(command, SYSTEM)
                log.info("packages taken back", extra={"count": taken, "reason": step.reason})
        self._idle = {n: at for n, at in self._idle.items() if n in idle}

    def silent(self, views: Iterable[BuilderView], now: float) -> set[NodeId]:
        """Whoever said nothing for too long. One not heard of yet counts from the term's start."""
        return {v.node.id for v in views if now - self._heard(v.node.id) > self._bears_s(v.node)}

    def _bears_s(self, node: Node) -> float:
        """A member of which the mesh knows that it is gone is not waited for as long."""
        gone = node.kind is NodeKind.MEMBER and not self._cluster.peer(node.id).alive
        return GONE_S if gone else OFFLINE_S

    def heard_s(self, node_id: NodeId) -> float:
        """How long ago it gave a sign of life; one not heard of yet did so at the term's start."""
        return trio.current_time() - self._heard(node_id)

    def _heard(self, node_id: NodeId) -> float:
        sign = self._signs.get(node_id)
        return self._began if sign is None else sign.at


def overdue(
    views: Sequence[BuilderView], silent: set[NodeId],
    spoken_of: Mapping[NodeId, Mapping[str, float]], now: float, now_ms: int, age_s: float,
) -> list[Reclaim]:  # fmt: skip
    """What goes back since its builder is gone, did not begin, or speaks of it no more. What
    members have begun goes by their leases. One that was not begun is not lost: its builder may be
    at another one for hours."""
    gone, late, forgotten = [], [], []
    for view in views:
        member = view.node.kind is NodeKind.MEMBER
        said = spoken_of.get(view.node.id, {})
        for held in view.held:
            if view.node.id in silent and not member:
                gone.append(held.attempt_id)
            elif held.started_at is None:
                if now_ms - held.assigned_at > LEASE_S * 1000:
                    late.append(held.attempt_id)
            elif member:
                continue
            elif _unspoken_s(held, said, now, now_ms, age_s) > SILENT_S:
                forgotten.append(held.attempt_id)
    found = (
        Reclaim(tuple(gone), "its builder is offline", True),
        Reclaim(tuple(late), "its builder did not begin it in time", False),
        Reclaim(tuple(forgotten), "its builder is silent about it", True),
    )
    return [each for each in found if each.attempts]


def _unspoken_s(
    held: HeldBuild, said: Mapping[str, float], now: float, now_ms: int, age_s: float
) -> float:
    """For how long nothing was heard of it; no longer than somebody listened."""
    if held.package in said:
        return now - said[held.package]
    assert held.started_at is not None
    return min(age_s, (now_ms - held.started_at) / 1000)


def steal(
    views: Sequence[BuilderView], idle: set[NodeId], silent: set[NodeId],
    tasks: Mapping[NodeId, str | None], now_ms: int,
) -> list[Reclaim]:  # fmt: skip
    """Of builders that hold several, the newest, at most half of it, and never what one is at: one
    package for each that is idle and might do it."""
    eager = sum(
        1 for view in views
        if view.node.id in idle - silent and not view.held and view.builder.gets_work(now_ms)
        and not view.sweeps
    )  # fmt: skip
    taken: list[AttemptId] = []
    for view in sorted(views, key=lambda view: -len(view.held)):
        if eager <= len(taken):
            break
        if len(view.held) < 2 or view.sweeps:
            continue
        free = [
            held for held in reversed(view.held)
            if held.started_at is None and held.package != tasks.get(view.node.id)
        ]  # fmt: skip
        some = free[: min(len(view.held) // 2, eager - len(taken))]
        taken += [held.attempt_id for held in some]
    return [Reclaim(tuple(taken), "another builder is idle", False)] if taken else []
