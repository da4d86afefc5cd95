"""The build swarm's types of events: what each is looked for by is what it is shown as."""

from __future__ import annotations

import msgspec
import pytest

from api.buildswarm.words import _CHANGES, KINDS, TYPES, said
from swarmd.domain.actors import Actor
from swarmd.domain.events import (
    BuilderChanged,
    BuildsControlled,
    CareTaken,
    Event,
    EventBody,
    NodeChanged,
    PackageBuilt,
    PayloadChanged,
    PayloadMoved,
)
from swarmd.domain.jobs import JobId, NodeId
from swarmd.state.event_queries import ListLately
from tests.unit.test_state_jobs import State

ONE, TWO = NodeId("builder/one"), NodeId("builder/two")
PAUSED = BuilderChanged(ONE, "paused")
BODIES: tuple[EventBody, ...] = (
    *(BuilderChanged(ONE, what) for what in (*_CHANGES, "what a newer node says")),
    *(PackageBuilt(JobId("j"), ONE, "a/b-1", ok, 1000) for ok in (True, False)),
    CareTaken(ONE, "begun", "reboot", 3),
    BuildsControlled("pause", "", 1),
    PayloadChanged("config", "1", "a" * 64, "known"),
    PayloadMoved(ONE, "config", "1", "begin", True),
)


def state_of(*bodies: EventBody) -> State:
    """Each a millisecond after the other."""
    state = State()
    for seq, body in enumerate(bodies, 1):
        packed = msgspec.msgpack.encode(Actor("t", "test")), msgspec.msgpack.encode(body)
        state.conn.execute("INSERT INTO events VALUES (?,?,?,?,?,x'')", (seq, seq, seq, *packed))
    return state


def seqs(state: State, query: ListLately) -> list[int]:
    found: list[Event] = state.ask(query)
    return [event.seq for event in found]


@pytest.mark.parametrize("type_", TYPES)
def test_a_type_is_looked_for_by_what_is_shown_as_such(type_: str) -> None:
    kinds, only = TYPES[type_]
    assert {type(body).__name__ for body in BODIES} == {*KINDS}
    events = state_of(*BODIES).ask(ListLately(KINDS, 100, 100))
    wanted = [event.seq for event in events if said(event, {})[0] == type_]
    assert wanted and len(events) == len(BODIES)
    state = state_of(*BODIES, NodeChanged(ONE, "joined"))
    assert seqs(state, ListLately(kinds, 100, 100, only=only)) == wanted


def test_a_limit_counts_what_fits_and_a_scan_what_there_is() -> None:
    registered = BuilderChanged(ONE, "joined"), BuilderChanged(TWO, "online")
    state = state_of(*registered, *[PAUSED] * 50, *registered, *[PAUSED] * 50)
    kinds, only = TYPES["register"]
    for limit, found in ((1, [54]), (3, [54, 53, 2]), (9, [54, 53, 2, 1])):
        assert seqs(state, ListLately(kinds, limit, 1000, only=only)) == found
    for scan, found in ((50, []), (51, [54]), (103, [54, 53, 2])):
        assert seqs(state, ListLately(kinds, 9, scan, only=only)) == found
    assert seqs(state, ListLately(kinds, 9, 1000, since=53, only=only)) == [54, 53]
    assert seqs(state, ListLately(kinds, 9, 1000, about=ONE, only=only)) == [53, 1]
    assert seqs(state, ListLately(("BuilderChanged",), 1, 1000, about=TWO)) == [54]
