"""What a node promises to the others: whom it elects, once, and that what it reads is not stale."""

from __future__ import annotations

import pytest

from mesh.raft import HardState, Message, MessageKind, ReadState
from tests.unit.test_raft_node import node_of, settle, storage_of

K = MessageKind


@pytest.mark.parametrize(
    ("last_term", "last_index", "granted"),
    [
        (1, 3, True),  # as new as its own
        (1, 4, True),
        (2, 2, True),  # shorter, and of a newer term: it may hold what was committed since
        (1, 2, False),
        (0, 9, False),  # longer, and of an older term: what is behind its own may be committed
    ],
)
def test_who_stands_with_an_older_log_is_not_elected(
    last_term: int, last_index: int, granted: bool
) -> None:
    storage = storage_of(1, 2, 3, last=3)
    node = node_of(storage)
    ask = Message(K.VOTE, to=1, sender=2, term=5, log_term=last_term, index=last_index)
    node.step(ask)
    (answer,) = settle(node, storage)
    assert (answer.kind, answer.reject) == (K.VOTE_RESPONSE, not granted)
    assert storage.hard_state.vote == (2 if granted else 0)


def test_one_vote_a_term_also_after_a_restart() -> None:
    storage = storage_of(1, 2, 3, last=3, state=HardState(5, 2, 1))
    node = node_of(storage)
    for candidate, granted in ((3, False), (2, True), (3, False)):
        node.step(Message(K.VOTE, to=1, sender=candidate, term=5, log_term=1, index=9))
        (answer,) = settle(node, storage)
        assert (answer.to, answer.reject) == (candidate, not granted)
    node.step(Message(K.VOTE, to=1, sender=3, term=6, log_term=1, index=9))
    assert [m.reject for m in settle(node, storage)] == [False]
    assert storage.hard_state == HardState(6, 3, 1)


@pytest.mark.parametrize(("silent_ticks", "listened"), [(0, False), (4, False), (5, True)])
def test_while_a_leader_is_heard_nobody_else_is_elected(silent_ticks: int, listened: bool) -> None:
    """A node that comes back from behind a cut must not depose a leader that all others hear."""
    storage = storage_of(1, 2, 3, last=3)
    node = node_of(storage, check_quorum=True, election_tick=5)
    node.step(Message(K.HEARTBEAT, to=1, sender=2, term=2, commit=1))
    settle(node, storage)
    for _ in range(silent_ticks):
        node.tick()
    settle(node, storage)
    term = node.core.term
    node.step(Message(K.VOTE, to=1, sender=3, term=term + 7, log_term=1, index=9))
    answers = [m for m in settle(node, storage) if m.kind is K.VOTE_RESPONSE]
    assert bool(answers) == listened
    assert (node.core.term > term) == listened


def test_the_only_voter_reads_what_it_had_acknowledged_before_a_restart() -> None:
    """How far the log was committed is on no disk for certain: what is behind that mark was."""
    storage = storage_of(1, last=5, state=HardState(1, 1, 2))
    node = node_of(storage, applied=2)
    node.campaign()
    states: list[ReadState] = []
    asked = False
    for _ in range(20):
        if node.core.lead == 1 and not asked:
            assert node.core.log.committed == 2  # it leads, and knows no better yet
            node.read_index(b"early")
            asked = True
        if not node.has_ready():
            break
        ready = node.ready()
        states += ready.read_states
        if ready.hard_state:
            storage.set_hard_state(ready.hard_state)
        storage.append(ready.entries)
        node.advance()
    assert [state.index for state in states] == [6]
