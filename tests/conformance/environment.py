"""A cluster of nodes in one place, driven by directives: nothing moves unless one says so.

Beyond etcd's directives there are those for disks and networks that fail: see `HANDLERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from textwrap import indent

from mesh.raft import (
    APPEND_THREAD,
    APPLY_THREAD,
    NO_LIMIT,
    ConfChange,
    ConfChangeV2,
    Config,
    ConfState,
    Message,
    MessageKind,
    PeerNotFound,
    ProposalDropped,
    RaftError,
    ReadDropped,
    ReadOnly,
    Snapshot,
    SnapshotMeta,
    Transition,
)
from mesh.raft.trace import Event
from tests.conformance import log_lines, words
from tests.conformance.datadriven import Directive
from tests.conformance.node import Node

TRANSITIONS = {
    "auto": Transition.AUTO,
    "implicit": Transition.IMPLICIT,
    "explicit": Transition.EXPLICIT,
}
ERRORS = {
    ProposalDropped: "raft proposal dropped",
    PeerNotFound: "raft: cannot step as peer not found",
    ReadDropped: "raft read dropped",
}


class Environment:
    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.messages: list[Message] = []
        self._held: list[Message] = []
        self._out: list[str] = []
        self._level = 0

    def handle(self, directive: Directive) -> str:
        self._out = []
        handler = HANDLERS[directive.command]
        try:
            handler(self, directive)
        except RaftError as error:
            said = ERRORS.get(type(error)) or str(error)
            if self._quiet:
                return said
            self._out.append(said)
        return "\n".join(self._out) or "ok"

    # What is said

    @property
    def _quiet(self) -> bool:
        return log_lines.LEVELS[self._level] == "NONE"

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._out.append(text.rstrip("\n"))

    def _listener(self, node: int) -> Callable[[Event], None]:
        def listen(event: Event) -> None:
            level, text = log_lines.line(node, event)
            if log_lines.LEVELS.index(level) >= self._level:
                self._say(f"{level} {text}")

        return listen

    @contextmanager
    def _section(self, title: str | None) -> Iterator[None]:
        """What is said inside stands indented below the title, if there is one."""
        if title is None:
            yield
            return
        outer, self._out = self._out, []
        try:
            yield
        finally:
            inner, self._out = self._out, outer
            if not self._quiet:
                self._out.append(f"> {title}")
                if inner:
                    self._out.append(indent("\n".join(inner), "  ", lambda line: True))

    def _for_each(self, nodes: Sequence[int], doing: str, do: Callable[[int], None]) -> None:
        for node in nodes:
            with self._section(f"{node} {doing}" if len(nodes) > 1 else None):
                do(node)

    def _node(self, number: int) -> Node:
        return self.nodes[number - 1]

    # etcd's directives

    def add_nodes(self, d: Directive) -> None:
        count = d.nodes[0]
        voters, learners = d.values("voters") or (), d.values("learners") or ()
        index = d.number("index")
        members = ConfState(tuple(map(int, voters)), tuple(map(int, learners)))
        meta = SnapshotMeta(index, 1 if index else 0, members)
        snapshot = Snapshot(meta, d.value("content").encode())
        for _ in range(count):
            number = len(self.nodes) + 1
            config = Config(
                id=number,
                election_tick=3,
                heartbeat_tick=1,
                max_size_per_msg=d.number("max-size-per-msg", NO_LIMIT),
                max_inflight_msgs=d.number("inflight", 2**31 - 1),
                max_committed_size_per_ready=d.number("max-committed-size-per-ready"),
                max_uncommitted_bytes=d.number("max-uncommitted-bytes", NO_LIMIT),
                check_quorum=d.flag("checkquorum"),
                pre_vote=d.flag("prevote"),
                async_storage_writes=d.flag("async-storage-writes"),
                disable_conf_change_validation=d.flag("disable-conf-change-validation"),
                step_down_on_removal=d.flag("step-down-on-removal"),
                read_only=ReadOnly.LEASE
                if d.value("read-only") == "lease-based"
                else ReadOnly.SAFE,
            )
            self.nodes.append(Node(config, snapshot, self._listener(number)))

    def campaign(self, d: Directive) -> None:
        self._node(d.nodes[0]).raw.campaign()

    def compact(self, d: Directive) -> None:
        number, index = d.nodes
        self._node(number).disk.compact(index)
        self._say_log(number)

    def deliver(self, d: Directive) -> None:
        kinds = {name: kind for kind, name in words.KINDS.items()}
        kind = kinds[d.value("type")] if d.value("type") else None
        delivered = sum(self._deliver(node, kind=kind) for node in d.nodes)
        for node in d.values("drop") or ():
            delivered += self._deliver(int(node), kind=kind, drop=True)
        if not delivered:
            self._say("no messages")

    def _deliver(self, to: int, *, kind: MessageKind | None = None, drop: bool = False) -> int:
        taken = self._take(to, kind, local=not drop)
        node = self._node(to) if to <= len(self.nodes) else None
        for message in taken:
            said = words.message(message)
            if drop:
                self._say(f"dropped: {said}")
            elif node is None or not node.up:
                self._say(f"lost: {said}")
            else:
                self._say(said)
                try:
                    node.raw.step(message)
                except RaftError as error:
                    self._say(ERRORS.get(type(error)) or str(error))
        return len(taken)

    def _take(self, to: int, kind: MessageKind | None = None, *, local: bool) -> list[Message]:
        """`local` takes also what a node says to itself: no network loses that."""
        taken = [
            message
            for message in self.messages
            if message.to == to
            and (kind is None or message.kind is kind)
            and (local or (message.sender != to and message.sender > 0))
        ]
        ids = set(map(id, taken))
        self.messages = [message for message in self.messages if id(message) not in ids]
        return taken

    def process_ready(self, d: Directive) -> None:
        self._for_each(d.nodes, "handling Ready", self._process_ready)

    def _process_ready(self, number: int) -> None:
        node = self._node(number)
        ready = node.raw.ready()
        self._say(words.ready(ready))
        if not node.config.async_storage_writes:
            node.write(ready.hard_state, ready.entries, ready.snapshot)
            node.disk.sync()
            node.restore_machine(ready.snapshot)
            node.apply(ready.committed_entries)
        for message in ready.messages:
            queue = {APPEND_THREAD: node.append_work, APPLY_THREAD: node.apply_work}
            queue.get(message.to, self.messages).append(message)
        if not node.config.async_storage_writes:
            node.raw.advance()

    def process_append(self, d: Directive) -> None:
        self._for_each(d.nodes, "processing append thread", self._process_append)

    def _process_append(self, number: int) -> None:
        node = self._node(number)
        if not node.append_work:
            self._say("no append work to perform")
            return
        self._write(number)
        self._sync(number)

    def _write(self, number: int) -> None:
        node = self._node(number)
        work = node.append_work.pop(0)
        self._say(f"Processing:\n{words.message(work, responses=False)}")
        node.write(work.hard_state, work.entries, work.snapshot)
        node.unsynced.append(work)

    def _sync(self, number: int) -> None:
        node = self._node(number)
        node.disk.sync()
        done, node.unsynced = node.unsynced, []
        self._say("Responses:")
        for work in done:
            node.restore_machine(work.snapshot)
            self._respond(work)

    def _respond(self, work: Message) -> None:
        for response in work.responses:
            self._say(words.message(response))
            self.messages.append(response)

    def process_apply(self, d: Directive) -> None:
        self._for_each(d.nodes, "processing apply thread", self._process_apply)

    def _process_apply(self, number: int) -> None:
        node = self._node(number)
        if not node.apply_work:
            self._say("no apply work to perform")
            return
        work = node.apply_work.pop(0)
        self._say(f"Processing:\n{words.message(work, responses=False)}")
        node.apply(work.entries)
        self._say("Responses:")
        self._respond(work)

    def log_level(self, d: Directive) -> None:
        self._level = log_lines.LEVELS.index(d.bare[0].upper())

    def raft_log(self, d: Directive) -> None:
        self._say_log(d.nodes[0])

    def _say_log(self, number: int) -> None:
        disk = self._node(number).disk
        first, last = disk.first_index(), disk.last_index()
        if last < first:
            self._say(f"log is empty: first index={first}, last index={last}")
            return
        for entry in disk.entries(first, last + 1):
            self._say(words.entry(entry))

    def raft_state(self, d: Directive) -> None:
        for number, node in enumerate(self.nodes, 1):
            if not node.up:
                self._say(f"{number}: off")
                continue
            status = node.raw.status()
            votes = number in {*status.conf_state.voters, *status.conf_state.voters_outgoing}
            voter = "Voter" if votes else "Non-Voter"
            role = words.ROLES[status.role]
            self._say(f"{number}: {role} ({voter}) Term:{status.term} Lead:{status.lead}")

    def set_election_timeout(self, d: Directive) -> None:
        self._node(d.nodes[0]).raw.core.election_timeout = d.number("timeout")

    def stabilize(self, d: Directive) -> None:
        level = self._level
        if d.value("log-level"):
            self._level = log_lines.LEVELS.index(d.value("log-level").upper())
        try:
            self._stabilize(d.nodes or tuple(range(1, len(self.nodes) + 1)))
        finally:
            self._level = level

    def _stabilize(self, numbers: Sequence[int]) -> None:
        for _ in range(1000):
            busy = False
            up = [number for number in numbers if self._node(number).up]
            for number in up:
                if self._node(number).raw.has_ready():
                    busy = True
                    with self._section(f"{number} handling Ready"):
                        self._process_ready(number)
            for number in up:
                if any(message.to == number for message in self.messages):
                    busy = True
                    with self._section(f"{number} receiving messages"):
                        self._deliver(number)
            for number in up:
                busy |= self._drain(number, "append", self._process_append)
            for number in up:
                busy |= self._drain(number, "apply", self._process_apply)
            if not busy:
                return
        raise AssertionError("the nodes go on and on")

    def _drain(self, number: int, thread: str, process: Callable[[int], None]) -> bool:
        node = self._node(number)
        work = node.append_work if thread == "append" else node.apply_work
        if not work:
            return False
        with self._section(f"{number} processing {thread} thread"):
            while work:
                process(number)
        return True

    def status(self, d: Directive) -> None:
        self._say(words.progress_map(self._node(d.nodes[0]).raw.status().progress))

    def tick_election(self, d: Directive) -> None:
        self._tick(d.nodes[0], self._node(d.nodes[0]).config.election_tick)

    def tick_heartbeat(self, d: Directive) -> None:
        self._tick(d.nodes[0], self._node(d.nodes[0]).config.heartbeat_tick)

    def _tick(self, number: int, count: int) -> None:
        for _ in range(count):
            self._node(number).raw.tick()

    def transfer(self, d: Directive) -> None:
        self._node(d.number("from")).raw.transfer_leader(d.number("to"))

    def forget_leader(self, d: Directive) -> None:
        self._node(d.nodes[0]).raw.forget_leader()

    def send_snapshot(self, d: Directive) -> None:
        sender, to = d.nodes
        node = self._node(sender)
        message = Message(
            MessageKind.SNAPSHOT,
            to,
            sender,
            node.raw.status().term,
            snapshot=node.disk.snapshot(),
        )
        self.messages.append(message)
        self._say(words.message(message))

    def propose(self, d: Directive) -> None:
        number, *data = d.bare
        self._node(int(number)).raw.propose(*(item.encode() for item in data))

    def propose_change(self, d: Directive) -> None:
        raw = self._node(d.nodes[0]).raw
        changes = words.parse_changes(d.input)
        if d.flag("v1"):
            (one,) = changes
            raw.propose_conf_change(ConfChange(one.kind, one.node_id))
        else:
            transition = TRANSITIONS[d.value("transition", "auto")]
            raw.propose_conf_change(ConfChangeV2(transition, changes))

    def report_unreachable(self, d: Directive) -> None:
        number, peer = d.nodes
        self._node(number).raw.report_unreachable(peer)

    # Our own: disks and networks that fail

    def power_off(self, d: Directive) -> None:
        """What was not synced is gone, and so is whatever the node was about to do."""
        for number in d.nodes:
            self._take(number, local=True)
            self._node(number).power_off()

    def power_on(self, d: Directive) -> None:
        for number in d.nodes:
            # Nothing that was sent to it meanwhile has arrived.
            self._take(number, local=True)
            self._node(number).boot()

    def write_append(self, d: Directive) -> None:
        """The append thread writes, but its fsync is still to come."""
        self._write(d.nodes[0])

    def fsync(self, d: Directive) -> None:
        """`fail=true`: the fsync fails. Nobody knows what is on disk then, so the node stops."""
        number = d.nodes[0]
        if d.flag("fail"):
            self._say("fsync failed, the node stops")
            self.power_off(d)
        else:
            self._sync(number)

    def keep_copy(self, d: Directive) -> None:
        """A backup of the disk as it is now."""
        self._node(d.nodes[0]).keep_copy()

    def put_copy_back(self, d: Directive) -> None:
        """Somebody restores that backup, while the node is off."""
        self._node(d.nodes[0]).put_copy_back()

    def hard_state(self, d: Directive) -> None:
        self._say(words.hard_state(self._node(d.nodes[0]).disk.hard_state))

    def duplicate(self, d: Directive) -> None:
        """The network brings each message to this node twice."""
        taken = self._take(d.nodes[0], local=False)
        self.messages += [message for message in taken for _ in range(2)]

    def reverse(self, d: Directive) -> None:
        """The network brings the messages to this node in the wrong order."""
        taken = self._take(d.nodes[0], local=False)
        self.messages += reversed(taken)

    def hold(self, d: Directive) -> None:
        """The network keeps the messages to this node for later."""
        taken = self._take(d.nodes[0], local=False)
        self._held += taken

    def release(self, d: Directive) -> None:
        """All that was held comes at last."""
        held, self._held = self._held, []
        self.messages += held

    def read_index(self, d: Directive) -> None:
        number, context = d.bare
        self._node(int(number)).raw.read_index(context.encode())


HANDLERS: dict[str, Callable[[Environment, Directive], None]] = {
    "add-nodes": Environment.add_nodes,
    "campaign": Environment.campaign,
    "compact": Environment.compact,
    "deliver-msgs": Environment.deliver,
    "process-ready": Environment.process_ready,
    "process-append-thread": Environment.process_append,
    "process-apply-thread": Environment.process_apply,
    "log-level": Environment.log_level,
    "raft-log": Environment.raft_log,
    "raft-state": Environment.raft_state,
    "set-randomized-election-timeout": Environment.set_election_timeout,
    "stabilize": Environment.stabilize,
    "status": Environment.status,
    "tick-election": Environment.tick_election,
    "tick-heartbeat": Environment.tick_heartbeat,
    "transfer-leadership": Environment.transfer,
    "forget-leader": Environment.forget_leader,
    "send-snapshot": Environment.send_snapshot,
    "propose": Environment.propose,
    "propose-conf-change": Environment.propose_change,
    "report-unreachable": Environment.report_unreachable,
    "power-off": Environment.power_off,
    "power-on": Environment.power_on,
    "write-append-thread": Environment.write_append,
    "fsync": Environment.fsync,
    "hard-state": Environment.hard_state,
    "keep-copy": Environment.keep_copy,
    "put-copy-back": Environment.put_copy_back,
    "duplicate-msgs": Environment.duplicate,
    "reverse-msgs": Environment.reverse,
    "hold-msgs": Environment.hold,
    "release-msgs": Environment.release,
    "read-index": Environment.read_index,
}
