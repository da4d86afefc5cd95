"""What the runner does with attempts, without its socket: start, watch, end, remember.

The order of things is the promise: an id is in the journal before its process is, an end is on the
disk before it is told, and it is forgotten only after the daemon acknowledged it. An id is started
once.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
from itertools import islice
from typing import Any

from swarmd.runner import trees
from swarmd.runner.attempts import CLEAR_S_MAX, Attempt, end_unstarted
from swarmd.runner.burial import bury
from swarmd.runner.cgroups import Cgroups
from swarmd.runner.journal import Journal
from swarmd.runner.orders import NS_PER_MS, Order, lease_end_ns
from swarmd.runner.pipes import Pipes
from swarmd.runner.starter import Deaths, Starter

STRAYS_TICK_NS = 250 * NS_PER_MS
TICK_NS = 10_000 * NS_PER_MS
"""A look at everything though nothing is due, as a last resort."""
CLEAR_TICK_NS = 10 * NS_PER_MS
JOURNAL_RETRY_NS = 1000 * NS_PER_MS
LEASE_TICK_NS = 250 * NS_PER_MS
"""With leases out nobody sleeps longer: the kernel's timers stand still while the machine is
suspended, and a lease that ran out meanwhile must be seen when it wakes."""
LEASE_GRACE_MS = 500
"""Between SIGTERM and SIGKILL when a lease ran out: half of the second that is left until the swarm
gives the work away."""
STARTS_PER_TURN = 8
GATHER_NS = 10 * NS_PER_MS
"""While attempts wait for a place, what became of others is written and told this often."""
HELD_MAX = 8192
FILES_PER_ATTEMPT = 13
"""Two pipes and their files, and of its cgroups the ways in, the events, bounds and counts."""
FILES_SPARE = 600
"""Connections, the pools of groups, and whatever is open for an instant."""
KNOWN_MAX = 16_384


class Core:
    def __init__(
        self, journal: Journal, cgroups: Cgroups, epoll: select.epoll, now_ns: int
    ) -> None:
        self.journal = journal
        self.cgroups = cgroups
        self.waiting: dict[int, Order] = {}
        self.running: dict[int, Attempt] = {}
        self.news: dict[int, None] = dict.fromkeys(journal.ended)
        """Attempts of which the daemon is to be told, in order; whatever is true when it is."""
        self.draining = False
        """Nothing more is started; the process ends when nothing runs."""
        self.trouble = journal.damage
        self.pipes = Pipes(epoll)
        self.starter = Starter(cgroups, epoll)
        self._mains: dict[int, Attempt] = {}
        self._clearing: dict[int, Attempt] = {}
        self._strays: dict[int, set[int]] = {}
        """Orphans that cannot be told apart (no cgroup): killed with the last that may own them."""
        self._started: list[tuple[int, int]] = []
        self._ends: dict[int, str] = bury(journal, now_ns)
        self._acks: list[int] = []
        self._tick_ns = TICK_NS if cgroups.unified else STRAYS_TICK_NS
        self._next_ns = now_ns
        self._waiting_lease_ns: int | None = None
        """No lease of what waits for a place runs out before."""
        self._leased = False
        """Some of what is held may have a lease."""
        self._commit_ns = now_ns
        """What is gathered is written and told then."""
        self._retry_ns = 0
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # Beyond this they wait for one another.
        self._files_max = max(8, (files - FILES_SPARE) // FILES_PER_ATTEMPT)
        self._running_max = self._files_max

    # -- requests --------------------------------------------------------------------------------

    def start(
        self, raws: list[Any], now_ns: int
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Take orders in; answer what was refused and what is known already."""
        refused, known = [], []
        for raw in raws:
            attempt_id = raw.get("id") if type(raw) is dict else None
            try:
                if type(raw) is not dict:
                    raise ValueError("an order is an object")
                order = Order(raw, f"{self.journal.key}-{attempt_id}", now_ns)
                standing = self.standing(order.id)
                if standing is not None:
                    known.append(standing)
                    continue
                self._admit(order)
            except ValueError as exc:
                refused.append({"id": attempt_id, "error": str(exc)})
        return refused, known

    def bound_running(self, slots: int) -> None:
        """So many run at once from here on; what is ordered beyond waits its turn."""
        self._running_max = max(1, min(self._files_max, slots))

    def _admit(self, order: Order) -> None:
        if order.id in self.journal.acked or order.id in self._acks:
            raise ValueError("this attempt has ended, and its end was acknowledged")
        if self.draining:
            raise ValueError("the runner is ending; start it again for new attempts")
        if not self.starter.may_start(order.uid):
            raise ValueError("uid: only a runner that is root can start jobs as another account")
        if len(self.waiting) + len(self.running) >= HELD_MAX:
            raise ValueError(f"the runner holds {HELD_MAX} attempts; wait for an end")
        if len(self.journal.ended) + len(self._ends) >= KNOWN_MAX:
            raise ValueError(f"{KNOWN_MAX} ends are not acknowledged; acknowledge some first")
        self.waiting[order.id] = order
        self._note_waiting_lease(order.lease_ns)

    def standing(self, attempt_id: int) -> dict[str, Any] | None:
        if attempt_id in self.running:
            return self.running[attempt_id].standing()
        if attempt_id in self.waiting:
            return {"id": attempt_id, "status": "waiting"}
        if attempt_id in self.journal.ended or attempt_id in self._ends:
            return {"id": attempt_id, "status": "ended"}
        return None

    def known(self) -> list[int]:
        return [*self.waiting, *self.running, *self._ends, *self.journal.ended]

    def stop(
        self, ids: list[int] | None, grace_ms: int | None, reason: str, now_ns: int
    ) -> list[int]:
        """End attempts; answer which are not there to be ended."""
        unknown = []
        for attempt_id in [*self.waiting, *self.running] if ids is None else ids:
            if attempt_id in self.waiting:
                del self.waiting[attempt_id]
                self._ends[attempt_id] = end_unstarted(attempt_id, reason, "", now_ns)
            elif attempt_id in self.running:
                attempt = self.running[attempt_id]
                grace = attempt.order.grace_ms if grace_ms is None else grace_ms
                attempt.end(reason, grace, now_ns)
                self._wake_by(attempt.due_ns())
            elif self.standing(attempt_id) is None:
                unknown.append(attempt_id)
        return unknown

    def renew(self, ids: list[int], lease_ms: int, from_ns: object, now_ns: int) -> list[int]:
        """Set when leases run out, sooner or later than before; answer which are not there."""
        unknown = []
        end_ns = lease_end_ns(lease_ms, from_ns, now_ns)
        for attempt_id in ids:
            if attempt_id in self.running:
                self.running[attempt_id].lease_ns = end_ns
                self._leased = True
                self._wake_by(end_ns)
            elif attempt_id in self.waiting:
                self.waiting[attempt_id].lease_ns = end_ns
                self._note_waiting_lease(end_ns)
            else:
                unknown.append(attempt_id)
        return unknown

    def _note_waiting_lease(self, lease_ns: int | None) -> None:
        if lease_ns is None:
            return
        self._leased = True
        if self._waiting_lease_ns is None or lease_ns < self._waiting_lease_ns:
            self._waiting_lease_ns = lease_ns

    def acknowledge(self, ids: list[int]) -> None:
        for attempt_id in ids:
            if attempt_id in self.journal.ended:
                self._acks.append(attempt_id)
                self.news.pop(attempt_id, None)

    def told(self, attempt_id: int) -> tuple[str, str | list[int]] | None:
        """What there is to tell of an attempt now: its end as JSON, or its start."""
        text = self.journal.ended.get(attempt_id)
        if text is not None:
            return "ended", text
        attempt = self.running.get(attempt_id)
        if attempt is not None and attempt.pid:
            return "started", [attempt_id, attempt.pid, attempt.started_ns]
        return None

    # -- a turn of the loop ----------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running or self._ends or self._acks)

    def sleep_ns(self, now_ns: int) -> int | None:
        """How long the loop may sleep; None where only an event can bring something."""
        if self.waiting and len(self.running) < self._running_max:
            return 0
        dues = [self._next_ns] if self.running else []
        if self._leased and self.running:
            dues.append(now_ns + LEASE_TICK_NS)
        if self.waiting and self._waiting_lease_ns is not None:
            dues.append(self._waiting_lease_ns)
        if self._ends or self._acks or self._started:
            dues.append(max(self._commit_ns, self._retry_ns))
        return max(0, min(dues) - now_ns) if dues else None

    def turn(self, now_ns: int, *, reap: bool) -> None:
        """Everything that is due: starts, deaths, deadlines, and one write for all of it."""
        if self._waiting_lease_ns is not None and now_ns >= self._waiting_lease_ns:
            self._expire_waiting(now_ns)
        if self.waiting and len(self.running) < self._running_max:
            self._start_some(now_ns)
        if reap or self.running:
            self._reap(now_ns)
        self.pipes.watch_due(now_ns)
        if now_ns >= self._next_ns and self.running:
            self._tick(now_ns)
        if self._ends or self._acks or self._started:
            # A sync and a word to the daemon for each would cost a third of what a short job does.
            gather = self.waiting and not self.draining
            if now_ns >= self._retry_ns and (not gather or now_ns >= self._commit_ns):
                self._commit(now_ns)
                self._commit_ns = now_ns + GATHER_NS

    def _expire_waiting(self, now_ns: int) -> None:
        """What has not been started when its lease runs out never is: it is somebody else's."""
        self._waiting_lease_ns = None
        for order in list(self.waiting.values()):
            if order.lease_ns is not None and now_ns >= order.lease_ns:
                del self.waiting[order.id]
                self._ends[order.id] = end_unstarted(order.id, "lease", "", now_ns)
            else:
                self._note_waiting_lease(order.lease_ns)

    def _start_some(self, now_ns: int) -> None:
        if not self.running:
            self._next_ns = now_ns + self._tick_ns
        room = min(STARTS_PER_TURN, self._running_max - len(self.running))
        ids = list(islice(self.waiting, room))
        uid = os.geteuid()
        orders = [self.waiting[i] for i in ids]
        try:
            self.journal.begin([(o.id, uid if o.uid is None else o.uid, now_ns) for o in orders])
        except OSError as exc:
            self.trouble = f"the exit journal cannot be written: {exc.strerror}"
            for attempt_id in ids:
                del self.waiting[attempt_id]
                error = f"failed to start: {self.trouble}"
                self._ends[attempt_id] = end_unstarted(attempt_id, "start_failed", error, now_ns)
            return
        for order in orders:
            del self.waiting[order.id]
            attempt = Attempt(order, f"{self.journal.key}-{order.id}", now_ns)
            self.running[order.id] = attempt
            try:
                self.starter.start(attempt, now_ns)
            except OSError as exc:
                at = f": {os.fsdecode(exc.filename)}" if exc.filename else ""
                self._fail(attempt, f"{exc.strerror}{at}")
                self._finish(attempt, now_ns)
                continue
            self._mains[attempt.pid] = attempt
            self._started.append((order.id, attempt.pid))
            self.pipes.add(attempt, now_ns)
            self._wake_by(self.pipes.due_ns())
            self._wake_by(attempt.due_ns())

    def _reap(self, now_ns: int) -> None:
        deaths: Deaths = []
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                break
            if pid == 0:
                break
            stopped = os.WIFSTOPPED(status)
            if not stopped:
                deaths.append((pid, status, usage))
            self.starter.reaped(pid, stopped, now_ns)
        deaths += self.starter.deaths()
        for dead_pid, how, spent in deaths:
            attempt = self._mains.pop(dead_pid, None)
            if attempt is None:
                self._strays.pop(dead_pid, None)
                continue
            attempt.status, attempt.usage = how, spent
            if how is None:
                attempt.reason, attempt.error = "lost", "who started it was killed before it told"
            elif how == 127 << 8:
                why = self.starter.failure(dead_pid)
                if why:
                    self._fail(attempt, why)
            if attempt.group is not None and attempt.order.memory_bytes is not None:
                attempt.oom_kills = attempt.group.oom_kills()
                if attempt.oom_kills and os.WIFSIGNALED(how or 0) and not attempt.reason:
                    attempt.reason = "oom"
                elif attempt.oom_kills:
                    attempt.note(f"the kernel killed {attempt.oom_kills} processes for memory")
            if attempt.kill_ns is None:
                attempt.kill_ns = now_ns
            attempt.clear_by_ns = max(now_ns, attempt.kill_ns) + CLEAR_S_MAX * 1000 * NS_PER_MS
            self._clearing[attempt.order.id] = attempt
        for attempt in list(self._clearing.values()):
            self._clear(attempt, now_ns)

    def _clear(self, attempt: Attempt, now_ns: int) -> None:
        """The first process is gone: end what it left behind, then the attempt."""
        assert attempt.kill_ns is not None and attempt.clear_by_ns is not None
        if not attempt.empty(self._mains):
            if now_ns < attempt.clear_by_ns:
                if now_ns >= attempt.kill_ns:
                    attempt.kill()
                self._wake_by(now_ns + CLEAR_TICK_NS)
                return
            attempt.note("some of its processes could not be killed")
            if attempt.group is not None:
                attempt.group.doubtful = True
        del self._clearing[attempt.order.id]
        self._finish(attempt, now_ns)

    def _tick(self, now_ns: int) -> None:
        self._next_ns = now_ns + self._tick_ns
        self._wake_by(self.pipes.due_ns())
        for attempt in list(self.running.values()):
            due_ns = attempt.due_ns()
            if due_ns is not None and now_ns >= due_ns:
                if attempt.timeout_ns is not None and now_ns >= attempt.timeout_ns:
                    attempt.timeout_ns = None
                    attempt.end("timeout", attempt.order.grace_ms, now_ns)
                if attempt.lease_ns is not None and now_ns >= attempt.lease_ns:
                    attempt.lease_ns = None
                    grace_ms = min(attempt.order.grace_ms, LEASE_GRACE_MS)
                    attempt.end("lease", grace_ms, now_ns)  # shortens a longer grace as well
                due_ns = attempt.due_ns()
            if attempt.kill_ns is not None and now_ns >= attempt.kill_ns:
                if attempt.status is None:
                    attempt.kill()
                    attempt.kill_ns = now_ns + 2 * CLEAR_TICK_NS
                    self._wake_by(attempt.kill_ns)
                else:
                    self._clear(attempt, now_ns)
            else:
                self._wake_by(due_ns)
        if not self.cgroups.unified:
            self._watch_strays()

    def _watch_strays(self) -> None:
        """Orphans of unknown parentage belong to one of those that ran when they appeared."""
        for pid in trees.own_children():
            if pid not in self._mains and pid not in self._strays:
                self._strays[pid] = set(self.running)

    def _end_strays(self) -> None:
        self._watch_strays()
        lost = {pid for pid, owners in self._strays.items() if not owners & self.running.keys()}
        for pid in trees.with_descendants(trees.scan(), lost) if lost else ():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def _fail(self, attempt: Attempt, why: str) -> None:
        attempt.reason, attempt.error = "start_failed", f"failed to start: {why}"

    def _finish(self, attempt: Attempt, now_ns: int) -> None:
        self.pipes.close(attempt)
        del self.running[attempt.order.id]
        if attempt.group is not None:
            self.cgroups.close(attempt.group)
        elif not self.cgroups.unified:
            self._end_strays()
        self._leased = self._leased and bool(self.running or self.waiting)
        self._ends[attempt.order.id] = attempt.record(now_ns)

    def _commit(self, now_ns: int) -> None:
        ends, acks = self._ends, self._acks
        self.news.update((attempt_id, None) for attempt_id, _ in self._started)
        try:
            try:
                self.journal.commit(self._started, ends, acks)
            except OSError:
                # What the file holds now is unknown: a new one, of what is known.
                self.journal.compact()
                self.journal.commit(self._started, ends, acks)
        except OSError as exc:
            self.trouble = f"the exit journal cannot be written: {exc.strerror}"
            self._retry_ns = now_ns + JOURNAL_RETRY_NS
            return
        for attempt_id in ends:
            self.news.pop(attempt_id, None)
            self.news[attempt_id] = None
        self._started, self._ends, self._acks = [], {}, []

    def _wake_by(self, at_ns: int | None) -> None:
        if at_ns is not None and at_ns < self._next_ns:
            self._next_ns = at_ns
