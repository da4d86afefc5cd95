"""Terminals: each begins and ends once, and what is kept of them stays within its bounds."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from swarmd.domain.actors import Actor
from swarmd.domain.errors import Conflict, Invalid, NotFound
from swarmd.domain.events import TerminalBegun, TerminalEnded
from swarmd.domain.jobs import NodeId
from swarmd.domain.terminals import KEPT_BYTES_MAX, KEPT_MAX, KEPT_MS, Terminal, TerminalEnd
from swarmd.state import commands as c
from swarmd.state import terminal_commands as t
from swarmd.state import terminal_queries as tq
from tests.unit.test_state_builds import Builds

MINUTE_MS = 60_000
SHA = "d" * 64


class Terminals(Builds):
    def __init__(self) -> None:
        super().__init__()
        self.drone = self.builder("drone-01")

    def begin(self, id: str = "one", via: str = "n1", **fields: object) -> Terminal:
        asked = Terminal(
            id, self.drone, "not its name", "10.0.0.1", "root", "not who asks", "", NodeId(via), via
        )
        return self.apply(  # type: ignore[no-any-return]
            t.BeginTerminal(msgspec.structs.replace(asked, **fields))
        )

    def end(self, id: str = "one", sha256: str | None = None, size_bytes: int = 100) -> Terminal:
        if sha256 is not None:
            self.apply(c.AddBlob(sha256, size_bytes, NodeId("n1")))
        return self.apply(  # type: ignore[no-any-return]
            t.EndTerminal(id, TerminalEnd.EXITED, 3, sha256)
        )

    def kept(self) -> list[str]:
        return [terminal.id for terminal in self.ask(tq.ListTerminals())]


@pytest.fixture
def state() -> Iterator[Terminals]:
    made = Terminals()
    yield made
    made.check_counts()
    made.conn.close()


def test_it_is_told_who_has_it_and_when_and_how_it_ended(state: Terminals) -> None:
    begun = state.begin()
    assert (begun.name, begun.by, begun.began_at) == ("drone-01", "t", state.now)
    (told,) = state.events
    assert told.body == TerminalBegun(state.drone, "one", "drone-01", "root", NodeId("n1"))
    assert told.actor == Actor("t", "test")
    assert state.ask(tq.ListOpenTerminals(NodeId("n1"))) == [begun]
    assert state.ask(tq.ListOpenTerminals(NodeId("n2"))) == []
    state.now += MINUTE_MS
    done = state.end(sha256=SHA)
    assert (done.ended_at, done.end, done.exit_code) == (state.now, TerminalEnd.EXITED, 3)
    assert (done.sha256, done.size_bytes) == (SHA, 100)
    ended = TerminalEnded(state.drone, "one", "exited", MINUTE_MS, 3, SHA)
    assert [event.body for event in state.events] == [ended]
    assert state.ask(tq.FindTerminal("one")) == done
    assert state.ask(tq.ListOpenTerminals(NodeId("n1"))) == []
    assert state.blob(SHA) == (1, False)


def test_what_is_told_twice_counts_once(state: Terminals) -> None:
    state.begin()
    with pytest.raises(Conflict):
        state.begin()
    done = state.end(sha256=SHA)
    assert state.apply(t.EndTerminal("one", TerminalEnd.LOST)) == done
    assert state.events == []
    assert state.blob(SHA) == (1, False)


def test_what_is_not_known_is_refused(state: Terminals) -> None:
    with pytest.raises(NotFound, match="node"):
        state.begin(node_id=NodeId("nobody"))
    with pytest.raises(NotFound, match="terminal"):
        state.end("never")
    with pytest.raises(Invalid):
        state.begin(user="u" * 300)
    state.begin()
    with pytest.raises(NotFound, match="blob"):
        state.apply(t.EndTerminal("one", TerminalEnd.EXITED, 0, "e" * 64))
    assert state.ask(tq.FindTerminal("one")).end is None


def test_the_oldest_go_by_number_by_age_and_by_size(state: Terminals) -> None:
    for number in range(KEPT_MAX + 5):
        state.begin(str(number))
    assert state.kept() == [str(number) for number in reversed(range(5, KEPT_MAX + 5))]
    state.now += KEPT_MS + 1
    state.begin("young")
    assert state.kept() == ["young"]
    state.end("young", "a" * 64, KEPT_BYTES_MAX // 2)
    state.begin("next")
    state.end("next", "b" * 64, KEPT_BYTES_MAX // 2)
    assert state.kept() == ["next", "young"]
    state.begin("one more")
    state.end("one more", "c" * 64, 1)
    assert state.kept() == ["one more", "next"]
    assert state.blob("a" * 64) == (0, True)  # free to be dropped
    assert state.blob("b" * 64) == (1, False)


def test_the_old_ones_are_forgotten_while_nobody_opens_another(state: Terminals) -> None:
    assert state.ask(tq.OldestTerminal()) is None
    for id in ("a", "b", "c"):
        state.begin(id)
        state.end(id, id * 64)
        state.now += MINUTE_MS
    first = state.now - 3 * MINUTE_MS
    assert state.ask(tq.OldestTerminal()) == first
    assert state.apply(t.ForgetTerminals(first, 10, 1)) == 0
    assert state.apply(t.ForgetTerminals(state.now, 2, 1)) == 2
    assert state.kept() == ["c"]
    assert state.blob("a" * 64) == (0, True) and state.blob("c" * 64) == (1, False)
    assert state.apply(t.ForgetTerminals(state.now, 2, 1)) == 1
    assert state.kept() == [] and state.blob("c" * 64) == (0, True)
    with pytest.raises(NotFound):
        state.end("c")


def test_the_newest_is_kept_whatever_its_size(state: Terminals) -> None:
    state.begin()
    state.end(sha256=SHA, size_bytes=KEPT_BYTES_MAX * 2)
    assert state.kept() == ["one"]
