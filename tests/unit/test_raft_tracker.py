"""What the leader knows of a peer, and how much may be on its way to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.raft.changer import Changer
from mesh.raft.confchange import Change, ChangeKind, ConfChangeV2, Transition
from mesh.raft.errors import ChangeRefused
from mesh.raft.inflights import Inflights
from mesh.raft.membership import Tracker
from mesh.raft.progress import Progress, ProgressState
from mesh.raft.types import ConfState


def progress(match: int = 5, *, messages: int = 3) -> Progress:
    return Progress(match + 1, Inflights(messages), match=match)


def test_window_is_full_by_messages() -> None:
    window = Inflights(2)
    window.add(1, 10)
    assert (window.full, len(window)) == (False, 1)
    window.add(2, 10)
    assert (window.full, len(window)) == (True, 2)
    window.free_up_to(1)
    assert (window.full, len(window)) == (False, 1)


def test_window_is_full_by_bytes_and_the_last_message_may_reach_beyond() -> None:
    window = Inflights(100, 15)
    window.add(1, 10)
    assert (window.full, window.bytes) == (False, 10)
    window.add(2, 1000)
    assert (window.full, window.bytes) == (True, 1010)
    window.free_up_to(1)
    assert (window.full, window.bytes) == (True, 1000)
    window.free_up_to(2)
    assert (window.full, window.bytes) == (False, 0)


def test_acknowledgement_in_the_middle_frees_what_lies_below() -> None:
    window = Inflights(10)
    for last in (3, 6, 9):
        window.add(last, 1)
    window.free_up_to(2)
    assert len(window) == 3
    window.free_up_to(7)
    assert len(window) == 1
    window.free_up_to(100)
    assert len(window) == 0


def test_nothing_is_added_to_a_full_window() -> None:
    window = Inflights(1)
    window.add(1, 1)
    with pytest.raises(AssertionError):
        window.add(2, 1)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5), st.integers(0, 20)), max_size=60))
def test_window_counts_what_was_added_and_not_freed(steps: list[tuple[bool, int, int]]) -> None:
    window, model, last = Inflights(5, 40), [], 0
    for add, number, size in steps:
        if add and not window.full:
            last += number
            window.add(last, size)
            model.append((last, size))
        else:
            window.free_up_to(last - number)
            model = [(at, bytes_) for at, bytes_ in model if at > last - number]
        assert len(window) == len(model)
        assert window.bytes == sum(size for _, size in model)
        assert window.full == (len(model) >= 5 or window.bytes >= 40)


def test_probe_sends_one_message_and_waits() -> None:
    peer = progress()
    peer.sent_entries(2, 10)
    assert (peer.paused, peer.next) == (True, 6)
    assert peer.acknowledge(7)
    assert (peer.paused, peer.next) == (False, 8)


def test_empty_probe_does_not_wait() -> None:
    peer = progress()
    peer.sent_entries(0, 0)
    assert not peer.paused


def test_full_window_lets_one_empty_append_through() -> None:
    peer = progress(messages=1)
    peer.become_replicate()
    peer.sent_entries(1, 1)
    assert peer.paused and peer.inflights.full
    peer.flow_paused = False  # A heartbeat was answered.
    peer.sent_entries(0, 0)
    assert peer.paused


def test_refusal_of_what_is_acknowledged_is_an_old_one() -> None:
    peer = progress(match=5)
    peer.become_replicate()
    assert not peer.retreat(5, 0)
    assert not peer.retreat(4, 0)
    peer.sent_entries(3, 0)
    assert peer.retreat(8, 2) and peer.next == 6


def test_refused_probe_goes_back_to_the_hint_but_never_behind_match() -> None:
    peer = Progress(10, Inflights(3), match=2)
    assert not peer.retreat(7, 3), "not the probe that is out"
    assert peer.retreat(9, 5) and peer.next == 6
    assert peer.retreat(5, 0) and peer.next == 3
    assert peer.retreat(2, 0) and peer.next == 3


def test_probe_after_a_snapshot_goes_on_behind_it() -> None:
    peer = progress(match=5)
    peer.become_snapshot(20)
    assert (peer.paused, peer.next) == (True, 21)
    peer.become_probe()
    assert (peer.paused, peer.next, peer.pending_snapshot) == (False, 21, 0)


def test_commit_is_worth_a_message_only_where_the_peer_can_use_it() -> None:
    peer = progress(match=5)
    peer.become_replicate()
    assert peer.can_bump_commit(5)
    peer.sent_commit = 5
    assert not peer.can_bump_commit(9), "the peer has been sent nothing beyond 5"
    peer.sent_entries(3, 0)
    assert peer.can_bump_commit(9) and not peer.can_bump_commit(5)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), max_size=30))
def test_next_is_always_beyond_match(steps: list[tuple[int, int]]) -> None:
    peer = progress(match=0, messages=3)
    for step, number in steps:
        match step:
            case 0:
                peer.acknowledge(number)
                peer.inflights.free_up_to(number)
            case 1:
                peer.retreat(number, number // 2)
            case 2:
                peer.become_probe()
            case 3:
                peer.become_replicate()
            case _ if not peer.paused:
                peer.sent_entries(0 if peer.inflights.full else number % 3, number)
        assert peer.match < peer.next


def tracker(*voters: int) -> Tracker:
    made = Tracker(10)
    made.adopt(*Changer(made, 7).restore(ConfState(voters)))
    return made


def test_membership_comes_back_from_what_it_was_stored_as() -> None:
    state = ConfState((1, 2, 3), (5,), (1, 2, 4), (4,), auto_leave=True)
    made = Tracker(10)
    made.adopt(*Changer(made, 7).restore(state))
    assert made.membership.conf_state() == state
    assert [node for node, peer in made.peers.items() if peer.learner] == [5]


@pytest.mark.parametrize(
    "broken",
    [
        ConfState((1,), (1,)),
        ConfState((1,), (), (), (2,)),
        ConfState((1, 2), (), (1, 2), (2,)),
        ConfState((1,), auto_leave=True),
    ],
)
def test_membership_that_contradicts_itself_is_refused(broken: ConfState) -> None:
    with pytest.raises(ChangeRefused):
        Changer(Tracker(10), 7).restore(broken)


def test_refused_change_leaves_everything_as_it_was() -> None:
    made = tracker(1, 2, 3)
    before = made.membership, dict(made.peers)
    remove_all = [Change(ChangeKind.REMOVE_NODE, node) for node in (1, 2, 3)]
    with pytest.raises(ChangeRefused):
        Changer(made, 9).apply(ConfChangeV2(Transition.EXPLICIT, tuple(remove_all)))
    assert (made.membership, made.peers) == before


def test_one_to_three_voters_is_one_joint_change() -> None:
    made = tracker(1)
    grow = tuple(Change(ChangeKind.ADD_NODE, node) for node in (2, 3))
    made.adopt(*Changer(made, 9).apply(ConfChangeV2(changes=grow)))
    assert made.membership.conf_state() == ConfState((1, 2, 3), (), (1,), (), auto_leave=True)
    made.adopt(*Changer(made, 9).apply(ConfChangeV2()))
    assert made.membership.conf_state() == ConfState((1, 2, 3))


def test_demoted_voter_keeps_its_progress() -> None:
    made = tracker(1, 2)
    made.peers[2].become_replicate()
    made.peers[2].acknowledge(7)
    made.adopt(*Changer(made, 9).simple([Change(ChangeKind.ADD_LEARNER, 2)]))
    assert made.peers[2].learner
    assert (made.peers[2].match, made.peers[2].state) == (7, ProgressState.REPLICATE)
