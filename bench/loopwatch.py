"""How long each step of each task keeps Trio's loop, and where: by the request that it worked on.

The wall clock counts, since everyone else waits that long; CPU time beside it tells apart a step
that was long from one that was kept waiting, by another thread or process. Collections of garbage
are counted on their own: they fall on whoever allocates next.
"""

from __future__ import annotations

import gc
import signal
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

import trio

LONG_MS = 5.0


class Longest:
    """The steps of one label, and the longest among them."""

    def __init__(self) -> None:
        self.steps = 0
        self.long = 0
        self.wall_ms = self.cpu_ms = self.gc_ms = 0.0
        """Of the longest step by the wall clock."""
        self.cpu_ms_max = 0.0
        self.stack: list[str] = []

    def facts(self) -> dict[str, Any]:
        return dict(vars(self))


class LoopWatch(trio.abc.Instrument):
    """Give it to trio.run. `label` names what a task works on, as it stands after a step."""

    def __init__(self, label: Callable[[trio.lowlevel.Task], str]) -> None:
        self._label = label
        self._wall = self._cpu = 0.0
        self._gc_began = self._gc_ms = 0.0
        self._stack: list[str] = []
        self.longest: dict[str, Longest] = {}
        gc.callbacks.append(self._on_gc)
        signal.signal(signal.SIGALRM, self._on_alarm)

    def _on_gc(self, phase: str, info: dict[str, int]) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._gc_began = now
        else:
            self._gc_ms += (now - self._gc_began) * 1000

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        """The step is long already: remember where it is, or where the call in C was made."""
        self._stack = [
            f"{entry.filename.rpartition('/')[2]}:{entry.lineno} {entry.name}"
            for entry in traceback.extract_stack(frame, limit=12)
        ]

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._stack = []
        self._gc_ms = 0.0
        signal.setitimer(signal.ITIMER_REAL, LONG_MS / 1000)
        self._wall, self._cpu = time.perf_counter(), time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        wall_ms = (time.perf_counter() - self._wall) * 1000
        cpu_ms = (time.thread_time() - self._cpu) * 1000
        signal.setitimer(signal.ITIMER_REAL, 0)
        label = self._label(task)
        known = self.longest.get(label)
        if known is None:
            known = self.longest[label] = Longest()
        known.steps += 1
        known.cpu_ms_max = max(known.cpu_ms_max, cpu_ms)
        if wall_ms >= LONG_MS:
            known.long += 1
        if wall_ms > known.wall_ms:
            known.wall_ms, known.cpu_ms, known.gc_ms = wall_ms, cpu_ms, self._gc_ms
            known.stack = self._stack
