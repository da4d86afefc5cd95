"""What must hold of jobs, devices, leases and voters, whatever befalls: seen as it happens.

The rules are told once more here, from the events alone, and not in the words of the machine that
is being watched. Each entry is looked at where it is applied first; the others do the same.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from swarmd.cluster.snapshots import decode_conf
from swarmd.domain.builds import BLOCKED
from swarmd.domain.events import (
    AttemptStopped,
    Event,
    JobAssigned,
    JobBlocked,
    JobEnded,
    JobReady,
    JobRequeued,
    JobRetrying,
    JobStarted,
    JobSubmitted,
)
from swarmd.domain.jobs import ENDED, JobStatus
from swarmd.sim.witness import Broken, Witness
from swarmd.sim.workers import Runs
from swarmd.sim.world import World
from swarmd.state.machine import Place
from swarmd.state.queries import QUERIES, ListEvents
from swarmd.state.rules.leases import LOST

VOTERS_MAX = 5
EVENTS_AT_ONCE = 1000


@dataclass(slots=True)
class Standing:
    """Of a job, as the events before have it."""

    status: JobStatus = JobStatus.PENDING
    ready: bool = False
    blocked: bool = False
    """A package that only sweepers get."""
    attempt_id: int | None = None
    """Which holds it; or held it last, where none does."""
    node_id: str = ""
    completions: int = 0
    ended_index: int = 0

    @property
    def held(self) -> bool:
        return self.status in (JobStatus.ASSIGNED, JobStatus.RUNNING)


class Ledger:
    """All jobs. `heed` raises Broken at the first event that may not follow those before."""

    def __init__(
        self, devices_of: Callable[[int], tuple[str, ...]] = lambda attempt_id: (),
        lost: Callable[[str, str], None] = lambda job_id, node_id: None,
    ) -> None:  # fmt: skip
        self.jobs: dict[str, Standing] = {}
        self.devices_of = devices_of
        self.lost = lost
        """Told which job is taken from which node, as of now."""
        self.holders: dict[tuple[str, str], int] = {}
        """The attempt that has each device of a node. A host that begins anew is another node, and
        its devices go by the names they had."""
        self.granted: dict[int, tuple[str, ...]] = {}
        """What each attempt had; also of those that are over."""
        self.counts: Counter[str] = Counter()
        self._last_attempt = 0

    def heed(self, event: Event) -> None:
        match body := event.body:
            case JobSubmitted():
                if body.job_id in self.jobs:
                    raise Broken(f"{body.job_id} is submitted twice")
                self.jobs[body.job_id] = Standing(ready=body.ready)
            case JobReady():
                job = self._job(body.job_id)
                if job.status is not JobStatus.PENDING or job.ready:
                    raise Broken(f"{body.job_id} is made ready, and is {_said(job)}")
                job.ready, job.blocked = True, False
            case JobAssigned():
                self._assign(body)
            case JobStarted():
                job = self._held_by(body.job_id, body.attempt_id, "starts")
                if job.status is JobStatus.RUNNING or job.node_id != body.node_id:
                    raise Broken(f"{body.job_id} starts on {body.node_id}, and is {_said(job)}")
                job.status = JobStatus.RUNNING
            case AttemptStopped():
                self._stop(event.index, body)
            case JobRequeued():
                self._give_back(body.job_id, body.attempt_id, ready=True)
            case JobRetrying():
                self._give_back(body.job_id, body.attempt_id, ready=False)
            case JobBlocked():
                self._block(body)
            case JobEnded():
                self._end(event.index, body)
            case _:
                return
        self.counts[type(body).__name__] += 1

    def _job(self, job_id: str) -> Standing:
        job = self.jobs.get(job_id)
        if job is None:
            raise Broken(f"something befalls {job_id}, which nobody has submitted")
        return job

    def _held_by(self, job_id: str, attempt_id: int | None, does: str) -> Standing:
        job = self._job(job_id)
        if not job.held or job.attempt_id != attempt_id:
            raise Broken(f"{job_id} {does} by attempt {attempt_id}, and is {_said(job)}")
        return job

    def _assign(self, body: JobAssigned) -> None:
        job = self._job(body.job_id)
        if job.status is not JobStatus.PENDING or not (job.ready or job.blocked):
            raise Broken(f"{body.job_id} is given to {body.node_id}, and is {_said(job)}")
        if body.attempt_id <= self._last_attempt:
            raise Broken(f"attempt {body.attempt_id} comes after {self._last_attempt}")
        self._last_attempt = body.attempt_id
        job.status, job.ready, job.blocked = JobStatus.ASSIGNED, False, False
        job.attempt_id, job.node_id = body.attempt_id, body.node_id
        devices = self.devices_of(body.attempt_id)
        for device in devices:
            holder = self.holders.setdefault((body.node_id, device), body.attempt_id)
            if holder != body.attempt_id:
                raise Broken(f"{device} is given to attempt {body.attempt_id} and {holder}")
        self.granted[body.attempt_id] = devices

    def _stop(self, index: int, body: AttemptStopped) -> None:
        job = self._job(body.job_id)
        cancelled = job.status in ENDED and job.ended_index == index
        if job.attempt_id != body.attempt_id or not (job.held or cancelled):
            raise Broken(f"attempt {body.attempt_id} of {body.job_id} is stopped, and is over")
        if body.reason == LOST:
            self.lost(body.job_id, body.node_id)

    def _give_back(self, job_id: str, attempt_id: int, *, ready: bool) -> None:
        job = self._held_by(job_id, attempt_id, "is given back")
        job.status, job.ready = JobStatus.PENDING, ready
        self._let_go(job)

    def _block(self, body: JobBlocked) -> None:
        if body.attempt_id is not None:
            self._give_back(body.job_id, body.attempt_id, ready=False)
        job = self._job(body.job_id)
        if job.status is not JobStatus.PENDING:
            raise Broken(f"{body.job_id} is blocked, and is {_said(job)}")
        job.ready, job.blocked = False, body.why == BLOCKED

    def _end(self, index: int, body: JobEnded) -> None:
        job = self._job(body.job_id)
        if job.status in ENDED:
            raise Broken(f"{body.job_id} is {body.status.value}, and was {job.status.value}")
        if body.status is JobStatus.COMPLETED:
            self._held_by(body.job_id, body.attempt_id, "is completed")
            job.completions += 1
        if job.held:
            self._let_go(job)
        job.status, job.ready, job.ended_index = body.status, False, index

    def _let_go(self, job: Standing) -> None:
        assert job.attempt_id is not None
        for device in self.granted[job.attempt_id]:
            del self.holders[job.node_id, device]

    @property
    def open(self) -> list[str]:
        """Jobs that have not ended."""
        return [job_id for job_id, job in self.jobs.items() if job.status not in ENDED]

    def compare(self, conn: sqlite3.Connection) -> None:
        """The tables say what the events said."""
        rows = conn.execute("SELECT id, status, attempt_id, ready FROM jobs").fetchall()
        for job_id, status, attempt_id, ready in rows:
            job = self._job(job_id)
            if (job.status.value, job.attempt_id, job.ready) != (status, attempt_id, bool(ready)):
                raise Broken(f"{job_id} is {status} in the table, and {_said(job)} by its events")
        if len(rows) != len(self.jobs):
            raise Broken(f"there are {len(rows)} jobs, and {len(self.jobs)} by the events")
        held = {job.attempt_id for job in self.jobs.values() if job.held}
        active = {row[0] for row in conn.execute("SELECT id FROM attempts WHERE active = 1")}
        if held != active:
            raise Broken(f"attempts {sorted(active)} are active, and {held} by the events")
        done = "SELECT job_seq, count(*) FROM attempts WHERE status = 'completed' GROUP BY 1"
        if twice := [seq for seq, times in conn.execute(done) if times > 1]:
            raise Broken(f"jobs {twice} were completed more than once")


def _said(job: Standing) -> str:
    word = "ready" if job.ready else job.status.value
    return f"{word} (attempt {job.attempt_id})" if job.attempt_id else word


class WatchedRuns(Runs):
    """What runs where, held against what the swarm thinks."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer
        observer.runs = self
        self._using: dict[str, str] = {}
        """Which token runs with each device, on the machine and not on paper."""
        self._devices: dict[str, tuple[str, ...]] = {}

    def began(self, token: str, host: str) -> None:
        super().began(token, host)
        observer = self._observer
        job = observer.ledger.jobs.get(observer.job_ids.get(token, ""))
        if job is None or job.attempt_id is None or observer.name_of(job.node_id) != host:
            return
        devices = observer.ledger.granted[job.attempt_id]
        for device in devices:
            other = self._using.setdefault(device, token)
            if other != token:
                raise Broken(f"{token} begins with {device}, with which {other} still runs")
        self._devices[token] = devices

    def ended(self, token: str, how: str) -> None:
        super().ended(token, how)
        for device in self._devices.pop(token, ()):
            del self._using[device]


class Observer(Witness):
    """A witness that also reads the events, as soon as any host has them."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(self._devices_of, self._lost)
        self.runs: Runs | None = None
        self.token_of: Callable[[str], str] = str
        """What a job of this id runs under."""
        self.job_ids: dict[str, str] = {}
        """By token."""
        self.name_of: Callable[[str], str] = str
        """The host of a node."""
        self.events: list[Event] = []
        """All that there were, from the first on."""
        self._conn: sqlite3.Connection | None = None
        self._seq = 0
        self._upto = 0
        self._conf: bytes | None = None

    def watch(self, world: World) -> None:
        """Before any of its hosts is there."""
        assert not world.hosts
        world.witness = self
        world.network.on_send = self.sent
        self.name_of = world.name_of

    def applied(self, name: str, place: Place, conn: sqlite3.Connection) -> None:
        super().applied(name, place, conn)
        if place.index <= self._upto:
            return
        self._upto, self._conn = place.index, conn
        if place.conf is not None and place.conf != self._conf:
            self._look_at_voters(place.conf)
        while events := QUERIES[ListEvents](conn, ListEvents(self._seq, EVENTS_AT_ONCE)):
            if events[0].seq != self._seq + 1:
                raise Broken(f"event {events[0].seq} comes after {self._seq}")
            for event in events:
                self.ledger.heed(event)
                if isinstance(event.body, JobSubmitted):
                    self.job_ids[self.token_of(event.body.job_id)] = event.body.job_id
            self.events += events
            self._seq = events[-1].seq

    def _look_at_voters(self, packed: bytes) -> None:
        self._conf, conf = packed, decode_conf(packed)
        for voters in (conf.voters, conf.voters_outgoing):
            if len(voters) > VOTERS_MAX or len(set(voters)) != len(voters):
                raise Broken(f"these vote: {voters}")
        if not conf.voters:
            raise Broken("nobody votes")

    def _devices_of(self, attempt_id: int) -> tuple[str, ...]:
        assert self._conn is not None
        sql = "SELECT devices FROM attempts WHERE id = ?"
        row = self._conn.execute(sql, (attempt_id,)).fetchone()
        return () if row is None else tuple(row[0].split())

    def _lost(self, job_id: str, node_id: str) -> None:
        """Whoever takes work away knows that it has ended there."""
        token = self.token_of(job_id)
        if self.runs is not None and self.runs.now.get(token) == self.name_of(node_id):
            raise Broken(f"{job_id} is taken from {node_id}, where it still runs")


def check_voters(world: World, more: int = 0) -> None:
    """As it has to be in a swarm of few hosts once all is calm: as many as are wanted, of those who
    are there. `more` may be left of leaders that were to leave and did not: they stay."""
    leader = max(
        world.leaders(), key=lambda name: world.replica(name).leadership().term, default=None
    )
    if leader is None:
        raise Broken("nobody leads")
    view = world.replica(leader).log_view()
    members = {*view.voters, *view.learners}
    there = {world.node_id(name) for name in world.up()}
    if missing := there - members:
        raise Broken(f"{sorted(missing)} have replicas, and are no members of the log")
    wanted = min(len(there), world.voters.voters)
    if view.joint or not wanted <= len(view.voters) <= wanted + more or not {*view.voters} <= there:
        joint = ", between two sets" if view.joint else ""
        raise Broken(f"of {sorted(there)} {wanted} are to vote, and {view.voters} do{joint}")
    away = sorted(n for n in there if not world.replica(leader).peer(n).alive)
    if away:
        raise Broken(f"{leader} takes {away} for gone, and they are not")
