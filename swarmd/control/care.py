"""Care: the leader probes builders, and heals those that fail, one at a time.

How each was when it was last probed is in this memory alone; a new leader probes anew. How far
somebody came with a builder is in the log, and is gone on with from there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import trio
from msgspec.structs import replace

from swarmd.cluster.asks import ListProbes, ProbeNow, Probes, ProbeSign
from swarmd.cluster.handle import Cluster
from swarmd.control.reaching import Way, Ways
from swarmd.domain.actors import SYSTEM
from swarmd.domain.care import (
    ACT_MS_MAX,
    FAILING_MS_MIN,
    FAILURES_MIN,
    HEALTHY,
    HEARD_MS,
    PROBE_EVERY_S,
    Care,
    CareAction,
    may_reboot,
    next_action,
)
from swarmd.domain.errors import Busy, Invalid, SwarmError, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import NodeKind
from swarmd.domain.probes import Probed, ProbeStatus
from swarmd.state.care_commands import BeginCare, EaseCare, EndCare
from swarmd.state.care_queries import Cared, ListCare
from swarmd.state.versions import BUILDS_SINCE

log = logging.getLogger(__name__)

PROBE_S_MAX = 15.0
ACT_S_MAX = 60.0
LOOK_S = 5.0
FRESH_MS = 2000
APART_S = 0.02
AT_ONCE = 128
EASED_AT_ONCE = 100
NODES_MAX = 1000
"""Of one ask."""
RESUME_MS_MAX = 3_600_000
"""A member at the foot of the ladder is asked to take up work for so long after its last action."""


class Patient(msgspec.Struct, frozen=True):
    """A builder as it is planned for."""

    cared: Cared
    way: bool
    """It can be reached somehow."""
    status: ProbeStatus | None = None
    """Of the last probe."""
    failures: int = 0
    failing_since: int | None = None
    probed_at: int | None = None

    @property
    def well(self) -> bool:
        """It was, since the last that was done for it."""
        return self.status in HEALTHY and self._since

    @property
    def _since(self) -> bool:
        care = self.cared.care
        return (
            self.probed_at is not None
            and not care.under_way
            and self.probed_at > (care.ended_at or 0)
        )

    @property
    def ails(self) -> bool:
        """It does, since the last that was done for it."""
        return self.failures >= FAILURES_MIN and self.status not in HEALTHY and self._since


class Step(msgspec.Struct, frozen=True):
    node_id: NodeId
    action: CareAction
    rises: bool
    failing_since: int | None
    reason: str


class Plan(msgspec.Struct, frozen=True):
    eased: tuple[NodeId, ...] = ()
    """They are well."""
    forgotten: tuple[NodeId, ...] = ()
    """Whoever acted on them never told how it ended."""
    step: Step | None = None
    resumed: tuple[NodeId, ...] = ()
    """They ended their work for a reboot, and are to take up work again."""


def plan(patients: Sequence[Patient], now_ms: int) -> Plan:
    """What is to be done now: never a step while another is under way, or is yet to show what came
    of it; and the builder for which something was done the longest ago first."""
    eased = tuple(p.cared.care.node_id for p in patients if p.well and _above_foot(p.cared.care))
    forgotten = tuple(
        p.cared.care.node_id for p in patients
        if p.cared.care.under_way and now_ms > (p.cared.care.begun_at or 0) + ACT_MS_MAX
    )  # fmt: skip
    resumed = tuple(p.cared.care.node_id for p in patients if _resumes(p, now_ms))
    if any(p.cared.care.pauses(now_ms) and not p.well for p in patients):
        return Plan(eased, forgotten, resumed=resumed)
    steps = [
        (p.cared.care.begun_at or 0, p.cared.node.name, step)
        for p in patients
        if (step := _grounded(p, now_ms) or _risen(p, now_ms)) is not None
    ]
    step = min(steps, key=lambda each: each[:2])[2] if steps else None
    return Plan(eased, forgotten, step, resumed)


def _above_foot(care: Care) -> bool:
    return bool(care.level or care.attempts or care.failing_since)


def _resumes(patient: Patient, now_ms: int) -> bool:
    """A reboot has failed, or has come, or should have come by now; people may have been called
    since. Who stands at the foot may have been put there before, and is not asked for ever: each
    new leader asks, and a node that leaves the swarm ends its work too."""
    care = patient.cared.care
    if patient.cared.node.kind is not NodeKind.MEMBER or care.ended_at is None:
        return False
    if care.action not in (CareAction.REBOOT, CareAction.ALERT):
        return False
    lately = _above_foot(care) or now_ms < care.ended_at + RESUME_MS_MAX
    return lately and (patient.well or not care.pauses(now_ms))


def _grounded(patient: Patient, now_ms: int) -> Step | None:
    """A builder that was grounded: its service is restarted, and when that did not help, its host.
    What may not be rebooted has its service restarted again."""
    builder, care = patient.cared.builder, patient.cared.care
    until = builder.grounded_until
    if not builder.groundings or until is None or until <= now_ms or until == care.grounded_until:
        return None
    if not patient.way:
        return None
    again = builder.groundings > 1 and may_reboot(builder.sort, builder.auto_reboot)
    action = CareAction.REBOOT if again else CareAction.RESTART
    return Step(builder.node_id, action, False, None, "it is grounded")


def _risen(patient: Patient, now_ms: int) -> Step | None:
    if not patient.way or not patient.ails or patient.status is None:
        return None
    builder, care = patient.cared.builder, patient.cared.care
    since = [at for at in (care.failing_since, patient.failing_since) if at is not None]
    if not since or now_ms - min(since) < FAILING_MS_MIN:
        return None
    action = next_action(care, builder.sort, builder.auto_reboot)
    if action is None:
        return None
    for_s = (now_ms - min(since)) // 1000
    reason = f"{patient.status.value} for {for_s} s"
    return Step(builder.node_id, action, True, min(since), reason)


def follow(
    streak: tuple[int, int | None], status: ProbeStatus, at: int, heard: bool
) -> tuple[int, int | None]:
    """Failures in a row and since when, after one probe more. Who is heard of is there, whatever a
    probe could not reach: that ends a row as well, and says nothing of how it is."""
    if status in HEALTHY or (status is ProbeStatus.UNREACHABLE and heard):
        return 0, None
    failures, since = streak
    return failures + 1, at if since is None else since


@dataclass
class _Seen:
    sign: ProbeSign
    failing_since: int | None = None


class Caretaker:
    """What the leader knows of how builders are, and does about it."""

    def __init__(
        self, cluster: Cluster, term: int, ways: Ways, heard_s: Callable[[NodeId], float]
    ) -> None:
        """`heard_s` tells how long ago a builder gave a sign of life."""
        self._cluster = cluster
        self._term = term
        self._ways = ways
        self._heard_s = heard_s
        self._seen: dict[NodeId, _Seen] = {}
        self._known: dict[NodeId, tuple[Cared, Way]] = {}
        self._probing: dict[NodeId, trio.Event] = {}
        self._limit = trio.CapacityLimiter(AT_ONCE)
        self._wanted: set[NodeId] = set()
        self._woken = trio.Event()
        self._round_at: int | None = None
        self._untold: EndCare | None = None
        self._resumed: dict[NodeId, int | None] = {}
        """After which action, by when it began, each was asked to take up work, and answered."""

    # What others ask

    async def list_probes(self, ask: ListProbes) -> Probes:
        await self._look()
        return self._view()

    async def probe_now(self, ask: ProbeNow) -> Probes:
        if len(ask.node_ids) > NODES_MAX:
            raise Invalid(f"at most {NODES_MAX} builders can be probed by one question")
        await self._look()
        wanted = [n for n in ask.node_ids if n in self._known and self._known[n][1].name]
        if ask.waits:
            async with trio.open_nursery() as nursery:
                for node_id in wanted:
                    nursery.start_soon(self._probe, node_id)
        else:
            # Anybody may ask for this: who was probed just now is not probed again.
            since = self._cluster.now_ms() - FRESH_MS
            self._wanted.update(n for n in wanted if self._asked_at(n) < since)
            self._woken.set()
        return self._view(frozenset(wanted))

    def _view(self, only: frozenset[NodeId] | None = None) -> Probes:
        signs = tuple(
            self._sign(node_id) for node_id in self._known if only is None or node_id in only
        )
        return Probes(self._ways.enabled, self._round_at, signs)

    def _asked_at(self, node_id: NodeId) -> int:
        seen = self._seen.get(node_id)
        return 0 if seen is None else seen.sign.at or 0

    def _sign(self, node_id: NodeId) -> ProbeSign:
        _, way = self._known[node_id]
        seen = self._seen.get(node_id)
        if seen is None:
            return ProbeSign(node_id, way.name, detail=way.why or "it was not its turn yet")
        return replace(seen.sign, way=way.name) if way.name else seen.sign

    # What it does by itself

    async def probe(self) -> None:
        """Probe all, again and again; runs until it is cancelled, or until the term is over."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._probe_wanted)
            while True:
                began = trio.current_time()
                try:
                    await self._round()
                except SwarmError as refusal:
                    log.debug("no builder is probed", extra={"reason": refusal.message})
                await trio.sleep_until(max(began + PROBE_EVERY_S, trio.current_time()))

    async def _round(self) -> None:
        if self._ways.enabled and self._cluster.cluster_version() >= BUILDS_SINCE:
            await self._look()
            self._round_at = self._cluster.now_ms()
            await self._probe_all(n for n, (_, way) in self._known.items() if way.name)

    async def _probe_wanted(self) -> None:
        while True:
            await self._woken.wait()
            self._woken, wanted = trio.Event(), self._wanted
            self._wanted = set()
            await self._probe_all(sorted(wanted))

    async def _probe_all(self, node_ids: Iterable[NodeId]) -> None:
        """Not all in one instant: they may share a host, and each is to be timed by itself."""
        async with trio.open_nursery() as nursery:
            for node_id in [*node_ids]:
                nursery.start_soon(self._probe, node_id)
                await trio.sleep(APART_S)

    async def heal(self) -> None:
        """Runs until it is cancelled, or until the term is over."""
        while True:
            await trio.sleep(LOOK_S)
            if self._ways.enabled and self._cluster.cluster_version() >= BUILDS_SINCE:
                await self._tell()
                await self._look()
                await self._do(plan(self._patients(), self._cluster.now_ms()))

    async def _look(self) -> None:
        """Which builders there are, and how each is reached."""
        if self._cluster.cluster_version() < BUILDS_SINCE:
            raise Unavailable("the state is not of a version that has builders")
        all_cared = await self._cluster.read(ListCare())
        ways = await self._ways.find(all_cared)
        self._known = {each.node.id: (each, ways[each.node.id]) for each in all_cared}
        self._seen = {n: seen for n, seen in self._seen.items() if n in self._known}
        self._resumed = {n: at for n, at in self._resumed.items() if n in self._known}

    def _patients(self) -> list[Patient]:
        patients = []
        for node_id, (cared, way) in self._known.items():
            seen = self._seen.get(node_id)
            if seen is None:
                patients.append(Patient(cared, bool(way.name)))
                continue
            sign = seen.sign
            patients.append(Patient(
                cared, bool(way.name), sign.status, sign.failures, seen.failing_since, sign.at
            ))  # fmt: skip
        return patients

    # Probes

    async def _probe(self, node_id: NodeId) -> None:
        """Those who want the same at the same time wait for the one that is under way."""
        if node_id in self._probing:
            await self._probing[node_id].wait()
            return
        over = self._probing[node_id] = trio.Event()
        try:
            async with self._limit:
                known = self._known.get(node_id)
                if known is not None and known[1].name:
                    await self._probe_one(*known)
        finally:
            del self._probing[node_id]
            over.set()

    async def _probe_one(self, cared: Cared, way: Way) -> None:
        asked_at, began = self._cluster.now_ms(), trio.current_time()
        found: Probed | None = None
        detail = ""
        with trio.move_on_after(PROBE_S_MAX) as scope:
            try:
                found = await self._ways.probe(cared, way)
                status = found.status
            except Busy:
                return  # this node's own lack says nothing of the builder
            except Unavailable as refusal:
                status, detail = ProbeStatus.UNREACHABLE, refusal.message
            except SwarmError as refusal:
                status, detail = ProbeStatus.ERROR, refusal.message
            except Exception as error:  # of one builder: the others are probed all the same
                log.exception("a probe failed", extra={"node_id": cared.node.id})
                status, detail = ProbeStatus.ERROR, f"the probe failed: {type(error).__name__}"
        if scope.cancelled_caught:
            status, detail = ProbeStatus.TIMEOUT, f"no answer within {PROBE_S_MAX:g} s"
        latency_ms = round((trio.current_time() - began) * 1000, 3)
        self._note(cared.node.id, way, asked_at, status, found, latency_ms, detail)

    def _note(
        self, node_id: NodeId, way: Way, asked_at: int, status: ProbeStatus, found: Probed | None,
        latency_ms: float, detail: str,
    ) -> None:  # fmt: skip
        before = self._seen.get(node_id)
        sign = ProbeSign(node_id, way.name) if before is None else before.sign
        heard = self._heard_s(node_id) * 1000 < HEARD_MS
        streak = (0, None) if before is None else (sign.failures, before.failing_since)
        failures, failing_since = follow(streak, status, asked_at, heard)
        if status not in HEALTHY and not failures:
            detail = f"a warning only, since it is heard of: {detail}"
        if status is not sign.status:
            facts = {"node_id": node_id, "status": status.value, "detail": detail}
            log.info("a builder is otherwise than before", extra=facts)
        self._seen[node_id] = _Seen(replace(
            sign, way=way.name, at=asked_at, status=status, failures=failures, detail=detail[:1000],
            answered_at=sign.answered_at if found is None else self._cluster.now_ms(),
            latency_ms=None if found is None else latency_ms,
            found=sign.found if found is None else found,
        ), failing_since)  # fmt: skip

    # Steps

    async def _do(self, todo: Plan) -> None:
        for node_id in todo.forgotten:
            detail = "whoever did it went away meanwhile"
            await self._cluster.propose(EndCare(node_id, False, detail, self._term), SYSTEM)
        await self._resume(todo.resumed)
        for start in range(0, len(todo.eased), EASED_AT_ONCE):
            some = todo.eased[start : start + EASED_AT_ONCE]
            await self._cluster.propose(EaseCare(some, self._term), SYSTEM)
        if todo.step is not None and todo.step.node_id in self._known:
            await self._take(todo.step, *self._known[todo.step.node_id])

    async def _resume(self, node_ids: Sequence[NodeId]) -> None:
        """Each once, until it answers."""
        limit = trio.CapacityLimiter(AT_ONCE)

        async def resume(cared: Cared) -> None:
            async with limit:
                if await self._ways.resume(cared.node.id):
                    self._resumed[cared.node.id] = cared.care.begun_at

        # Who is not known any more was removed meanwhile.
        all_cared = [self._known[n][0] for n in node_ids if n in self._known]
        async with trio.open_nursery() as nursery:
            for cared in all_cared:
                if self._resumed.get(cared.node.id) != cared.care.begun_at:
                    nursery.start_soon(resume, cared)

    async def _take(self, step: Step, cared: Cared, way: Way) -> None:
        begin = BeginCare(
            step.node_id, step.action, step.rises, step.failing_since, step.reason, self._term
        )
        await self._cluster.propose(begin, SYSTEM)
        facts = {"node_id": step.node_id, "action": step.action.value, "reason": step.reason}
        log.warning("a builder is cared for", extra=facts)
        ok, detail = False, f"it was not over within {ACT_S_MAX:g} s"
        with trio.move_on_after(ACT_S_MAX):
            try:
                if step.action is CareAction.ALERT:
                    log.error("a builder needs somebody to look after it", extra=facts)
                else:
                    await self._ways.act(cared, way, step.action)
                ok, detail = True, step.reason
            except SwarmError as refusal:
                detail = refusal.message
            except Exception as error:  # of one builder: the others are healed all the same
                log.exception("a builder could not be cared for", extra=facts)
                detail = f"it failed: {type(error).__name__}"
        log.warning("a builder was cared for", extra={**facts, "ok": ok, "detail": detail})
        self._untold = EndCare(step.node_id, ok, detail, self._term)
        await self._tell()

    async def _tell(self) -> None:
        """How the last action ended, until the log has it."""
        if self._untold is not None:
            await self._cluster.propose(self._untold, SYSTEM)
            self._untold = None
