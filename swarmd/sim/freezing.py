"""Processes that are stopped, as by SIGSTOP: their tasks get no turn, and what comes waits.

All processes of a world are tasks of one Trio run. Whatever wakes a task of a stopped one takes its
place in Trio's queue away again; it gets it back when the process goes on, or is killed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress

import trio
import trio._core._run as trio_run

DATAGRAMS_MAX = 800
"""As many small ones as the kernel keeps in a buffer of 1 MiB; it counts their headers too."""


class Gate:
    """What comes to one process from without: at once, or when it goes on."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] | None = None
        self._datagrams = 0

    @property
    def shut(self) -> bool:
        return self._waiting is not None

    def __call__(self, then: Callable[[], None]) -> None:
        if self._waiting is None:
            then()
        else:
            self._waiting.append(then)

    def datagram(self, then: Callable[[], None]) -> None:
        """One more than the kernel keeps is dropped."""
        if self._waiting is None:
            then()
        elif self._datagrams < DATAGRAMS_MAX:
            self._datagrams += 1
            self._waiting.append(then)

    def close(self) -> None:
        if self._waiting is None:
            self._waiting, self._datagrams = deque(), 0

    def open(self) -> None:
        waiting, self._waiting = self._waiting, None
        for then in waiting or ():
            then()

    def forget(self) -> None:
        """The process is gone, and what waited for it."""
        self._waiting = None


class Freezer(trio.abc.Instrument):
    """Of one world: which processes are stopped, and which of their tasks want a turn."""

    def __init__(self) -> None:
        self._roots: dict[trio.lowlevel.Task, Gate] = {}
        self._held: dict[Gate, list[trio.lowlevel.Task]] = {}

    def enrol(self, gate: Gate) -> None:
        """From now on this task, and all below it, are the process behind the gate."""
        self._roots[trio.lowlevel.current_task()] = gate

    def dismiss(self) -> None:
        """This task is a process no more."""
        self.let_go(self._roots.pop(trio.lowlevel.current_task()))

    def freeze(self, gate: Gate) -> None:
        if gate in self._held:
            return
        if not self._held:
            trio.lowlevel.add_instrument(self)
        self._held[gate] = []
        gate.close()

    def thaw(self, gate: Gate) -> None:
        """Go on: what came meanwhile comes now."""
        self.let_go(gate)
        gate.open()

    def end(self) -> None:
        """Of the world: whoever is stopped has turns again, and what waited for it is lost."""
        for gate in list(self._held):
            self.let_go(gate)
            gate.forget()

    def let_go(self, gate: Gate) -> None:
        """Its tasks have their turns again; what waits at the gate stays there."""
        queue = trio_run.GLOBAL_RUN_CONTEXT.runner.runq
        queue.extend(self._held.pop(gate, ()))
        if not self._held:
            with suppress(KeyError):  # nobody was stopped
                trio.lowlevel.remove_instrument(self)

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        gate = self._gate_of(task)
        if gate is not None and (held := self._held.get(gate)) is not None:
            taken = trio_run.GLOBAL_RUN_CONTEXT.runner.runq.pop()
            assert taken is task, "who was woken last stands last"
            held.append(task)

    def _gate_of(self, task: trio.lowlevel.Task | None) -> Gate | None:
        while task is not None:
            if task in self._roots:
                return self._roots[task]
            nursery = task.parent_nursery
            task = None if nursery is None else nursery.parent_task
        return None
