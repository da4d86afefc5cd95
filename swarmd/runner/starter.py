"""Starting attempts: their directories and pipes, their cgroups, and who spawns them.

A job of another account is spawned by the launcher of that account, which is kept for the next one;
where none can be had, or the cgroups do not allow it, the runner forks.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import Any

from swarmd.runner import trees
from swarmd.runner.attempts import Attempt
from swarmd.runner.cgroups import Cgroups
from swarmd.runner.launchers import (
    LAUNCHERS_MAX,
    PAUSE_NS,
    Account,
    Launcher,
    LauncherLostError,
    unreaped,
)  # fmt: skip
from swarmd.runner.outputs import Output
from swarmd.runner.spawn import Spawner, request_of

PAUSED_MAX = 1024

Deaths = list[tuple[int, int | None, Any]]
"""Of a process: its pid, its status as wait tells it, None where nobody can tell any more, and what
it used."""


class Starter:
    def __init__(self, cgroups: Cgroups, epoll: select.epoll) -> None:
        self.launchers: dict[int, Launcher] = {}
        """By the socket that the loop's epoll watches."""
        self._cgroups = cgroups
        self._epoll = epoll
        self._spawner = Spawner()
        self._by_account: dict[Account, Launcher] = {}
        self._paused_ns: dict[Account, int] = {}
        self._deaths: Deaths = []
        self._privileged = os.geteuid() == 0

    def may_start(self, uid: int | None) -> bool:
        return uid is None or self._privileged or uid == os.geteuid()

    def start(self, attempt: Attempt, now_ns: int) -> None:
        """Give it a pid. OSError: it cannot be started; its outputs and group are still to be
        closed."""
        order = attempt.order
        self._prepare(attempt)
        stdout, stderr = (output.job_end for output in attempt.outputs)
        try:
            group, attempt.notes = self._cgroups.open(order)
            attempt.group = group
            change = order.uid is not None and self._privileged
            if change and self._start_by_launcher(attempt, now_ns):
                return
            for note in group.hold() if group is not None else ():
                attempt.note(note)
            visit = group is not None and not group.limited and self._cgroups.can_visit
            if not (visit or group is None) or change:
                enter = group.enter if group is not None else []
                attempt.pid = self._spawner.fork(order, stdout, stderr, enter)
                return
            with self._spawner.files_of_jobs():
                if group is None:
                    attempt.pid = self._spawner.spawn(order, stdout, stderr)
                    return
                self._cgroups.visit(group)
                try:
                    attempt.pid = self._spawner.spawn(order, stdout, stderr)
                finally:
                    with contextlib.suppress(OSError):
                        self._cgroups.leave(group)
        finally:
            for output in attempt.outputs:
                output.close_job_end()

    def _prepare(self, attempt: Attempt) -> None:
        """The attempt's directory, which the job cannot write, what in it is the job's own, and
        the pipes for what it prints."""
        order = attempt.order
        work = f"{order.dir}/work"
        account: Account | None = None
        if order.uid is not None and self._privileged:
            assert order.gid is not None
            account = (order.uid, order.gid)
        if not (order.reuse is not None and _take_over(order.reuse, order.dir)):
            with contextlib.suppress(FileExistsError):
                os.mkdir(order.dir, 0o711)
            with contextlib.suppress(FileExistsError):
                os.mkdir(work, 0o700)
        if account is not None:
            os.chown(work, *account, follow_symlinks=False)
        for name in ("stdout", "stderr"):
            output = Output(order.dir, name, order.log_bytes_max)
            attempt.outputs.append(output)
            if account is not None:
                output.give_to(*account)

    def failure(self, pid: int) -> str:
        """Why a child that exited with 127 never became the program; empty where it did."""
        return self._spawner.failure(pid)

    # -- launchers -------------------------------------------------------------------------------

    def _start_by_launcher(self, attempt: Attempt, now_ns: int) -> bool:
        """False: no launcher could, and certainly none did."""
        order, group = attempt.order, attempt.group
        assert order.uid is not None and order.gid is not None
        if group is None or not self._cgroups.can_send(group, order):
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
            self._cgroups.send(launcher.pid, group)
            try:
                fds = [work, *(output.job_end for output in attempt.outputs)]
                attempt.pid = launcher.start(request_of(order), fds)
            except OSError as exc:
                failure = exc
            self._cgroups.recall(launcher.pid, group)
        except (OSError, LauncherLostError):
            group.kept_for = None
            self._lose(launcher, now_ns + PAUSE_NS)
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
        found = self._by_account.get(account)
        if found is not None or len(self._by_account) >= LAUNCHERS_MAX:
            return found
        if self._paused_ns.get(account, 0) > now_ns:
            return None
        try:
            launcher = Launcher(account, self._spawner.files)
        except OSError:
            return None
        self._by_account[account] = launcher
        self.launchers[launcher.fileno()] = launcher
        self._epoll.register(launcher.fileno(), select.EPOLLIN)
        return launcher

    def hear(self, fd: int, now_ns: int) -> None:
        """What a launcher told of its children."""
        launcher = self.launchers[fd]
        if not launcher.hear():
            self._lose(launcher, now_ns + PAUSE_NS if launcher.children else now_ns)

    def reaped(self, pid: int, stopped: bool, now_ns: int) -> None:
        """A child of the runner's died, or was stopped: a launcher perhaps, and one that a job has
        stopped would never tell of an end."""
        for launcher in [i for i in self._by_account.values() if i.pid == pid]:
            launcher.reaped = not stopped
            self._lose(launcher, now_ns + PAUSE_NS if launcher.children else now_ns)

    def deaths(self) -> Deaths:
        """What launchers told of the ends of jobs since this was asked."""
        deaths, self._deaths = self._deaths, []
        for launcher in self._by_account.values():
            deaths += launcher.deaths
            launcher.deaths = []
        return deaths

    def _lose(self, launcher: Launcher, paused_ns: int) -> None:
        """It went, idle, or something went wrong with it. Its children are ours, but for those
        that it reaped without having told."""
        del self._by_account[launcher.account], self.launchers[launcher.fileno()]
        self._epoll.unregister(launcher.fileno())
        launcher.kill()
        self._deaths += launcher.deaths
        self._deaths += [(pid, None, None) for pid in launcher.children if not unreaped(pid)]
        if len(self._paused_ns) >= PAUSED_MAX:
            del self._paused_ns[next(iter(self._paused_ns))]
        self._paused_ns[launcher.account] = paused_ns


def _take_over(spare: str, directory: str) -> bool:
    """Make an attempt's directory of one that is empty. Cheaper than a new one: ext4 looks for an
    inode past all that were freed within half a minute."""
    try:
        os.rename(spare, directory)
        os.chmod(f"{directory}/work", 0o700)
    except OSError:
        return False
    return True
