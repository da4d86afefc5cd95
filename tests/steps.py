"""How long tasks hold the loop, in time that this thread computes: not while others do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Steps(trio.abc.Instrument):
    """The longest step of the tasks whose names begin in one of these ways; without any, of all."""

    def __init__(self, *names: str) -> None:
        self.longest_s = 0.0
        self._names = names or ("",)
        self._began = time.thread_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name.startswith(self._names):
            self.longest_s = max(self.longest_s, time.thread_time() - self._began)


@contextmanager
def measured(*names: str) -> Iterator[Steps]:
    steps = Steps(*names)
    trio.lowlevel.add_instrument(steps)
    try:
        yield steps
    finally:
        trio.lowlevel.remove_instrument(steps)
