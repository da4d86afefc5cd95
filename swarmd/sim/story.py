"""The story of an estate: what happened when, as somebody would tell it who saw everything.

Jobs are followed by the events of the state, wherever it is applied first; who leads, who votes and
who is taken for dead is looked at ten times a second, as the leader has it. Times are seconds since
the story began.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import trio

from swarmd.cluster.handle import LogView
from swarmd.domain.events import Event, JobEnded, JobRequeued, JobRetrying
from swarmd.domain.jobs import JobStatus
from swarmd.sim.estate import STRIKING, WITHOUT_VICTIM, Blow, Estate
from swarmd.sim.faults import LEADER
from swarmd.sim.invariants import Ledger, Observer, WatchedRuns
from swarmd.sim.packages import PackageBook
from swarmd.sim.topology import counted, listed
from swarmd.sim.workers import Ran

LOOK_EVERY_S = 0.1
LOOK_AT_NODES_EVERY_S = 0.5
GATHER_S = 1.0
"""What befalls jobs within this time is told at once."""
SAMPLES_MAX = 240
MOMENTS_MAX = 5000
NAMES_SHOWN = 8


@dataclass(frozen=True)
class Moment:
    at_s: float
    kind: str
    """fault, gone, back, leader, voters, dead, alive, jobs, builds, writes or queue."""
    words: str
    names: tuple[str, ...] = ()
    """Of nodes, jobs, packages or builders that it is about."""


@dataclass(frozen=True)
class Sample:
    at_s: float
    waiting: int
    held: int
    """Given to a node, or running there."""
    there: int
    """Nodes."""


class Tally(Ledger):
    """Of all jobs, for the story, and of packages apart; a broken rule is raised as by any
    Ledger."""

    def __init__(self, observer: Observer) -> None:
        super().__init__(observer.ledger.devices_of, observer.ledger.lost)
        self.stands: Counter[JobStatus] = Counter()
        self.put_back: dict[str, list[str]] = defaultdict(list)
        """Jobs by why, since they were last told of."""
        self.failed: list[str] = []
        self.retrying: list[str] = []
        self.run_again = 0
        self.packages = PackageBook()

    def heed(self, event: Event) -> None:
        body = event.body
        job_id = getattr(body, "job_id", None)
        before = self.jobs[job_id].status if job_id in self.jobs else None
        super().heed(event)
        self.packages.heed(event)
        if job_id is None or job_id in self.packages:
            return
        after = self.jobs[job_id].status
        if before is not None:
            self.stands[before] -= 1
        self.stands[after] += 1
        match body:
            case JobRequeued():
                self.run_again += 1
                self.put_back[body.reason].append(job_id)
            case JobEnded(status=JobStatus.FAILED):
                self.failed.append(job_id)
            case JobRetrying():
                self.retrying.append(job_id)


@dataclass
class Leading:
    """Who led last, as far as anybody saw, and for how long nobody did: who is stopped, or cut off
    from most voters, leads nobody."""

    name: str | None = None
    term: int = 0
    changes: int = 0
    none_since: float | None = None
    without_s: list[float] = field(default_factory=list)


class Story:
    def __init__(self, estate: Estate) -> None:
        """Before any node is there."""
        self.estate = estate
        self.observer = Observer()
        self.observer.watch(estate)
        self.tally = self.observer.ledger = Tally(self.observer)
        estate.runs = WatchedRuns(self.observer)
        self.moments: list[Moment] = []
        self.struck = 0
        """Faults that harmed somebody, or were at it at the end."""
        self.untold = 0
        """Moments beyond the bound."""
        self.samples: list[Sample] = []
        self.leading = Leading()
        self.view: LogView | None = None
        """The log's members, as the last leader had them."""
        self.away: dict[str, None] = {}
        """Nodes that the leader takes for gone."""
        self.began: float | None = None
        self.queue_longest = (0, 0.0)
        """How many jobs waited, and when."""
        self._queue_told = 0

    # Told by whoever does it

    def begin(self) -> None:
        """From now on it is told."""
        self.began = trio.current_time()
        self._look_at_leader()
        self._look_at_voters()
        self.tally.put_back.clear()
        self.tally.failed.clear()
        self.tally.retrying.clear()
        self.tally.packages.begin()

    @property
    def now_s(self) -> float:
        return 0.0 if self.began is None else trio.current_time() - self.began

    def tell(self, kind: str, words: str, names: tuple[str, ...] = ()) -> None:
        self._tell(self.now_s, kind, words, names)

    def tell_fault(self, blow: Blow) -> None:
        """Also of one that found nothing that it could harm, or was refused, or is not over."""
        fault = blow.fault
        self.struck += blow.struck is not False
        whom, names = _whom(blow)
        lasts = f" for {fault.for_s:.1f} s" if fault.for_s else ""
        how = ", ".join(f"{word} {value:g}" for word, value in sorted(fault.how.items()))
        words = f"{fault.kind} {whom}{lasts}" + (f" ({how})" if how else "")
        if blow.struck is None:
            words += ", under way at the end"
        elif not blow.struck:
            words += ": nothing came of it"
        self._tell(blow.at - (self.began or 0.0), "fault", words, names)

    def _tell(self, at_s: float, kind: str, words: str, names: tuple[str, ...]) -> None:
        if self.began is None:
            return
        if len(self.moments) >= MOMENTS_MAX:
            self.untold += 1
            return
        self.moments.append(Moment(round(at_s, 3), kind, words, names))

    # What is looked at

    async def watch(self, seconds: float) -> None:
        """Until it is cancelled; samples are taken so that they do for so many seconds."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._every, LOOK_EVERY_S, self._look)
            nursery.start_soon(self._every, LOOK_AT_NODES_EVERY_S, self._look_at_nodes)
            nursery.start_soon(self._every, GATHER_S, self.gather)
            nursery.start_soon(self._every, max(1.0, seconds / SAMPLES_MAX), self._sample)

    async def _every(self, seconds: float, look: Callable[[], None]) -> None:
        while True:
            look()
            await trio.sleep(seconds)

    def _look(self) -> None:
        self._look_at_leader()
        self._look_at_voters()

    def _look_at_leader(self) -> None:
        found, leading, now_s = self._leader(), self.leading, self.now_s
        if found is None:
            if leading.none_since is None:
                leading.none_since = now_s
            return
        name, term = found
        gap_s = 0.0 if leading.none_since is None else now_s - leading.none_since
        if gap_s:
            leading.without_s.append(gap_s)
        leading.none_since = None
        if term == leading.term:
            return
        if leading.term:
            leading.changes += self.began is not None
            for_s = f", after {gap_s:.1f} s with none" if gap_s else ""
            again = "again " if name == leading.name else ""
            self.tell("leader", f"{name} leads {again}(term {term}){for_s}", (name,))
        leading.name, leading.term = name, term

    def _leader(self) -> tuple[str, int] | None:
        leaders = [name for name in self.estate.leaders() if self.estate.in_charge(name)]
        terms = {name: self.estate.replica(name).leadership().term for name in leaders}
        name = max(terms, key=lambda n: terms[n], default=None)
        return None if name is None else (name, terms[name])

    def _look_at_voters(self) -> None:
        if self.leading.none_since is not None or self.leading.name not in self.estate.up():
            return
        assert self.leading.name is not None
        before, view = self.view, self.estate.replica(self.leading.name).log_view()
        if view.joint or (before is not None and before.term > view.term):
            return
        self.view = view
        if before is None:
            return
        now, then = self.named(view.voters), self.named(before.voters)
        if {*now} != {*then}:
            came = [name for name in now if name not in then]
            went = [name for name in then if name not in now]
            words = f"{len(now)} {'votes' if len(now) == 1 else 'vote'}: {listed(now)}"
            self.tell("voters", words + _came_and_went(came, went), (*came, *went))

    def named(self, ids: Iterable[str]) -> list[str]:
        return self.estate.in_order(self.estate.name_of(node_id) for node_id in ids)

    def _look_at_nodes(self) -> None:
        leader = self.leading.name
        if self.leading.none_since is not None or leader not in self.estate.up():
            return
        assert leader is not None
        replica = self.estate.replica(leader)
        away = {
            name: None for name in self.estate.in_order(self.estate.hosts)
            if name != leader and not replica.peer(self.estate.node_id(name)).alive
        }  # fmt: skip
        if gone := [name for name in away if name not in self.away]:
            self.tell("dead", f"{leader} takes {_some(gone)} for dead", tuple(gone))
        if back := [name for name in self.away if name not in away]:
            self.tell("alive", f"{leader} has {_some(back)} back", tuple(back))
        self.away = away

    def gather(self) -> None:
        """What befell jobs since it was last told."""
        tally = self.tally
        for reason, jobs in tally.put_back.items():
            self.tell("jobs", f"{_jobs(jobs)} back in the queue: {reason}", tuple(jobs))
        if tally.failed:
            self.tell("jobs", f"{_jobs(tally.failed)} failed", tuple(tally.failed))
        if tally.retrying:
            self.tell("jobs", f"{_jobs(tally.retrying)} failed, to be tried again",
                      tuple(tally.retrying))  # fmt: skip
        tally.put_back.clear()
        tally.failed.clear()
        tally.retrying.clear()
        self._gather_packages(tally.packages)
        self._look_at_queue(tally.stands[JobStatus.PENDING])

    def _gather_packages(self, book: PackageBook) -> None:
        for name, what in book.changes:
            self.tell("builds", f"{name} is {what}", (name,))
        for (holder, reason), packages in book.returned.items():
            go = "goes" if len(packages) == 1 else "go"
            words = f"{_packages(packages)} of {holder} {go} back: {reason}"
            self.tell("builds", words, (holder, *packages))
        for reason, packages in book.blocked.items():
            self.tell("builds", f"{_packages(packages)} blocked: {reason}", tuple(packages))
        if book.ready:
            words = f"{_packages(book.ready)} not blocked any more"
            self.tell("builds", words, tuple(book.ready))
        for package in book.built:
            since_s = trio.current_time() - package.returns[-1].at
            words = (
                f"{package.name} is built by {package.holder}, {since_s:.0f} s after it went back"
            )
            self.tell("builds", words, (package.name, package.holder))
        book.forget_news()

    def _look_at_queue(self, waiting: int) -> None:
        """Told whenever it is ten times as long, and when it is a tenth again."""
        if waiting > self.queue_longest[0]:
            self.queue_longest = (waiting, round(self.now_s, 3))
        if waiting >= 10 * max(1, self._queue_told):
            self.tell("queue", f"{waiting} jobs wait")
            self._queue_told = waiting
        elif self._queue_told and 10 * waiting <= self._queue_told:
            wait = "waits" if waiting == 1 else "wait"
            self.tell("queue", f"{waiting or 'no'} job{'s' * (waiting != 1)} {wait}")
            self._queue_told = 0

    def _sample(self) -> None:
        stands = self.tally.stands
        held = stands[JobStatus.ASSIGNED] + stands[JobStatus.RUNNING]
        there = len(self.estate.there())
        self.samples.append(Sample(round(self.now_s, 3), stands[JobStatus.PENDING], held, there))

    # What follows from it

    def without_leader_s(self) -> float:
        """The longest time; one that lasts yet counts too."""
        since = self.leading.none_since
        lasting = [] if since is None else [self.now_s - since]
        return max([*self.leading.without_s, *lasting], default=0.0)

    def runs(self) -> Iterator[Ran]:
        """Of jobs, without packages."""
        packages = self.tally.packages
        return (ran for ran in self.estate.runs.history if ran.token not in packages)

    def redone_s(self) -> float:
        """How long jobs ran in vain: to no end of their own."""
        since: dict[str, float] = {}
        lost_s = 0.0
        for ran in self.runs():
            if ran.how == "began":
                since[ran.token] = ran.at
            elif ran.how != "exit":
                lost_s += ran.at - since.pop(ran.token)
        return lost_s

    def at_once(self) -> int:
        """Jobs and packages that ran twice at the same time."""
        now: set[str] = set()
        twice: set[str] = set()
        for ran in self.estate.runs.history:
            if ran.how == "began":
                twice |= {ran.token} & now
                now.add(ran.token)
            else:
                now.discard(ran.token)
        return len(twice)


def _whom(blow: Blow) -> tuple[str, tuple[str, ...]]:
    """Whom it befell, in words and by name."""
    planned = blow.fault
    if planned.kind in WITHOUT_VICTIM:
        return "all nodes", ()
    victim = _called(planned.victim, blow.victim)
    if blow.sides is not None:
        (_, *beside), others = blow.sides
        return f"{_some([victim, *beside])} apart from {_some(others)}", blow.sides[0]
    if not STRIKING[planned.kind].pair:
        return victim, tuple(filter(None, (blow.victim,)))
    words = f"{victim} and {_called(planned.other, blow.other)}"
    return words, tuple(filter(None, (blow.victim, blow.other)))


def _called(planned: str, name: str) -> str:
    return f"{LEADER} ({name or 'nobody'})" if planned == LEADER else name


def _some(names: Sequence[str]) -> str:
    return listed(names, NAMES_SHOWN)


def _jobs(jobs: list[str]) -> str:
    return f"{counted(len(jobs), 'job')} ({listed(jobs, 3)})"


def _packages(names: list[str]) -> str:
    return f"{counted(len(names), 'package')} ({listed(names, 3)})"


def _came_and_went(came: list[str], went: list[str]) -> str:
    words = [f"{_some(came)} came"] if came else []
    words += [f"{_some(went)} went"] if went else []
    return f" ({'; '.join(words)})"
