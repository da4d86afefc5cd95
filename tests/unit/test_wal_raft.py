"""Three cores over three durable logs: what one commits all of them hold, through restarts."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from mesh.raft import (
    APPEND_THREAD,
    APPLY_THREAD,
    Config,
    ConfState,
    Entry,
    Message,
    RawNode,
    Storage,
)
from mesh.wal import RaftLog
from mesh.wal_sqlite import open_log

IDS = (1, 2, 3)
VOTERS = ConfState(voters=IDS)


class Node:
    def __init__(
        self, id_: int, log: RaftLog, applied: list[Entry], post: dict[int, list[Message]]
    ):
        self.id, self.log, self.applied, self.post = id_, log, applied, post
        log.use_conf_state(VOTERS)
        storage: Storage = log
        config = Config(
            id=id_, election_tick=10, heartbeat_tick=1, pre_vote=True, check_quorum=True,
            async_storage_writes=True, applied=applied[-1].index if applied else 0,
        )  # fmt: skip
        self.raft = RawNode(config, storage, randrange=random.Random(id_).randrange)

    def turn(self) -> None:
        """Hand everything on that there is to do; answers of the disk come by themselves."""
        while self.raft.has_ready():
            for message in self.raft.ready().messages:
                if message.to == APPEND_THREAD:
                    self.write(message)
                elif message.to == APPLY_THREAD:
                    self.applied += message.entries
                    self.answer(message)
                else:
                    self.post[message.to].append(message)

    def write(self, message: Message) -> None:
        self.log.append(
            message.entries,
            message.hard_state,
            message.snapshot.meta if message.snapshot else None,
            on_done=lambda: self.answer(message),
        )

    def answer(self, message: Message) -> None:
        for response in message.responses:
            if response.to == self.id:
                self.raft.step(response)
            else:
                self.post[response.to].append(response)


async def test_what_is_committed_is_in_every_log_through_restarts(tmp_path: Path) -> None:
    applied: dict[int, list[Entry]] = {id_: [] for id_ in IDS}
    wanted: list[bytes] = []
    for boot in range(3):
        post: dict[int, list[Message]] = {id_: [] for id_ in IDS}
        async with AsyncExitStack() as stack:
            nodes = {}
            for id_ in IDS:
                opened = open_log(tmp_path / f"{id_}.db", create=boot == 0)
                log = await stack.enter_async_context(opened)
                assert log.boot == boot + 1
                nodes[id_] = Node(id_, log, applied[id_], post)
            leader = nodes[boot % 3 + 1]
            leader.raft.campaign()
            batch = [b"%d-%d" % (boot, number) for number in range(300)]
            wanted += batch
            proposed = False
            with trio.fail_after(30):
                while not all(
                    [each.data for each in applied[id_] if each.data] == wanted for id_ in IDS
                ):
                    for node in nodes.values():
                        node.turn()
                        letters, post[node.id] = post[node.id], []
                        for letter in letters:
                            node.raft.step(letter)
                    if leader.raft.status().lead == leader.id and not proposed:
                        proposed = True
                        for start in range(0, 300, 10):
                            leader.raft.propose(*batch[start : start + 10])
                    elif proposed:
                        leader.raft.tick()  # heartbeats carry the last commit index
                    await trio.sleep(0.001)
            if boot == 1:
                at = applied[1][-1].index
                await nodes[1].log.compact(at, VOTERS, checkpointed=at).wait()
    assert applied[1] == applied[2] == applied[3]
    assert len({each.term for each in applied[1]}) >= 3
