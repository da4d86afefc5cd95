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
from swarmd.runner.attempts import CLEAR_S_MAX, NS_PER_MS, Attempt, end_unstarted
from swarmd.runner.cgroups import Cgroups
from swarmd.runner.journal import Began, Journal
from swarmd.runner.launchers import (
    LAUNCHERS_MAX,
    PAUSE_NS,
    Account,
    Launcher,
    LauncherLostError,
    unreaped,
)  # fmt: skip
from swarmd.runner.orders import Order
from swarmd.runner.outputs import Output
from swarmd.runner.spawn import Spawner, request_of

STRAYS_TICK_NS = 250 * NS_PER_MS
TICK_NS = 10_000 * NS_PER_MS
"""A look at everything though nothing is due, as a last resort."""
CLEAR_TICK_NS = 10 * NS_PER_MS
JOURNAL_RETRY_NS = 1000 * NS_PER_MS
STARTS_PER_TURN = 8
HELD_MAX = 8192
FILES_PER_ATTEMPT = 13
"""Two pipes and their files, and of its cgroups the ways in, the events, bounds and counts."""
FILES_SPARE = 600
"""Connections, the pools of groups, and whatever is open for an instant."""
KNOWN_MAX = 16_384
PAUSED_MAX = 1024


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
        self.outputs: dict[int, Output] = {}
        """By the pipe that the loop's epoll watches."""
        self._epoll = epoll
        self._spawner = Spawner()
        self._mains: dict[int, Attempt] = {}
        self._clearing: dict[int, Attempt] = {}
        self.launchers: dict[int, Launcher] = {}
        """By the socket that the loop's epoll watches."""
        self._launchers: dict[Account, Launcher] = {}
        self._paused_ns: dict[Account, int] = {}
        self._deaths: list[tuple[int, int | None, Any]] = []
        self._strays: dict[int, set[int]] = {}
        """Orphans that cannot be told apart (no cgroup): killed with the last that may own them."""
        self._started: list[tuple[int, int]] = []
        self._ends: dict[int, str] = {}
        self._acks: list[int] = []
        self._tick_ns = TICK_NS if cgroups.unified else STRAYS_TICK_NS
        self._next_ns = now_ns
        self._retry_ns = 0
        self._privileged = os.geteuid() == 0
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # Beyond this they wait for one another.
        self._files_max = max(8, (files - FILES_SPARE) // FILES_PER_ATTEMPT)
        self._running_max = self._files_max
        self._bury(now_ns)

    # -- requests --------------------------------------------------------------------------------

    def start(self, raws: list[Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Take orders in; answer what was refused and what is known already."""
        refused, known = [], []
        for raw in raws:
            attempt_id = raw.get("id") if type(raw) is dict else None
            try:
                if type(raw) is not dict:
                    raise ValueError("an order is an object")
                order = Order(raw, f"{self.journal.key}-{attempt_id}")
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
        if order.uid is not None and not self._privileged and order.uid != os.geteuid():
            raise ValueError("uid: only a runner that is root can start jobs as another account")
        if len(self.waiting) + len(self.running) >= HELD_MAX:
            raise ValueError(f"the runner holds {HELD_MAX} attempts; wait for an end")
        if len(self.journal.ended) + len(self._ends) >= KNOWN_MAX:
            raise ValueError(f"{KNOWN_MAX} ends are not acknowledged; acknowledge some first")
        self.waiting[order.id] = order

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

    def renew(self, ids: list[int], lease_ms: int, now_ns: int) -> list[int]:
        unknown = []
        for attempt_id in ids:
            if attempt_id in self.running:
                self.running[attempt_id].lease_ns = now_ns + lease_ms * NS_PER_MS
                self._wake_by(self.running[attempt_id].lease_ns)
            elif attempt_id in self.waiting:
                self.waiting[attempt_id].lease_ms = lease_ms
            else:
                unknown.append(attempt_id)
        return unknown

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
        if self._ends or self._acks:
            return max(0, self._retry_ns - now_ns)
        if self.waiting and len(self.running) < self._running_max:
            return 0
        return max(0, self._next_ns - now_ns) if self.running else None

    def turn(self, now_ns: int, *, reap: bool) -> None:
        """Everything that is due: starts, deaths, deadlines, and one write for all of it."""
        if self.waiting and len(self.running) < self._running_max:
            self._start_some(now_ns)
        if reap or self.running:
            self._reap(now_ns)
        if now_ns >= self._next_ns and self.running:
            self._tick(now_ns)
        if (self._ends or self._acks or self._started) and now_ns >= self._retry_ns:
            self._commit(now_ns)

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
                self._launch(attempt, now_ns)
            except OSError as exc:
                at = f": {os.fsdecode(exc.filename)}" if exc.filename else ""
                self._fail(attempt, f"{exc.strerror}{at}")
                self._finish(attempt, now_ns)
                continue
            self._mains[attempt.pid] = attempt
            self._started.append((order.id, attempt.pid))
            self.news[order.id] = None
            self._wake_by(attempt.due_ns())

    def _launch(self, attempt: Attempt, now_ns: int) -> None:
        order = attempt.order
        self._prepare(attempt)
        stdout, stderr = (output.job_end for output in attempt.outputs)
        try:
            group, attempt.notes = self.cgroups.open(order)
            attempt.group = group
            change = order.uid is not None and self._privileged
            if change and self._start_by_launcher(attempt, now_ns):
                return
            for note in group.hold() if group is not None else ():
                attempt.note(note)
            visit = group is not None and not group.limited and self.cgroups.can_visit
            if not (visit or group is None) or change:
                enter = group.enter if group is not None else []
                attempt.pid = self._spawner.fork(order, stdout, stderr, enter)
                return
            with self._spawner.files_of_jobs():
                if group is None:
                    attempt.pid = self._spawner.spawn(order, stdout, stderr)
                    return
                self.cgroups.visit(group)
                try:
                    attempt.pid = self._spawner.spawn(order, stdout, stderr)
                finally:
                    with contextlib.suppress(OSError):
                        self.cgroups.leave(group)
        finally:
            for output in attempt.outputs:
                output.close_job_end()

    def _start_by_launcher(self, attempt: Attempt, now_ns: int) -> bool:
        """False: no launcher could, and certainly none did."""
        order, group = attempt.order, attempt.group
        assert order.uid is not None and order.gid is not None
        if group is None or not self.cgroups.can_send(group, order):
            return False
        launcher = self._launcher((order.uid, order.gid), now_ns)
        if launcher is None:
            return False
        try:
            group.lift()
        except OSError:
            return False
        # Through a descriptor, for the way to it may be closed to the job.
        work = os.open(f"{order.dir}/work", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        failure: OSError | None = None
        try:
            self.cgroups.send(launcher.pid, group)
            try:
                fds = [work, *(output.job_end for output in attempt.outputs)]
                attempt.pid = launcher.start(request_of(order), fds)
            except OSError as exc:
                failure = exc
            self.cgroups.recall(launcher.pid, group)
        except (OSError, LauncherLostError):
            group.kept_for = None
            self._lose_launcher(launcher, now_ns + PAUSE_NS)
            if not attempt.pid and failure is None:
                # What it did not tell of it did not reap: a child would be ours now.
                found = [pid for pid in trees.own_children() if attempt.of_its_group(pid)]
                attempt.pid = found[0] if found else 0
                return bool(found)
        finally:
            for note in group.hold():
                attempt.note(note)
            os.close(work)
        if failure is not None:
            raise failure
        return True

    def _launcher(self, account: Account, now_ns: int) -> Launcher | None:
        found = self._launchers.get(account)
        if found is not None or len(self._launchers) >= LAUNCHERS_MAX:
            return found
        if self._paused_ns.get(account, 0) > now_ns:
            return None
        try:
            launcher = Launcher(account, self._spawner.files)
        except OSError:
            return None
        self._launchers[account] = launcher
        self.launchers[launcher.fileno()] = launcher
        self._epoll.register(launcher.fileno(), select.EPOLLIN)
        return launcher

    def hear_launcher(self, fd: int, now_ns: int) -> None:
        launcher = self.launchers[fd]
        if not launcher.hear():
            self._lose_launcher(launcher, now_ns + PAUSE_NS if launcher.children else now_ns)

    def _lose_launcher(self, launcher: Launcher, paused_ns: int) -> None:
        """It went, idle, or something went wrong with it. Its children are ours, but for those
        that it reaped without having told."""
        del self._launchers[launcher.account], self.launchers[launcher.fileno()]
        self._epoll.unregister(launcher.fileno())
        launcher.kill()
        self._deaths += launcher.deaths
        self._deaths += [(pid, None, None) for pid in launcher.children if not unreaped(pid)]
        if len(self._paused_ns) >= PAUSED_MAX:
            del self._paused_ns[next(iter(self._paused_ns))]
        self._paused_ns[launcher.account] = paused_ns

    def _prepare(self, attempt: Attempt) -> None:
        """The attempt's directory, which the job cannot write, what in it is the job's own, and
        the pipes for what it prints."""
        order = attempt.order
        work = f"{order.dir}/work"
        change = order.uid is not None and self._privileged
        if order.reuse is not None:
            # Empty, and cheaper than a new one: ext4 looks for an inode past all that were freed
            # within half a minute.
            with contextlib.suppress(OSError):
                os.rename(order.reuse, order.dir)
                os.chmod(work, 0o700)
        with contextlib.suppress(FileExistsError):
            os.mkdir(order.dir, 0o711)
        with contextlib.suppress(FileExistsError):
            os.mkdir(work, 0o700)
        if change:
            assert order.uid is not None and order.gid is not None
            os.chown(work, order.uid, order.gid, follow_symlinks=False)
        for name in ("stdout", "stderr"):
            output = Output(order.dir, name, order.log_bytes_max)
            attempt.outputs.append(output)
            if change:
                assert order.uid is not None and order.gid is not None
                output.give_to(order.uid, order.gid)
            self._epoll.register(output.pipe, select.EPOLLIN)
            self.outputs[output.pipe] = output

    def take_output(self, pipe: int, mask: int) -> None:
        """A slice of what came through a pipe; the rest in later turns, after the others'."""
        output = self.outputs[pipe]
        # Only hung up: nobody holds its other end any more, and nothing is left in it.
        if not mask & select.EPOLLIN or output.take() == 0:
            self._forget(output)
            output.close_pipe()

    def _forget(self, output: Output) -> None:
        if self.outputs.pop(output.pipe, None) is not None:
            self._epoll.unregister(output.pipe)

    def _reap(self, now_ns: int) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if not os.WIFSTOPPED(status):
                self._deaths.append((pid, status, usage))
            for launcher in [i for i in self._launchers.values() if i.pid == pid]:
                # One that a job has stopped would never tell of an end.
                launcher.reaped = not os.WIFSTOPPED(status)
                self._lose_launcher(launcher, now_ns + PAUSE_NS if launcher.children else now_ns)
        for launcher in self._launchers.values():
            self._deaths += launcher.deaths
            launcher.deaths = []
        deaths, self._deaths = self._deaths, []
        for dead_pid, how, spent in deaths:
            attempt = self._mains.pop(dead_pid, None)
            if attempt is None:
                self._strays.pop(dead_pid, None)
                continue
            attempt.status, attempt.usage = how, spent
            if how is None:
                attempt.reason, attempt.error = "lost", "who started it was killed before it told"
            elif how == 127 << 8:
                why = self._spawner.failure(dead_pid)
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
        for attempt in list(self.running.values()):
            due_ns = attempt.due_ns()
            if due_ns is not None and now_ns >= due_ns and attempt.kill_ns is None:
                late = attempt.timeout_ns is not None and now_ns >= attempt.timeout_ns
                attempt.end("timeout" if late else "lease", attempt.order.grace_ms, now_ns)
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
        for output in attempt.outputs:
            self._forget(output)
            output.close()
        del self.running[attempt.order.id]
        if attempt.group is not None:
            self.cgroups.close(attempt.group)
        elif not self.cgroups.unified:
            self._end_strays()
        self._ends[attempt.order.id] = attempt.record(now_ns)

    def _commit(self, now_ns: int) -> None:
        ends, acks = self._ends, self._acks
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

    # -- after a runner that was killed ----------------------------------------------------------

    def _bury(self, now_ns: int) -> None:
        """End what a runner before us started and did not see to its end; tell it as lost."""
        began = dict(self.journal.began)
        if not began:
            return
        here = {i: b for i, b in began.items() if b.boot_id == self.journal.boot_id}
        for _ in range(200):
            left = _remnants(here, self.journal.key)
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if not left:
                break
            signal.sigtimedwait((), 0.01)
        for attempt_id in began:
            error = "the runner that held it was killed"
            if attempt_id not in here:
                error = "the machine was restarted"
            self._ends[attempt_id] = end_unstarted(attempt_id, "lost", error, now_ns)


def _remnants(began: dict[int, Began], key: str) -> set[int]:
    """Processes by their attempt's tag, or in the session that an attempt's process opened."""
    if not began:
        return set()
    processes = trees.scan()
    # A start is told in clock ticks, rounded down; an older process is none of ours.
    sessions = {b.pid: b.since_ns - 20 * NS_PER_MS for b in began.values() if b.pid}
    tags = {f"{key}-{attempt_id}" for attempt_id in began}
    roots = {
        pid
        for pid, process in processes.items()
        if process.since_ns >= sessions.get(process.session, process.since_ns + 1)
        or trees.tag_of(pid) in tags
    }
    return trees.with_descendants(processes, roots - {os.getpid()})
