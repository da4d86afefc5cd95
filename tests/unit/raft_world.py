"""A few nodes, a network that loses, repeats and reorders, and disks that forget what is unsynced.

All chance comes from one seed. After every step the world checks what Raft promises of any history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random

import msgspec

from mesh.raft import (
    APPEND_THREAD,
    APPLY_THREAD,
    Change,
    ChangeKind,
    ConfChangeV2,
    Config,
    ConfState,
    Entry,
    HardState,
    MemoryStorage,
    Message,
    MessageKind,
    PeerNotFound,
    ProposalDropped,
    RawNode,
    ReadDropped,
    Role,
    Snapshot,
    SnapshotMeta,
    conf_state_after,
    decode_change,
)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class Disk:
    """What has been written, and how much of it would survive a loss of power."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._durable: list[Callable[[MemoryStorage], None]] = []
        self._unsynced: list[Callable[[MemoryStorage], None]] = []
        self.storage = MemoryStorage()
        self.write(lambda storage: storage.apply_snapshot(snapshot))
        self.sync()

    def write(self, change: Callable[[MemoryStorage], None]) -> None:
        change(self.storage)
        self._unsynced.append(change)

    def sync(self) -> None:
        self._durable += self._unsynced
        self._unsynced = []

    def lose_power(self) -> None:
        """Everything durable is done again, in its order, on a fresh disk."""
        self._unsynced = []
        self.storage = MemoryStorage()
        for change in self._durable:
            change(self.storage)


class Machine:
    """Applies entries in order, and remembers all of them: its state is durable."""

    def __init__(self, first: SnapshotMeta) -> None:
        self.index = first.index
        self.conf_state = first.conf_state
        self.applied: list[Entry] = []


class Restarted:
    """The disk's log with the members as of what the machine, which is durable, has applied."""

    def __init__(self, storage: MemoryStorage, members: ConfState) -> None:
        self._members = members
        self.entries, self.term = storage.entries, storage.term
        self.first_index, self.last_index = storage.first_index, storage.last_index
        self.snapshot = storage.snapshot
        self._hard_state = storage.hard_state

    def initial_state(self) -> tuple[HardState, ConfState]:
        return self._hard_state, self._members


class Node:
    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.disk = Disk(Snapshot(world.first))
        self.machine = Machine(world.first)
        self.boot()

    def boot(self) -> None:
        self.append_work: list[Message] = []
        self.apply_work: list[Message] = []
        config = msgspec.structs.replace(
            self.world.config, id=self.number, applied=self.machine.index
        )
        storage = Restarted(self.disk.storage, self.machine.conf_state)
        self.raw = RawNode(config, storage, randrange=self.world.random.randrange)

    def crash(self) -> None:
        self.disk.lose_power()
        self.boot()

    def take_ready(self) -> None:
        while self.raw.has_ready():
            ready = self.raw.ready()
            self.world.reads += [(self.number, state) for state in ready.read_states]
            for message in ready.messages:
                if message.to == APPEND_THREAD:
                    self.append_work.append(message)
                elif message.to == APPLY_THREAD:
                    self.apply_work.append(message)
                else:
                    self.world.send(message)

    def write_some(self, count: int) -> None:
        """Write a few pieces of work at once, sync, and only then let their answers go."""
        batch, self.append_work = self.append_work[:count], self.append_work[count:]
        for work in batch:
            self.disk.write(_write_of(work.hard_state, work.entries, work.snapshot))
        self.disk.sync()
        for work in batch:
            if work.snapshot is not None:
                meta = work.snapshot.meta
                source = next(
                    node.machine
                    for node in self.world.nodes.values()
                    if node.machine.index >= meta.index
                )
                start = self.world.first.index
                self.machine.applied = source.applied[: meta.index - start]
                self.machine.index, self.machine.conf_state = meta.index, meta.conf_state
            self._answer(work)

    def apply_some(self) -> None:
        if not self.apply_work:
            return
        work = self.apply_work.pop(0)
        for entry in work.entries:
            if entry.index <= self.machine.index:
                continue  # A snapshot has overtaken it; its change of members is in there, too.
            assert entry.index == self.machine.index + 1, "a gap in what was applied"
            self.machine.index = entry.index
            self.machine.applied.append(entry)
            change = decode_change(entry)
            if change is not None:
                self.machine.conf_state = conf_state_after(self.machine.conf_state, change)
                self.raw.apply_conf_change(change, entry.index)
        self._answer(work)

    def compact(self) -> None:
        storage = self.disk.storage
        index = min(self.machine.index, storage.last_index())
        if index <= storage.snapshot().meta.index or self.append_work:
            return
        state = self.machine.conf_state

        def change(storage: MemoryStorage) -> None:
            storage.create_snapshot(index, state)
            storage.compact(index)

        self.disk.write(change)
        self.disk.sync()

    def _answer(self, work: Message) -> None:
        for response in work.responses:
            if response.to == self.number:
                self.raw.step(response)
            else:
                self.world.send(response)


def _write_of(
    state: HardState | None, entries: Sequence[Entry], snapshot: Snapshot | None
) -> Callable[[MemoryStorage], None]:
    def write(storage: MemoryStorage) -> None:
        if state is not None:
            storage.set_hard_state(state)
        if snapshot is not None:
            storage.apply_snapshot(snapshot)
        storage.append(entries)

    return write


class World:
    def __init__(self, seed: int, *, nodes: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        chance = self.random
        voters = tuple(range(1, nodes + 1))
        self.first = SnapshotMeta(1, 1, ConfState(voters))
        self.config = Config(
            id=1,
            election_tick=5,
            heartbeat_tick=1,
            max_size_per_msg=chance.choice((0, 60, 10_000)),
            max_inflight_msgs=chance.choice((1, 3, 100)),
            max_committed_size_per_ready=chance.choice((1, 100, 100_000)),
            pre_vote=chance.random() < 0.5,
            check_quorum=chance.random() < 0.5,
            async_storage_writes=True,
        )
        self.network: list[bytes] = []
        self.cut_off: set[int] = set()
        self.reads: list[tuple[int, object]] = []
        self.leaders: dict[int, int] = {}
        self.committed: dict[int, Entry] = {}
        # The term in which the first node applied it.
        self.known_in: dict[int, int] = {}
        self.proposed = 0
        self.nodes: dict[int, Node] = {}
        for number in voters:
            self.nodes[number] = Node(self, number)

    def send(self, message: Message) -> None:
        assert message.to in self.nodes and message.sender in self.nodes
        if len(self.network) < 500:
            self.network.append(_encode(message))
        else:
            self._lose(message)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._step()
            self._check()

    def heal(self) -> None:
        """No more faults: everybody hears everybody, until all have applied the same."""
        self.cut_off.clear()
        for _ in range(3000):
            self._everybody_works()
            for raw in self.network[:]:
                self.network.remove(raw)
                self._deliver(_decode(raw))
            self._check()
            leaders = [n for n in self.nodes.values() if n.raw.core.role is Role.LEADER]
            if len(leaders) == 1 and not self.network:
                lengths = {node.machine.index for node in self.nodes.values()}
                if lengths == {leaders[0].raw.core.log.last_index}:
                    return
            for node in self.nodes.values():
                node.raw.tick()
        raise AssertionError("the cluster does not come to rest")

    def _everybody_works(self) -> None:
        for node in self.nodes.values():
            node.take_ready()
            node.write_some(len(node.append_work))
            node.apply_some()

    def _step(self) -> None:
        chance = self.random
        node = self.nodes[chance.randint(1, len(self.nodes))]
        match chance.choices(
            ("deliver", "ready", "write", "apply", "tick", "propose", "read", "fault"),
            (60, 30, 20, 12, 5, 5, 2, 1),
        )[0]:
            case "deliver":
                self._deliver_one()
            case "ready":
                node.take_ready()
            case "write":
                node.write_some(chance.randint(1, 3))
            case "apply":
                node.apply_some()
            case "tick":
                node.raw.tick()
            case "propose":
                self._propose(node)
            case "read":
                self._read(node)
            case _:
                self._fault(node)

    def _deliver_one(self) -> None:
        if not self.network:
            return
        at = self.random.randrange(min(len(self.network), 8))
        raw = self.network.pop(at)
        fate = self.random.random()
        if fate < 0.05:
            self._lose(_decode(raw))
            return
        if fate < 0.10:
            self.network.append(raw)
        self._deliver(_decode(raw))

    def _deliver(self, message: Message) -> None:
        if {message.sender, message.to} & self.cut_off:
            self._lose(message)
            return
        node = self.nodes[message.to]
        try:
            node.raw.step(message)
        except (PeerNotFound, ProposalDropped, ReadDropped):
            return
        if message.kind is MessageKind.SNAPSHOT:
            leader = self.nodes[message.sender]
            leader.raw.report_snapshot(message.to, True)

    def _lose(self, message: Message) -> None:
        """Who streams a snapshot knows that it broke off; other losses may go unnoticed."""
        sender = self.nodes[message.sender]
        if message.kind is MessageKind.SNAPSHOT:
            sender.raw.report_snapshot(message.to, False)
        elif self.random.random() < 0.3:
            sender.raw.report_unreachable(message.to)

    def _propose(self, node: Node) -> None:
        chance = self.random
        try:
            if chance.random() < 0.15:
                target = chance.randint(1, len(self.nodes))
                kind = chance.choice((ChangeKind.ADD_NODE, ChangeKind.ADD_LEARNER))
                other = Change(ChangeKind.ADD_NODE, chance.randint(1, len(self.nodes)))
                changes = (Change(kind, target), other)[: chance.randint(1, 2)]
                change = ConfChangeV2(changes=changes)
                node.raw.propose_conf_change(change)
                return
            items = []
            for _ in range(chance.randint(1, 4)):
                self.proposed += 1
                items.append(b"%d" % self.proposed)
            node.raw.propose(*items)
        except ProposalDropped:
            pass

    def _read(self, node: Node) -> None:
        try:
            node.raw.read_index(b"%d" % self.random.getrandbits(60))
        except ReadDropped:
            pass

    def _fault(self, node: Node) -> None:
        match self.random.randrange(5):
            case 0:
                node.crash()
            case 1:
                self.cut_off = {node.number}
            case 2:
                self.cut_off.clear()
            case 3:
                node.compact()
            case _:
                leader = node.raw.core.lead
                if leader:
                    node.raw.forget_leader()
                    node.raw.campaign()

    # What must hold

    def _check(self) -> None:
        for node in self.nodes.values():
            core = node.raw.core
            if core.role is Role.LEADER:
                first = self.leaders.setdefault(core.term, node.number)
                assert first == node.number, f"two leaders of term {core.term}"
                self._check_leader_has_all(node)
            self._check_applied(node)
        self._check_logs_match()

    def _check_leader_has_all(self, node: Node) -> None:
        log = node.raw.core.log
        for index, entry in list(self.committed.items())[-20:]:
            # Leaders before the one that committed it need not have it, though they may linger.
            if index < log.first_index or self.known_in[index] > node.raw.core.term:
                continue
            assert log.term_or_zero(index) == entry.term, (
                f"the leader of term {node.raw.core.term} lacks the committed entry {index}"
            )

    def _check_applied(self, node: Node) -> None:
        start = self.first.index + 1
        for index in range(max(start, node.machine.index - 10), node.machine.index + 1):
            entry = node.machine.applied[index - start]
            known = self.committed.setdefault(index, entry)
            self.known_in.setdefault(index, node.raw.core.term)
            assert known == entry, f"two entries were applied as number {index}"

    def _check_logs_match(self) -> None:
        logs = [node.raw.core.log for node in self.nodes.values()]
        for one, other in pairwise(logs):
            lo = max(one.first_index, other.first_index)
            hi = min(one.last_index, other.last_index)
            # Where the last entries agree, all before them must.
            agreed = False
            for index in range(hi, max(lo, hi - 30) - 1, -1):
                same = one.term(index) == other.term(index)
                assert same or not agreed, f"the logs part at {index} and agree behind it"
                agreed = same
