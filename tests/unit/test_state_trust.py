"""What the state keeps of trust: founded once, sealed things by revision, tokens that end."""

from __future__ import annotations

import pytest

from swarmd.domain.errors import Conflict, Invalid, NotFound
from swarmd.domain.jobs import NodeId
from swarmd.state import commands as c
from swarmd.state import queries as q
from swarmd.state.commands import SEALED_BYTES_MAX
from swarmd.state.rules.trust import TOKENS_MAX, TTL_MS_MAX
from tests.unit.test_state_jobs import State

N1, N2 = NodeId("n1"), NodeId("n2")
HASH = bytes(32)


@pytest.fixture
def state() -> State:
    state = State()
    state.node("n1")
    return state


def found(state: State, authority: bytes = b"first") -> bytes:
    return bytes(state.apply(c.FoundTrust(authority, {"a": b"1", "b": b"2"}, N1, b"box")))


def known(state: State) -> q.Trust:
    trust = state.ask(q.GetTrust())
    assert isinstance(trust, q.Trust)
    return trust


def test_a_swarm_is_founded_once(state: State) -> None:
    assert found(state) == b"first"
    assert found(state, b"second") == b"first"
    trust = known(state)
    assert trust.authority == b"first" and trust.boxes == {N1: b"box"}
    assert {name: s.sealed for name, s in trust.secrets.items()} == {"a": b"1", "b": b"2"}


def test_what_is_sealed_is_replaced_by_who_knew_it_alone(state: State) -> None:
    first = state.apply(c.PutSecret("k", b"1", 0))
    with pytest.raises(Conflict, match="by another"):
        state.apply(c.PutSecret("k", b"2", 0))
    second = state.apply(c.PutSecret("k", b"2", first))
    assert second > first
    with pytest.raises(Conflict):
        state.apply(c.PutSecret("k", b"3", first))
    assert known(state).secrets["k"] == q.Sealed(b"2", second)
    with pytest.raises(Invalid, match="at most"):
        state.apply(c.PutSecret("k", bytes(SEALED_BYTES_MAX + 1), second))


def test_boxes_are_for_nodes_that_are_there(state: State) -> None:
    assert state.apply(c.PutWraps({N1: b"x", N2: b"y"}, (), 1)) == 1
    assert known(state).boxes == {N1: b"x"}
    assert state.apply(c.PutWraps({}, (N1, N2), 1)) == 1
    assert known(state).boxes == {}
    with pytest.raises(Conflict, match="another term"):
        state.apply(c.PutWraps({N1: b"x"}, (), 7), term=2)


def test_a_node_that_is_removed_can_open_nothing_any_more(state: State) -> None:
    found(state)
    assert state.apply(c.RemoveNode(N1, 5, 10)) == 0
    assert known(state).boxes == {} and known(state).gone == {N1}


def test_tokens_end_and_are_few(state: State) -> None:
    ends = state.apply(c.PutToken(HASH, 1000))
    assert ends == state.now + 1000
    assert known(state).tokens == {HASH: ends}
    state.now = ends
    state.apply(c.PutToken(b"n" * 32, 1000))
    assert set(known(state).tokens) == {b"n" * 32}
    for number in range(TOKENS_MAX - 1):
        state.apply(c.PutToken(number.to_bytes(32, "big"), 1000))
    with pytest.raises(Conflict, match="--rotate"):
        state.apply(c.PutToken(b"o" * 32, 1000))
    state.apply(c.PutToken(b"p" * 32, 1000, alone=True))
    assert set(known(state).tokens) == {b"p" * 32}
    assert state.apply(c.DropTokens()) == 1
    with pytest.raises(NotFound):
        state.apply(c.DropTokens())


@pytest.mark.parametrize(
    "command",
    [c.PutToken(b"short", 1000), c.PutToken(HASH, 0), c.PutToken(HASH, TTL_MS_MAX + 1)],
)
def test_a_token_that_makes_no_sense_is_refused(state: State, command: c.PutToken) -> None:
    with pytest.raises(Invalid):
        state.apply(command)
    assert known(state).tokens == {}
