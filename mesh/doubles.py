"""One process an id: of two that prove the same one, whoever was here first stays while it answers.

A node that was started again and the copy of a data directory look alike when they come: another
process than the one that is known. Only that one's answer, or its silence, tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from mesh.connection import Connection
from mesh.frames import Broken, same_process
from mesh.greeting import Met

DOUBLE = "double"
"""The code of the refusal."""
WAITING_MAX = 8
"""Newcomers of one id, for the answer of who is here under it."""


class _Question:
    """Put to a process; all who came under its id meanwhile wait for what becomes of it."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.answered_at = ""
        """Where it is; empty where it gave no sign."""
        self.waiting = 0


class Doubles:
    def __init__(
        self,
        standing: Callable[[str], Sequence[Connection]],
        answer_s_max: float,
        nursery: trio.Nursery,
    ) -> None:
        self._standing = standing
        self._answer_s_max = answer_s_max
        self._nursery = nursery
        self._questions: dict[str, _Question] = {}
        self._arriving: dict[str, list[Met]] = {}

    async def let_in(self, met: Met) -> None:
        """Returns when no other process is here under its id; nothing comes between the last look
        and the return. Raises Broken."""
        while others := [c for c in self._standing(met.peer) if _another(c.met, met)]:
            if at := await self._ask(met.peer, others):
                raise _double(met.peer, at)
        for other in self._arriving.get(met.peer, ()):
            if _another(other, met):
                raise _double(met.peer, other.address)

    @contextmanager
    def arriving(self, met: Met) -> Iterator[None]:
        """It was let in, and its connection does not stand yet."""
        same = self._arriving.setdefault(met.peer, [])
        same.append(met)
        try:
            yield
        finally:
            same.remove(met)
            if not same and self._arriving.get(met.peer) is same:
                del self._arriving[met.peer]

    async def _ask(self, peer: str, others: Sequence[Connection]) -> str:
        question = self._questions.get(peer)
        if question is None:
            question = self._questions[peer] = _Question()
            self._nursery.start_soon(self._put, question, peer, others)
        if question.waiting >= WAITING_MAX:
            raise Broken("busy", f"too many come under the id {peer} at once")
        question.waiting += 1
        try:
            await question.over.wait()
        finally:
            question.waiting -= 1
        return question.answered_at

    async def _put(self, question: _Question, peer: str, others: Sequence[Connection]) -> None:
        """To all of its connections at once: one that answers is enough."""

        async def put(connection: Connection) -> None:
            if await connection.answers(self._answer_s_max):
                question.answered_at = connection.met.address
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for connection in others:
                nursery.start_soon(put, connection)
        if not question.answered_at:
            for connection in others:
                connection.close("superseded", f"{peer} is another process now")
            for connection in others:
                await connection.lost.wait()
        del self._questions[peer]
        question.over.set()


def _another(one: Met, other: Met) -> bool:
    return not same_process(one.hello, other.hello)


def _double(peer: str, at: str) -> Broken:
    return Broken(
        DOUBLE,
        f"another process runs under the id {peer}, and answers at {at}: was its data directory"
        " copied?",
    )
