"""One node at a time: what it takes, what it refuses, and what it says about reads."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from mesh.raft import (
    APPEND_THREAD,
    NOBODY,
    Change,
    ChangeKind,
    ConfChange,
    ConfChangeV2,
    Config,
    ConfigRefused,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    LogLost,
    MemoryStorage,
    Message,
    MessageKind,
    MessageRefused,
    PeerNotFound,
    ProposalDropped,
    RawNode,
    ReadDropped,
    ReadOnly,
    Role,
    Snapshot,
    SnapshotMeta,
    Transition,
    conf_state_after,
    decode_change,
    encode_change,
)

K = MessageKind


def storage_of(*voters: int, last: int = 1, state: HardState | None = None) -> MemoryStorage:
    storage = MemoryStorage()
    storage.apply_snapshot(Snapshot(SnapshotMeta(1, 1, ConfState(voters))))
    storage.append([Entry(1, index) for index in range(2, last + 1)])
    storage.set_hard_state(state or HardState(1, NOBODY, 1))
    return storage


def node_of(storage: MemoryStorage, **settings: object) -> RawNode:
    config = msgspec.convert({"id": 1} | settings, Config)
    return RawNode(config, storage, randrange=Random(7).randrange)


def settle(node: RawNode, storage: MemoryStorage) -> list[Message]:
    """Do all there is to do, and return what would be sent."""
    sent: list[Message] = []
    for _ in range(100):
        if not node.has_ready():
            return sent
        ready = node.ready()
        if ready.hard_state:
            storage.set_hard_state(ready.hard_state)
        storage.append(ready.entries)
        sent += ready.messages
        node.advance()
    raise AssertionError("it goes on and on")


def leader_of_three(**settings: object) -> tuple[RawNode, MemoryStorage]:
    """Elected, but with nothing of its own term committed yet."""
    storage = storage_of(1, 2, 3)
    node = node_of(storage, **settings)
    node.campaign()
    settle(node, storage)
    node.step(Message(K.VOTE_RESPONSE, 1, 2, node.core.term))
    settle(node, storage)
    assert node.status().role is Role.LEADER
    return node, storage


def acknowledge(node: RawNode, peer: int = 2) -> None:
    index = node.core.log.last_index
    node.step(Message(K.APPEND_RESPONSE, 1, peer, node.core.term, index=index))


def test_several_proposals_are_one_append() -> None:
    node, storage = leader_of_three()
    acknowledge(node)
    settle(node, storage)
    node.propose(b"a", b"b", b"c")
    to_two = [message for message in settle(node, storage) if message.to == 2]
    assert [[entry.data for entry in message.entries] for message in to_two] == [[b"a", b"b", b"c"]]


def test_proposals_over_the_limit_are_refused_whole() -> None:
    node, storage = leader_of_three(max_uncommitted_bytes=10)
    node.propose(b"123456")
    last = node.core.log.last_index
    with pytest.raises(ProposalDropped):
        node.propose(b"1", b"23456")
    assert node.core.log.last_index == last
    node.propose(b"")  # What weighs nothing is never refused.
    acknowledge(node)
    settle(node, storage)
    node.propose(b"as large as it likes, for nothing is under way")


def test_nobody_to_propose_to() -> None:
    node = node_of(storage_of(1, 2, 3))
    with pytest.raises(ProposalDropped):
        node.propose(b"a")
    with pytest.raises(ReadDropped):
        node.read_index(b"r")


def test_follower_passes_proposals_on_unless_told_not_to() -> None:
    for disabled in (False, True):
        storage = storage_of(1, 2, 3)
        node = node_of(storage, disable_proposal_forwarding=disabled)
        node.step(Message(K.HEARTBEAT, 1, 2, 2))
        settle(node, storage)
        if disabled:
            with pytest.raises(ProposalDropped):
                node.propose(b"a")
        else:
            node.propose(b"a")
            (sent,) = settle(node, storage)
            assert (sent.kind, sent.to, sent.sender, sent.term) == (K.PROPOSE, 2, 1, 0)


def test_second_change_of_members_waits_for_the_first_to_be_applied() -> None:
    node, storage = leader_of_three()
    acknowledge(node)
    settle(node, storage)
    node.propose_conf_change(ConfChange(ChangeKind.ADD_LEARNER, 4))
    node.propose_conf_change(ConfChange(ChangeKind.ADD_LEARNER, 5))
    kinds = [entry.kind for entry in node.core.log.slice(3, 5)]
    assert kinds == [EntryKind.CONF_CHANGE, EntryKind.NORMAL]


def test_garbled_change_is_refused_before_it_is_in_the_log() -> None:
    node, _ = leader_of_three()
    last = node.core.log.last_index
    garbled = (Entry(0, 0, b"\xc1", EntryKind.CONF_CHANGE),)
    with pytest.raises(MessageRefused):
        node.step(Message(K.PROPOSE, 1, 2, entries=garbled))
    assert node.core.log.last_index == last


def test_refused_proposal_leaves_the_way_open_for_the_next_change() -> None:
    node, storage = leader_of_three()
    acknowledge(node)
    settle(node, storage)
    kind, data = encode_change(ConfChange(ChangeKind.ADD_LEARNER, 4))
    both = (Entry(0, 0, data, kind), Entry(0, 0, b"\xc1", EntryKind.CONF_CHANGE))
    with pytest.raises(MessageRefused):
        node.step(Message(K.PROPOSE, 1, 2, entries=both))
    everybody = tuple(Change(ChangeKind.REMOVE_NODE, voter) for voter in (1, 2, 3))
    with pytest.raises(ProposalDropped, match="removed all voters"):
        node.propose_conf_change(ConfChangeV2(changes=everybody))
    node.propose_conf_change(ConfChange(ChangeKind.ADD_LEARNER, 4))
    assert node.core.log.slice(3, 4)[0].kind is EntryKind.CONF_CHANGE


def test_changes_come_back_as_they_were_written() -> None:
    for change in (
        ConfChange(ChangeKind.REMOVE_NODE, 3, b"why"),
        ConfChangeV2(),
        ConfChangeV2(Transition.EXPLICIT),
        ConfChangeV2(changes=(Change(ChangeKind.ADD_NODE, 9),), context=b"\x00"),
    ):
        kind, data = encode_change(change)
        assert decode_change(Entry(1, 1, data, kind)) == change
    assert encode_change(ConfChangeV2()) == (EntryKind.CONF_CHANGE_V2, b"")
    assert decode_change(Entry(1, 1, b"x")) is None


# Reads


def confirm(node: RawNode, context: bytes, peer: int = 2) -> None:
    node.step(Message(K.HEARTBEAT_RESPONSE, 1, peer, node.core.term, context=context))


def test_read_waits_for_an_entry_of_the_own_term_and_then_for_a_quorum() -> None:
    node, storage = leader_of_three()
    node.read_index(b"r")
    assert settle(node, storage) == []
    acknowledge(node)
    heartbeats = [m for m in settle(node, storage) if m.kind is K.HEARTBEAT]
    assert {message.context for message in heartbeats} == {b"r"}
    assert not node.core.read_states
    confirm(node, b"r")
    (state,) = node.ready().read_states
    assert (state.index, state.context) == (2, b"r")


def test_who_confirms_a_read_confirms_all_before_it() -> None:
    node, storage = leader_of_three()
    acknowledge(node)
    settle(node, storage)
    for context in (b"a", b"b", b"c"):
        node.read_index(context)
    confirm(node, b"b")
    assert [state.context for state in node.core.read_states] == [b"a", b"b"]
    confirm(node, b"b", peer=3)
    confirm(node, b"never asked")
    assert len(node.core.read_states) == 2


def test_read_of_a_follower_is_answered_to_it() -> None:
    node, storage = leader_of_three()
    acknowledge(node)
    settle(node, storage)
    node.step(Message(K.READ_INDEX, 1, 3, context=b"r"))
    settle(node, storage)
    confirm(node, b"r")
    (answer,) = settle(node, storage)
    assert (answer.kind, answer.to, answer.index) == (K.READ_INDEX_RESPONSE, 3, 2)


def test_reads_have_a_bound() -> None:
    node, storage = leader_of_three(max_pending_reads=2)
    node.read_index(b"a")
    node.read_index(b"b")
    with pytest.raises(ReadDropped):
        node.read_index(b"c")
    node.step(Message(K.READ_INDEX, 1, 2, context=b"d"))  # A peer's is dropped without a word.
    acknowledge(node)
    settle(node, storage)
    with pytest.raises(ReadDropped):
        node.read_index(b"c")
    confirm(node, b"b")
    node.read_index(b"c")


def test_deposed_leader_answers_no_read() -> None:
    node, storage = leader_of_three()
    acknowledge(node)
    settle(node, storage)
    node.read_index(b"r")
    node.step(Message(K.HEARTBEAT, 1, 3, node.core.term + 1))
    node.step(Message(K.HEARTBEAT_RESPONSE, 1, 2, node.core.term, context=b"r"))
    assert not node.core.read_states


def test_lease_answers_at_once() -> None:
    node, storage = leader_of_three(check_quorum=True, read_only=ReadOnly.LEASE)
    acknowledge(node)
    settle(node, storage)
    node.read_index(b"r")
    assert [state.context for state in node.core.read_states] == [b"r"]


def test_a_read_that_can_wait_goes_with_the_next_heartbeat() -> None:
    node, storage = leader_of_three(heartbeat_tick=3)
    node.propose(b"of this term")
    for peer in (2, 3):
        acknowledge(node, peer)
    settle(node, storage)
    node.read_index(b"r", at_once=False)
    assert settle(node, storage) == []
    for _ in range(3):
        node.tick()
    sent = settle(node, storage)
    assert [(m.kind, m.context) for m in sent] == [(K.HEARTBEAT, b"r")] * 2
    confirm(node, b"r")
    assert [state.context for state in node.ready().read_states] == [b"r"]


def test_who_waits_for_a_heartbeat_gets_one_each_tick_while_it_was_heard_of_late() -> None:
    """Else what was lost on its way to a node that joins costs a heartbeat's time, each time."""
    node, storage = leader_of_three(heartbeat_tick=3, election_tick=9)
    node.propose(b"of this term")
    acknowledge(node, 2)
    settle(node, storage)
    node.step(Message(K.HEARTBEAT_RESPONSE, 1, 3, node.core.term))  # there, and told nothing yet
    assert node.core.tracker.peers[3].waits and node.ticks_to_act() == 1
    settle(node, storage)
    node.tick()
    assert [(m.kind, m.to) for m in settle(node, storage)] == [(K.HEARTBEAT, 3)]
    node.core.tracker.peers[3].active = False
    assert node.ticks_to_act() == 2
    node.tick()
    assert settle(node, storage) == []


def test_single_node_reads_by_itself() -> None:
    storage = storage_of(1)
    node = node_of(storage)
    node.campaign()
    settle(node, storage)
    node.read_index(b"r")
    assert [state.index for state in node.core.read_states] == [2]


# What is refused


def test_stranger_in_the_name_of_a_thread_is_refused() -> None:
    node = node_of(storage_of(1, 2, 3))
    forged = Message(K.STORAGE_APPEND_RESPONSE, 1, 2, 1, log_term=1, index=1)
    with pytest.raises(MessageRefused):
        node.step(forged)
    posing = msgspec.msgpack.encode(
        Message(K.STORAGE_APPEND_RESPONSE, 1, APPEND_THREAD, 1, log_term=1, index=1)
    )
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(posing, type=Message)


def test_message_for_another_node_is_refused() -> None:
    node = node_of(storage_of(1, 2, 3))
    with pytest.raises(MessageRefused):
        node.step(Message(K.HEARTBEAT, 9, 2, 2))
    assert node.status().term == 1


def test_read_without_a_context_is_refused() -> None:
    node, _ = leader_of_three()
    with pytest.raises(ValueError):
        node.read_index(b"")
    with pytest.raises(MessageRefused):
        node.step(Message(K.READ_INDEX, 1, 2))


def test_answer_of_a_stranger_is_refused() -> None:
    node, _ = leader_of_three()
    with pytest.raises(PeerNotFound):
        node.step(Message(K.APPEND_RESPONSE, 1, 9, 1, index=2))


@pytest.mark.parametrize("kind", [K.APPEND, K.HEARTBEAT, K.VOTE, K.APPEND_RESPONSE, K.SNAPSHOT])
def test_message_without_a_term_is_refused(kind: MessageKind) -> None:
    node = node_of(storage_of(1, 2, 3))
    with pytest.raises(MessageRefused):
        node.step(Message(kind, 1, 2))


def test_messages_come_back_as_they_were_sent() -> None:
    entry = Entry(3, 8, b"data", EntryKind.CONF_CHANGE_V2)
    for message in (
        Message(K.APPEND, 2, 1, 3, log_term=2, index=7, commit=5, entries=(entry,)),
        Message(K.APPEND_RESPONSE, 1, 2, 3, index=7, reject=True, reject_hint=4),
        Message(K.SNAPSHOT, 2, 1, 3, snapshot=Snapshot(SnapshotMeta(9, 3, ConfState((1,))), b"n")),
        Message(K.VOTE, 2, 1, 3, log_term=2, index=7, context=b"x"),
    ):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Message) == message


# Starting


def test_applied_may_be_ahead_of_the_stored_commit() -> None:
    node = node_of(storage_of(1, 2, 3, last=5, state=HardState(1, NOBODY, 2)), applied=4)
    assert (node.status().commit, node.status().applied) == (4, 4)


def test_machine_ahead_of_the_log_stops_the_node() -> None:
    with pytest.raises(LogLost):
        node_of(storage_of(1, 2, 3, last=5), applied=6)
    with pytest.raises(LogLost):
        node_of(storage_of(1, 2, 3, last=5, state=HardState(1, NOBODY, 6)))


def test_machine_behind_the_log_cannot_start() -> None:
    storage = storage_of(1, 2, 3, last=5)
    storage.compact(4)
    with pytest.raises(ConfigRefused):
        node_of(storage, applied=2)


@pytest.mark.parametrize(
    "settings",
    [
        {"id": 0},
        {"heartbeat_tick": 0},
        {"election_tick": 1},
        {"max_inflight_msgs": 0},
        {"max_inflight_bytes": 10, "max_size_per_msg": 11},
        {"read_only": ReadOnly.LEASE},
        {"applied": -1},
    ],
)
def test_configuration_that_contradicts_itself_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigRefused):
        Config(**({"id": 1} | settings))  # type: ignore[arg-type]


# Elections and leading


def test_election_waits_for_the_drawn_number_of_ticks() -> None:
    storage = storage_of(1, 2, 3)
    node = RawNode(Config(id=1, election_tick=10), storage, randrange=lambda n: n - 1)
    for _ in range(18):
        node.tick()
    assert node.status().role is Role.FOLLOWER
    node.tick()
    assert node.status().role is Role.CANDIDATE


def test_first_word_of_a_voter_counts() -> None:
    storage = storage_of(1, 2, 3, 4, 5)
    node = node_of(storage)
    node.campaign()
    settle(node, storage)
    term = node.core.term
    node.step(Message(K.VOTE_RESPONSE, 1, 2, term, reject=True))
    node.step(Message(K.VOTE_RESPONSE, 1, 2, term))
    node.step(Message(K.VOTE_RESPONSE, 1, 3, term))
    assert node.status().role is Role.CANDIDATE
    node.step(Message(K.VOTE_RESPONSE, 1, 4, term))
    assert node.status().role is Role.LEADER


def test_nobody_stands_for_election_before_it_has_applied_a_change_of_members() -> None:
    kind, data = encode_change(ConfChange(ChangeKind.ADD_LEARNER, 4))
    storage = storage_of(1, 2, 3)
    storage.append([Entry(1, 2, data, kind)])
    storage.set_hard_state(HardState(1, NOBODY, 2))
    node = node_of(storage)
    node.campaign()
    assert node.status().role is Role.FOLLOWER
    ready = node.ready()
    (entry,) = ready.committed_entries
    change = decode_change(entry)
    assert change is not None
    node.apply_conf_change(change)
    node.advance()
    node.campaign()
    assert node.status().role is Role.CANDIDATE


def test_new_leader_makes_no_change_before_it_has_applied_the_log_of_the_old_one() -> None:
    """Its log may hold a change that it knows nothing of yet."""
    node, storage = leader_of_three()
    node.propose_conf_change(ConfChange(ChangeKind.ADD_LEARNER, 4))
    assert node.core.log.slice(3, 4)[0].kind is EntryKind.CONF_CHANGE
    storage = storage_of(1, 2, 3, last=5)
    node = node_of(storage)
    node.campaign()
    settle(node, storage)
    node.step(Message(K.VOTE_RESPONSE, 1, 2, node.core.term))
    node.propose_conf_change(ConfChange(ChangeKind.ADD_LEARNER, 4))
    assert node.core.log.slice(7, 8)[0].kind is EntryKind.NORMAL


def test_snapshot_of_the_past_changes_nothing() -> None:
    storage = storage_of(1, 2, 3, last=5, state=HardState(1, NOBODY, 5))
    storage.compact(4)
    node = node_of(storage, applied=5)
    old = Snapshot(SnapshotMeta(3, 1, ConfState((1, 2, 3))))
    node.step(Message(K.SNAPSHOT, 1, 2, 2, snapshot=old))
    (answer,) = settle(node, storage)
    assert (answer.kind, answer.index) == (K.APPEND_RESPONSE, 5)
    assert node.core.log.last_index == 5


def test_snapshot_that_the_log_reaches_beyond_is_only_a_commit() -> None:
    storage = storage_of(1, 2, 3, last=5)
    node = node_of(storage)
    held = Snapshot(SnapshotMeta(4, 1, ConfState((1, 2, 3))))
    node.step(Message(K.SNAPSHOT, 1, 2, 2, snapshot=held))
    assert (node.core.log.committed, node.core.log.last_index) == (4, 5)
    assert node.core.log.unstable.snapshot is None


def test_change_that_a_snapshot_has_overtaken_is_not_applied_again() -> None:
    storage = storage_of(1, 2, 3, last=5, state=HardState(1, NOBODY, 5))
    node = node_of(storage, async_storage_writes=True)
    before = ConfState((1, 2, 3))
    grow = ConfChangeV2(
        changes=(Change(ChangeKind.ADD_NODE, 4), Change(ChangeKind.ADD_NODE, 5)),
    )
    joint = conf_state_after(before, grow)
    assert joint == ConfState((1, 2, 3, 4, 5), (), (1, 2, 3), (), auto_leave=True)
    newer = Snapshot(SnapshotMeta(9, 1, joint))
    node.step(Message(K.SNAPSHOT, 1, 2, 2, snapshot=newer))
    # Entry 4, which was on its way to the machine, is the change that the snapshot holds.
    assert node.apply_conf_change(grow, 4) == joint
    assert node.apply_conf_change(ConfChangeV2(), 10) == ConfState((1, 2, 3, 4, 5))


def test_snapshot_without_this_node_is_refused() -> None:
    storage = storage_of(1, 2, 3)
    node = node_of(storage)
    foreign = Snapshot(SnapshotMeta(9, 1, ConfState((2, 3))))
    node.step(Message(K.SNAPSHOT, 1, 2, 2, snapshot=foreign))
    assert node.core.log.last_index == 1


def test_transfer_that_takes_too_long_is_given_up() -> None:
    node, _ = leader_of_three(election_tick=5)
    node.transfer_leader(3)
    with pytest.raises(ProposalDropped):
        node.propose(b"a")
    for _ in range(5):
        node.tick()
    node.propose(b"a")


def test_transfer_goes_to_who_is_up_to_date() -> None:
    node, storage = leader_of_three()
    acknowledge(node)
    settle(node, storage)
    node.transfer_leader(2)
    assert [m.kind for m in settle(node, storage)] == [K.TIMEOUT_NOW]


def test_failed_snapshot_is_tried_again_after_a_heartbeat() -> None:
    node, storage = leader_of_three()
    acknowledge(node)
    settle(node, storage)
    storage.create_snapshot(2, ConfState((1, 2, 3)), b"name")
    storage.compact(2)
    refusal = Message(K.APPEND_RESPONSE, 1, 3, 2, index=1, reject=True)
    node.step(refusal)
    assert [m.kind for m in settle(node, storage)] == [K.SNAPSHOT]
    node.report_snapshot(3, False)
    assert settle(node, storage) == []
    node.step(Message(K.HEARTBEAT_RESPONSE, 1, 3, 2))
    # It is probed first: who knows how far it is by now.
    (probe,) = settle(node, storage)
    assert probe.kind is K.SNAPSHOT and probe.snapshot is not None
    assert probe.snapshot.data == b"name"


def test_leader_without_a_quorum_steps_down() -> None:
    node, _ = leader_of_three(check_quorum=True, election_tick=5)
    acknowledge(node)
    for _ in range(5):
        node.tick()
    assert node.status().role is Role.LEADER, "it heard one of them"
    for _ in range(5):
        node.tick()
    assert node.status().role is Role.FOLLOWER
