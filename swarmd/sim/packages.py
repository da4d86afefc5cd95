"""Packages of an estate, as the events tell of them: who has each, what went back and why, and what
became of that later.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import trio

from swarmd.domain.builds import BLOCKED, OUTSIDE
from swarmd.domain.events import (
    BuilderChanged,
    Event,
    JobAssigned,
    JobBlocked,
    JobEnded,
    JobReady,
    JobRequeued,
    JobStarted,
    JobSubmitted,
    PackageBuilt,
)
from swarmd.domain.jobs import JobKind, JobStatus

NEEDED, DELEGATED, RECEIVED = "needed", "delegated", "received"
DROPPED = "dropped"
TOLD_OF = frozenset({"online", "offline", "grounded"})
"""What is told of builders."""


@dataclass(frozen=True)
class Return:
    """A package was taken from its builder, or left by it, and was not received."""

    at: float
    holder: str
    begun: bool
    reason: str


@dataclass(slots=True)
class Package:
    name: str
    stands: str = NEEDED
    """needed, delegated, received, blocked or dropped."""
    holder: str = ""
    """Who has it, or had it last."""
    begun: bool = False
    returns: list[Return] = field(default_factory=list)
    built_at: float | None = None


class PackageBook:
    def __init__(self) -> None:
        self.packages: dict[str, Package] = {}
        """By job."""
        self.called: dict[str, str] = {}
        """The packages of jobs that are to come."""
        self.sessions: dict[str, str] = {}
        """Theirs."""
        self.builders: dict[str, str] = {}
        """Names by node."""
        self.stands: Counter[str] = Counter()
        self.failed_builds = 0
        self.returned: dict[tuple[str, str], list[str]] = defaultdict(list)
        """By builder and reason, what went back since that was last told."""
        self.blocked: dict[str, list[str]] = defaultdict(list)
        self.ready: list[str] = []
        self.built: list[Package] = []
        """What had gone back before."""
        self.changes: list[tuple[str, str]] = []
        """Builders, and what of them."""

    def __contains__(self, job_id: object) -> bool:
        return job_id in self.packages

    def begin(self) -> None:
        """What was before is not told."""
        self.failed_builds = 0
        for package in self.packages.values():
            package.returns.clear()
        self.forget_news()

    def session(self, session_id: str) -> dict[str, int | bool]:
        """How it stands, of what was open when the copy was taken."""
        stands = Counter(
            package.stands for job_id, package in self.packages.items()
            if self.sessions.get(job_id) == session_id
        )  # fmt: skip
        left = stands[NEEDED] + stands[DELEGATED]
        return {
            "queued": stands.total(), "received": stands[RECEIVED], "blocked": stands[BLOCKED],
            "open": left, "completed": not left,
        }  # fmt: skip

    def forget_news(self) -> None:
        for news in (self.returned, self.blocked, self.ready, self.built, self.changes):
            news.clear()

    def heed(self, event: Event) -> None:
        match body := event.body:
            case JobSubmitted(kind=JobKind.PACKAGE):
                name = self.called.get(body.job_id, body.job_id)
                self.packages[body.job_id] = Package(name)
                self.stands[NEEDED] += 1
            case BuilderChanged() if body.what in TOLD_OF:
                self.changes.append((self._name(body.node_id), body.what))
            case PackageBuilt():
                self.failed_builds += not body.ok
            case JobAssigned(job_id=job_id) if job_id in self.packages:
                package = self._move(job_id, DELEGATED)
                package.holder, package.begun = self._name(body.node_id), False
            case JobStarted(job_id=job_id) if job_id in self.packages:
                self.packages[job_id].begun = True
            case JobRequeued(job_id=job_id) if job_id in self.packages:
                self._return(job_id, NEEDED, body.reason)
            case JobBlocked(job_id=job_id) if job_id in self.packages:
                self._block(body)
            case JobReady(job_id=job_id) if job_id in self.packages:
                if self.packages[job_id].stands == BLOCKED:
                    self.ready.append(self._move(job_id, NEEDED).name)
            case JobEnded(job_id=job_id) if job_id in self.packages:
                done = body.status is JobStatus.COMPLETED
                package = self._move(job_id, RECEIVED if done else DROPPED)
                if done:
                    package.built_at = trio.current_time()
                    if package.returns:
                        self.built.append(package)

    def _name(self, node_id: str) -> str:
        return self.builders.get(node_id, node_id.removeprefix(OUTSIDE))

    def _move(self, job_id: str, stands: str) -> Package:
        package = self.packages[job_id]
        self.stands[package.stands] -= 1
        self.stands[stands] += 1
        package.stands = stands
        return package

    def _return(self, job_id: str, stands: str, reason: str) -> None:
        package = self._move(job_id, stands)
        package.returns.append(Return(trio.current_time(), package.holder, package.begun, reason))
        self.returned[package.holder, reason].append(package.name)

    def _block(self, body: JobBlocked) -> None:
        """A package that is put aside is blocked for good, as far as a story goes."""
        if body.attempt_id is not None:
            self._return(body.job_id, BLOCKED, body.error)
        self.blocked[body.error].append(self._move(body.job_id, BLOCKED).name)
