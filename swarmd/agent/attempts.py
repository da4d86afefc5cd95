"""Attempts that this node holds: taken up from the feed, run by the runner, reported to the swarm.

An attempt is started once, and only by a lease. Its end is acknowledged to the runner only when
the swarm has it, so that neither a crash of this daemon nor one of the swarm's loses or repeats it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio
from msgspec.structs import replace

from swarmd.agent.binaries import Binaries
from swarmd.agent.building import Builds
from swarmd.agent.directories import Directories
from swarmd.agent.launch import JOB_PATH, Account, find_program, order_of, status_of
from swarmd.agent.leases import NodeLease
from swarmd.agent.logs import AttemptLogs
from swarmd.agent.reports import REPORTS_MAX, Report, Reports
from swarmd.agent.results import result_of
from swarmd.agent.runners import Runner, Shelves
from swarmd.cluster.asks import EndWork
from swarmd.cluster.feed import FellBehind, Wanted
from swarmd.cluster.handle import Cluster, local_reads
from swarmd.cluster.patience import AGAIN_S, LEADERLESS_S, patiently
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Invalid, SwarmError, Unavailable
from swarmd.domain.events import AttemptStopped, Event, JobAssigned
from swarmd.domain.jobs import AttemptId, AttemptStatus, Fetch, JobKind, Result
from swarmd.drivers.frames import AttemptOrder, Ended, Started
from swarmd.state.queries import Duty, ListDuties

log = logging.getLogger(__name__)

BUILDER = "builder"
"""What a package has while it is built, and only one may have at a time."""
NOT_A_BUILDER = "this node builds no packages"
TOLD_TO_STOP = "its builder was told to stop"


@dataclass(frozen=True)
class AttemptsSettings:
    slots: int
    account: Account
    grace_s: float
    log_bytes_max: int
    logs_total_bytes_max: int


@dataclass(slots=True)
class _Held:
    """An attempt of ours, from its assignment until the swarm has its end."""

    duty: Duty
    started_at: float | None = None
    """In Trio's time."""
    program: Path | None = None
    """A cached binary, pinned."""
    running: bool = False
    ordered: bool = False
    """The runner answered that it has the order."""
    stopping: bool = False
    """Taken back: its end is for the runner alone."""
    ended: bool = False
    """Of a package: what it came to is being looked at."""

    @property
    def builds(self) -> bool:
        return self.duty.spec.kind is JobKind.PACKAGE


def _devices(held: _Held) -> tuple[str, ...]:
    return (BUILDER,) if held.builds else held.duty.attempt.devices


class Attempts:
    def __init__(self, cluster: Cluster, runner: Runner, binaries: Binaries,
                 root: Path, settings: AttemptsSettings, links: bool,
                 directories: Shelves | None = None, builds: Builds | None = None
                 ) -> None:  # fmt: skip
        self._cluster = cluster
        self._runner = runner
        self._binaries = binaries
        self._settings = settings
        self._links = links
        """The account cannot pass through the data directory: programs are linked beside jobs."""
        self._builds = builds
        """Of a node that builds packages."""
        self._built: deque[tuple[_Held, Ended]] = deque()
        self._unneeded: list[AttemptId] = []
        """Packages that nothing is needed of any more."""
        self._build_ended = trio.Event()
        self._actor = Actor(cluster.node.name, "agent")
        self._held: dict[AttemptId, _Held] = {}
        self._waiting: deque[AttemptId] = deque()
        self._strange: dict[AttemptId, Ended] = {}
        """Ends of what is not known to be ours: told before, or our state is not the newest yet.
        The runner keeps no more of them than it may."""
        self._strange_come = trio.Event()
        self._reports = Reports(cluster, self._actor, self._is_crowded, self._end_heard)
        self._wanted = trio.Event()
        self._let_go_of = trio.Event()
        self._closing = False
        self._draining = False
        """It closes, and keeps no package for when it is back."""
        self._runner_pid = 0
        self._lease = NodeLease(cluster, runner, self)
        self.logs = AttemptLogs(root, self._is_running)
        self.directories = directories or Directories(root, self._forget_logs)

    async def drain(self) -> None:
        """End what runs here and, where anybody leads, wait until the swarm knows; start nothing
        more."""
        self._closing = self._draining = True
        self.give_back_packages(TOLD_TO_STOP)
        await self._runner.stop(None, grace_s=self._settings.grace_s)
        while self._held.keys() - set(self._waiting):
            if not self.busy and self._cluster.leadership().leader is None:
                return  # nobody can be told: the runner keeps the ends for the next start
            self._let_go_of = trio.Event()
            with trio.move_on_after(LEADERLESS_S):
                await self._let_go_of.wait()

    async def end_work(self, ask: EndWork) -> None:
        """This node leaves the swarm, or stays after all."""
        if not ask.resume:
            await self.drain()
            return
        self._closing = self._draining = False
        self._wanted.set()

    def closing(self) -> bool:
        """It is to start nothing more."""
        return self._closing

    # What its builder wants to know.

    @property
    def takes_packages(self) -> bool:
        return self._lease.there and not self._closing

    @property
    def package(self) -> str | None:
        """What is being built here."""
        for held in self._held.values():
            if held.builds and held.started_at is not None and not held.stopping:
                return held.duty.spec.type
        return None

    def begin_packages(self, may: bool) -> None:
        """Whether those that it holds, and has not begun, may begin."""
        if self._builds is not None and self._builds.begins != may:
            self._builds.begins = may
            self._wanted.set()

    def give_back_packages(self, why: str) -> None:
        """Those that have not begun: nobody else would get them while this node may come back."""
        for attempt_id in [i for i in self._waiting if self._held[i].builds]:
            self._waiting.remove(attempt_id)
            self._report_end(attempt_id, AttemptStatus.REVOKED, Result(error=why))

    async def stop_renewing(self) -> None:
        """Before the daemon stops and leaves its jobs to the runner: the swarm waits for it."""
        await self._lease.stop()
        if not self._closing:
            self._closing = True
            await self._lease.hold()

    # What the lease is about.

    async def keep_lease(self) -> None:
        await self._lease.keep()

    def leased(self) -> Mapping[float, Sequence[AttemptId]]:
        by_more: dict[float, list[AttemptId]] = {}
        for attempt_id, held in self._held.items():
            if held.running:
                more_s = held.duty.spec.disconnect_s or 0.0
                by_more.setdefault(more_s, []).append(attempt_id)
        return by_more

    def begun(self) -> bool:
        return len(self._held) > len(self._waiting)

    def ordering(self) -> bool:
        return any(held.running and not held.ordered for held in self._held.values())

    async def look_anew(self) -> None:
        before = list(self._held)
        duties = await self._cluster.read(ListDuties(self._cluster.node.id))
        # What came meanwhile was not to be in there; what is new in there comes by the feed.
        keep = {duty.attempt.id for duty in duties} | self._reports.untold()
        for attempt_id in before:
            if attempt_id not in keep:
                await self._stop(attempt_id)

    @property
    def busy(self) -> int:
        return sum(held.running for held in self._held.values())

    def _is_running(self, attempt_id: AttemptId) -> bool:
        return attempt_id in self._held

    # What the swarm wants of us.

    async def follow(self) -> None:
        wants = Wanted.of(JobAssigned, AttemptStopped, about=self._cluster.node.id)
        while True:
            try:
                async with self._cluster.watch(wants=wants) as events:
                    await self._take_up(None)
                    async for event in events:
                        await self._heed([event, *events.take_waiting()])
            except FellBehind:
                continue  # what was missed is in the duties that are read anew
            except Unavailable:
                await trio.sleep(AGAIN_S)  # no replica is in reach

    async def _heed(self, events: list[Event]) -> None:
        given: list[AttemptId] = []
        for event in events:
            body = event.body
            if isinstance(body, JobAssigned):
                if body.attempt_id not in self._held:
                    given.append(body.attempt_id)
            elif isinstance(body, AttemptStopped):
                await self._take_up(given)
                given = []
                await self._stop(body.attempt_id)
        await self._take_up(given)

    async def _take_up(self, only: list[AttemptId] | None) -> None:
        """Hold what the swarm says is ours. With None, all of it, and let go of the rest."""
        if only == []:
            return
        wanted = None if only is None else tuple(only)
        duties = await self._cluster.read(ListDuties(self._cluster.node.id, wanted))
        for duty in duties:
            if duty.attempt.id not in self._held:
                self._held[duty.attempt.id] = _Held(duty)
                self._waiting.append(duty.attempt.id)
        if only is None:
            ours = {duty.attempt.id for duty in duties}
            for attempt_id in [i for i in self._held if i not in ours | self._reports.untold()]:
                await self._stop(attempt_id)
        self._wanted.set()

    async def _stop(self, attempt_id: AttemptId) -> None:
        held = self._held.get(attempt_id)
        if held is None or held.stopping:
            return
        if attempt_id in self._waiting:
            self._waiting.remove(attempt_id)
            self._let_go(attempt_id)
            return
        held.stopping = True
        if held.running:
            await self._runner.stop([attempt_id], grace_s=self._settings.grace_s)

    # What the runner had when this daemon came back.

    async def adopt(self) -> None:
        """Take back what the runner still runs, or has ended without anyone hearing of it."""
        asked = ListDuties(self._cluster.node.id)
        duties = await patiently(lambda: self._cluster.read(asked))
        by_id = {duty.attempt.id: duty for duty in duties}
        self._runner_pid = await self._runner.replaced(0)
        standings = {AttemptId(s.id): s for s in await self._runner.list()}
        now = trio.current_time()
        if self._builds is not None:
            await self._builds.keep_only(by_id)
        for attempt_id, duty in by_id.items():
            held = self._held[attempt_id] = _Held(duty)
            if attempt_id in standings:
                held.running = held.ordered = True
                if standings[attempt_id].started_boottime_ns is not None:
                    held.started_at = now - standings[attempt_id].age_s
                self._repin(held)
            elif duty.attempt.status is AttemptStatus.RUNNING:
                gone = Result(error="the runner on the node went away with it")
                self._report_end(attempt_id, AttemptStatus.LOST, gone)
            else:
                self._waiting.append(attempt_id)
        # The ends of others that came to theirs were told before, and are acknowledged when heard.
        stale = [i for i, s in standings.items() if i not in by_id and s.status != "ended"]
        for attempt_id in stale:
            log.warning("an attempt that is no longer ours is stopped",
                        extra={"attempt_id": attempt_id})  # fmt: skip
        if self._builds is None:
            stale += [i for i, held in self._held.items() if held.builds and held.running]
        if stale:
            await self._runner.stop(stale, grace_s=0)
        if by_id or standings:
            running = sum(i in standings for i in by_id)
            log.info("attempts taken back", extra={"running": running})

    def _repin(self, held: _Held) -> None:
        source = held.duty.spec.source
        if isinstance(source, Fetch) and not self._links and self._binaries.has(source):
            held.program = self._binaries.path(source)
            self._binaries.hold(held.program)

    # Starting.

    async def launch(self, nursery: trio.Nursery) -> None:
        while True:
            await self._lease.wait()
            batch: list[_Held] = []
            for held in self._take_waiting():
                held.running = True  # the runner's, which starts it when it has a slot
                source = held.duty.spec.source
                slow = isinstance(source, Fetch) and not self._binaries.has(source)
                if slow or held.builds:
                    nursery.start_soon(self._start, [held])  # a fetch holds up nobody else
                else:
                    batch.append(held)
            if batch:
                await self._start(batch)
                continue
            self._wanted = trio.Event()
            await self._wanted.wait()

    def _take_waiting(self) -> list[_Held]:
        """What may begin: all but that whose device another has until it has ended. Its job was
        taken back, so the swarm gives the device away, and does not wait for its grace. Packages
        are built one at a time, the oldest first."""
        if self._closing:
            return []
        in_use = {d for held in self._held.values() if held.running for d in _devices(held)}
        waiting, self._waiting = self._waiting, deque()
        taken = []
        for attempt_id in waiting:
            held = self._held[attempt_id]
            ready = not held.builds or self._builds is None or self._builds.begins
            if ready and in_use.isdisjoint(_devices(held)):
                in_use.update(_devices(held))
                taken.append(held)
            else:
                self._waiting.append(attempt_id)
        return taken

    async def _start(self, batch: list[_Held]) -> None:
        fetches = [h for h in batch if isinstance(h.duty.spec.source, Fetch)]
        programs = await self._binaries.obtain_many(
            [h.duty.spec.source for h in fetches]  # type: ignore[misc]
        )
        for held, program in zip(fetches, programs, strict=True):
            if isinstance(program, SwarmError):
                self._refuse(held, program)
            else:
                held.program = program
        orders = []
        leased = self._lease.there
        for held in batch:
            if not held.running:
                continue
            if held.stopping:
                self._let_go(held.duty.attempt.id)
                continue
            if self._closing or not leased:
                self._put_back(held)
                continue
            try:
                orders.append(await self._order(held))
            except (SwarmError, OSError) as error:
                self._refuse(held, error)
        if not leased:
            self._wanted.set()  # by then it may be back
        if self.closing():
            # A package's order takes its time.
            late, orders = orders, []
            for order in late:
                self._put_back(self._held[AttemptId(order.id)])
        refusals = await self._runner.start(orders)
        stopping = []
        for order in orders:
            if (ordered := self._held.get(AttemptId(order.id))) is not None:
                ordered.ordered = True
                if ordered.stopping:
                    stopping.append(order.id)
        if stopping:
            # The word to stop may have come to the runner before the order, and meant nothing.
            await self._runner.stop(stopping, grace_s=self._settings.grace_s)
        for refusal in refusals:
            if refusal.id is not None and (refused := self._held.get(AttemptId(refusal.id))):
                self._refuse(refused, Unavailable(f"failed to start: {refusal.error}"))

    async def hand_over_again(self) -> None:
        """A runner that took the place of another knows what that had begun, but not what waited
        in it for a slot."""
        while True:
            self._runner_pid = await self._runner.replaced(self._runner_pid)
            known = {standing.id for standing in await self._runner.list()}
            for attempt_id, held in list(self._held.items()):
                if not (held.ordered and held.running) or attempt_id in known:
                    continue
                if held.stopping:
                    self._let_go(attempt_id)
                    continue
                self._put_back(held)
            self._wanted.set()

    def _put_back(self, held: _Held) -> None:
        held.running = held.ordered = False
        if held.program is not None:
            self._binaries.release(held.program)
            held.program = None
        self._waiting.append(held.duty.attempt.id)
        if self._draining:
            self.give_back_packages(TOLD_TO_STOP)

    async def _order(self, held: _Held) -> AttemptOrder:
        spec, attempt_id = held.duty.spec, held.duty.attempt.id
        directory = self.logs.directory(attempt_id)
        lease = self._lease.terms(spec.disconnect_s or 0.0)
        if held.builds:
            if self._builds is None:
                raise Unavailable(NOT_A_BUILDER)
            return await self._builds.order(held.duty, directory, lease)
        if held.program is None:
            program = find_program(spec, spec.env.get("PATH", JOB_PATH))
        elif self._links:
            directory.mkdir(mode=0o711, exist_ok=True)
            with suppress(FileExistsError):
                (directory / "program").hardlink_to(held.program)
            program = "../program"
        else:
            program = str(held.program)
        settings = self._settings
        reuse = None if self._links else self.directories.spare()
        return order_of(
            held.duty,
            program,
            directory,
            settings.account,
            grace_s=settings.grace_s,
            log_bytes_max=settings.log_bytes_max,
            reuse=reuse,
            lease=lease,
        )

    def _refuse(self, held: _Held, error: SwarmError | OSError) -> None:
        held.running = False
        status = AttemptStatus.FAILED
        if held.builds and not isinstance(error, Invalid):
            # No package is to blame for this host.
            status = AttemptStatus.REVOKED
            if self._builds is not None:
                self._builds.not_begun()
        self._report_end(held.duty.attempt.id, status, Result(error=str(error)))

    # What the runner says.

    async def hear(self) -> None:
        async with aclosing(self._runner.events()) as batches:
            async for batch in batches:
                await self._hear(batch)

    async def _hear(self, batch: Iterable[Started | Ended]) -> None:
        now = trio.current_time()
        for said in batch:
            attempt_id = AttemptId(said.id)
            held = self._held.get(attempt_id)
            if held is None:
                if isinstance(said, Ended):
                    self._strange[attempt_id] = said
                    self._strange_come.set()
                continue
            if isinstance(said, Started):
                held.started_at = now - said.age_s
                if not held.stopping:
                    self._reports.put(Report(attempt_id, started_at=held.started_at))
                continue
            held.running = False
            if said.started_age_s is not None:
                held.started_at = now - said.started_age_s
            if held.stopping:
                await self._runner.ack([attempt_id])
                self._let_go(attempt_id)
                continue
            if held.builds and self._builds is not None:
                if not held.ended:
                    held.ended = True
                    self._built.append((held, said))
                    self._build_ended.set()
                continue
            result = await self._result(held.duty, said)
            report = self._report_end(attempt_id, status_of(said), result)
            report.ended_at = now - said.ended_age_s
            report.acknowledge = True

    async def end_builds(self) -> None:
        """One after the other, as what was built may be large: nobody else waits for it."""
        while self._builds is not None:
            await self._build_ended.wait()
            self._build_ended = trio.Event()
            while self._built:
                held, said = self._built.popleft()
                await self._end_build(self._builds, held, said)
            gone, self._unneeded = self._unneeded, []
            await self._builds.forget(gone)

    async def _end_build(self, builds: Builds, held: _Held, said: Ended) -> None:
        attempt_id = held.duty.attempt.id
        verdict = None
        if not held.stopping:
            verdict = await builds.end(held.duty, self.logs.directory(attempt_id), said)
        if held.stopping or verdict is None:
            await self._runner.ack([attempt_id])
            self._let_go(attempt_id)
            return
        result = replace(await self._result(held.duty, said), error=verdict.error)
        report = self._report_end(attempt_id, verdict.status, result)
        report.outcome = verdict.outcome
        report.ended_at = trio.current_time() - said.ended_age_s
        report.acknowledge = True

    async def settle_strange(self) -> None:
        """An end is acknowledged, and forgotten by the runner, only when a quorum says that nobody
        waits for it: after a loss of power this node's state may lag behind its runner."""
        while True:
            await self._strange_come.wait()
            self._strange_come = trio.Event()
            while self._strange:
                asked = tuple(self._strange)[:REPORTS_MAX]
                read = partial(self._cluster.read, ListDuties(self._cluster.node.id, asked))
                with local_reads(False):
                    duties = await patiently(read)
                ended = {attempt_id: self._strange.pop(attempt_id) for attempt_id in asked}
                for duty in duties:
                    if duty.attempt.id not in self._held:
                        self._held[duty.attempt.id] = _Held(duty)
                    elif duty.attempt.id in self._waiting:
                        self._waiting.remove(duty.attempt.id)
                await self._hear([ended.pop(duty.attempt.id) for duty in duties])
                if ended:
                    await self._runner.ack(list(ended))

    async def _result(self, duty: Duty, ended: Ended) -> Result:
        directory = self.logs.directory(duty.attempt.id)
        return await result_of(self._cluster, self._actor, duty.spec, ended, directory)

    # Reporting.

    def _report_end(self, attempt_id: AttemptId, status: AttemptStatus, result: Result) -> Report:
        held = self._held[attempt_id]
        report = Report(attempt_id, started_at=held.started_at, status=status, result=result,
                        ended_at=trio.current_time())  # fmt: skip
        self._reports.put(report)
        return report

    async def report(self) -> None:
        await self._reports.tell()

    def _is_crowded(self) -> bool:
        return self.busy > self._settings.slots

    async def _end_heard(self, ends: list[Report]) -> None:
        acknowledged = [report.attempt_id for report in ends if report.acknowledge]
        if acknowledged:
            await self._runner.ack(acknowledged)
        for report in ends:
            self._let_go(report.attempt_id)

    def _let_go(self, attempt_id: AttemptId) -> None:
        held = self._held.pop(attempt_id, None)
        if held is None:
            return
        if held.program is not None:
            self._binaries.release(held.program)
        self.logs.ended(attempt_id)
        self.directories.ended(self.logs.directory(attempt_id))
        self._let_go_of.set()
        if held.builds:
            self._unneeded.append(attempt_id)
            self._build_ended.set()
        if _devices(held):
            self._wanted.set()

    async def _forget_logs(self) -> None:
        """The oldest, where all together are over their bound."""
        keep, bytes_max = frozenset(self._held), self._settings.logs_total_bytes_max
        await trio.to_thread.run_sync(self.logs.forget_oldest, bytes_max, keep)


@asynccontextmanager
async def open_attempts(attempts: Attempts) -> AsyncIterator[Attempts]:
    """Run what this node is given. Leaving it leaves jobs to the runner, and the swarm waits."""
    async with trio.open_nursery() as nursery:
        # What this node does follows from its own replica, leader or not.
        with local_reads():
            await attempts.adopt()
            nursery.start_soon(attempts.keep_lease)
            nursery.start_soon(attempts.hear)
            nursery.start_soon(attempts.settle_strange)
            nursery.start_soon(attempts.end_builds)
            nursery.start_soon(attempts.report)
            nursery.start_soon(attempts.launch, nursery)
            nursery.start_soon(attempts.follow)
            nursery.start_soon(attempts.hand_over_again)
            nursery.start_soon(attempts.directories.keep_tidy)
        yield attempts
        await attempts.stop_renewing()
        nursery.cancel_scope.cancel()
