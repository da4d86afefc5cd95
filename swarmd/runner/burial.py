"""Burial: what a runner that was killed left behind is ended, before anything new begins."""

from __future__ import annotations

import contextlib
import os
import signal

from swarmd.runner import trees
from swarmd.runner.attempts import end_unstarted
from swarmd.runner.journal import Began, Journal
from swarmd.runner.orders import NS_PER_MS

LOOKS_MAX = 200
LOOK_EVERY_S = 0.01


def bury(journal: Journal, now_ns: int) -> dict[int, str]:
    """The ends, lost, of all that the journal knows to have begun."""
    here = {i: b for i, b in journal.began.items() if b.boot_id == journal.boot_id}
    for _ in range(LOOKS_MAX if here else 0):
        left = _remnants(here, journal.key)
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            break
        signal.sigtimedwait((), LOOK_EVERY_S)
    ends = {}
    for attempt_id in journal.began:
        killed = attempt_id in here
        error = "the runner that held it was killed" if killed else "the machine was restarted"
        ends[attempt_id] = end_unstarted(attempt_id, "lost", error, now_ns)
    return ends


def _remnants(began: dict[int, Began], key: str) -> set[int]:
    """Processes by their attempt's tag, or in the session that an attempt's process opened."""
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
