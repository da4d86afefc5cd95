"""Recovery of one survivor: the entries it adds, every point at which it may be broken off."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.raft import (
    Change,
    ChangeKind,
    ConfChangeV2,
    Config,
    ConfState,
    Entry,
    HardState,
    LogLost,
    MemoryStorage,
    Message,
    MessageKind,
    RawNode,
    Snapshot,
    SnapshotMeta,
    Transition,
    encode_change,
)
from mesh.wal_sqlite import open_log
from swarmd.cluster import recovering
from swarmd.cluster.lineage import CLUSTER_FACT, Claims, descends, forked_at, newest, recovered_id
from swarmd.cluster.numbers import raft_id_of
from swarmd.cluster.recovering import go_on, recover
from swarmd.cluster.snapshots import encode_conf
from swarmd.domain.actors import SYSTEM
from swarmd.domain.errors import Conflict, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.state.commands import PutNode, PutSetting, Request, RequestId
from swarmd.state.machine import Machine, Place
from swarmd.state.store import StoreSettings, encode_batch, encode_request, open_store

ME, OTHER, THIRD = (NodeId(f"00000000-0000-4000-8000-00000000000{n}") for n in (1, 2, 3))


def change(index: int, *steps: Change, transition: Transition = Transition.AUTO) -> Entry:
    kind, data = encode_change(ConfChangeV2(transition, steps))
    return Entry(2, index, data, kind)


@pytest.mark.parametrize("seed", range(30))
def test_whatever_the_members_were_one_votes_in_the_end(seed: int) -> None:
    """Each step alone is one that the core applies; nobody is forgotten."""
    rng = random.Random(seed)
    ids = list(range(1, 8))
    voters = tuple(sorted(rng.sample(ids, rng.randint(1, 5))))
    learners = tuple(sorted(set(rng.sample(ids, 3)) - set(voters)))
    conf, entries = ConfState(voters=voters, learners=learners), list[Entry]()
    if rng.random() < 0.5:
        steps = [Change(ChangeKind.ADD_NODE, n) for n in rng.sample(ids, 2)]
        steps.append(Change(ChangeKind.REMOVE_NODE, voters[0]))
        entries = [change(11, *steps)]
    me = rng.choice([*voters, *learners])
    if entries and me == voters[0]:
        me = next(n for n in ids if n != me and n in {*voters, *learners, steps[0].node_id})
    made, after = go_on(conf, entries, 20, 99, me, b"told")
    assert after.voters == (me,) and not after.voters_outgoing and not after.learners_next
    assert [e.index for e in made] == list(range(21, 21 + len(made)))
    assert {e.term for e in made} == {99} and made[-1].data == b"told"
    gone = {voters[0]} if entries else set()
    assert {*after.voters, *after.learners} >= {*voters, *learners} - gone


def test_lineages() -> None:
    first = recovered_id("u", 90, b"\1\2\3\4")
    second = recovered_id(first, 300, b"\5\6\7\x08")
    apart = recovered_id("u", 91, b"\4\4\4\4")
    assert descends(first, "u") and descends(second, "u") and descends(second, first)
    assert not descends("u", "u") and not descends("ux", "u") and not descends(apart, first)
    assert not descends(first, "")
    assert (forked_at(second, "u"), forked_at(second, first), forked_at("u+?", "u")) == (90, 300, 0)
    claims = Claims("u")
    for node, said in ((ME, first), (OTHER, second), (THIRD, "v+1.2")):
        claims.note(node, said)
    by = claims.by(lambda node_id: True)
    assert set(by) == {ME, OTHER} and newest(by) == second
    claims.note(THIRD, apart)
    assert newest(claims.by(lambda node_id: True)) is None
    assert newest(claims.by(lambda node_id: node_id != THIRD)) == second


async def build(data_dir: Path, *, votes: bool = True) -> None:
    """A node of three voters, as it lies on disk: entries 2 to 7 in its log, 5 of them applied."""
    data_dir.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
    (data_dir / "node-id").write_text(ME)
    ids = tuple(sorted(map(raft_id_of, (ME, OTHER, THIRD))))
    voters = ids if votes else tuple(i for i in ids if i != raft_id_of(ME))
    conf = ConfState(voters=voters, learners=() if votes else (raft_id_of(ME),))
    commands: list[Any] = [
        PutSetting("cluster_id", b"the-swarm"),
        *(PutNode(Node(id=n, name=f"n{n[-1]}", mesh=("127.0.0.1:1",))) for n in (ME, OTHER, THIRD)),
        PutSetting("late", b"1"),
        PutSetting("latest", b"1"),
    ]
    entries = [Entry(3, index, batch(index, command)) for index, command in enumerate(commands, 2)]
    async with open_log(data_dir / "raft.db", create=True) as log:
        meta = SnapshotMeta(1, 1, conf)
        await log.append(hard_state=HardState(1, 0, 1), snapshot=meta).wait()
        await log.append(entries=entries, hard_state=HardState(3, raft_id_of(OTHER), 5)).wait()
        await log.set_fact(CLUSTER_FACT, b"the-swarm").wait()
    import sqlite3

    async with open_store(data_dir / "state.db", StoreSettings()):
        pass
    conn = sqlite3.connect(data_dir / "state.db", isolation_level=None)
    from swarmd.state.commands import Entry as Applied

    machine = Machine(conn)
    machine.apply([], Place(1, 1, encode_conf(conf)))
    for index, command in enumerate(commands[:4], 2):
        machine.apply([Applied(index, 3, 1000 + index, SYSTEM, command)], Place(index, 3, None))
    conn.close()


def batch(index: int, command: Any) -> bytes:
    request = Request(RequestId(9, 1, index), SYSTEM, command)
    import msgspec

    return encode_batch(1000 + index, [msgspec.Raw(encode_request(request))])


def entropy(count: int) -> bytes:
    return bytes(range(1, count + 1))


class Cut(Exception):
    pass


def cutting(at: str) -> Callable[[str], None]:
    def step(done: str) -> None:
        if done == at:
            raise Cut(done)

    return step


async def votes_now(data_dir: Path) -> tuple[str, int, int]:
    async with open_log(data_dir / "raft.db", create=False) as log:
        return (log.fact(CLUSTER_FACT) or b"").decode(), log.last_index(), log.hard_state.commit


async def test_all_of_the_log_is_kept_and_agreed_on(tmp_path: Path) -> None:
    await build(tmp_path)
    found = await recovering.inspect(tmp_path)
    assert (found.name, found.last, found.committed, found.applied) == ("n1", 7, 5, 5)
    assert found.votes and found.voters == ("n1", "n2", "n3") and found.opens_keys
    done = await recover(tmp_path, now_ms=5000, entropy=entropy)
    assert done.last == 7 and done.cluster_id == "the-swarm+7.01020304"
    assert done.term == recovering.TERMS + 0x0102 and done.voters_lost == ("n2", "n3")
    cluster, last, commit = await votes_now(tmp_path)
    assert cluster == done.cluster_id and last == commit == 10
    again = await recovering.inspect(tmp_path)
    assert again.voters == ("n1",)
    with pytest.raises(Conflict, match="the only voter"):
        recovering.check_survivor(again)
    kept = Path(done.kept)
    (kept / "node-id").write_text(ME)
    assert (await recovering.inspect(kept)).voters == ("n1", "n2", "n3")


@pytest.mark.parametrize("at", ["looked", "kept", "made", "in place"])
async def test_broken_off_anywhere_it_is_the_old_or_the_new(tmp_path: Path, at: str) -> None:
    await build(tmp_path)
    with pytest.raises(Cut):
        await recover(tmp_path, now_ms=5000, entropy=entropy, step=cutting(at))
    cluster, last, _ = await votes_now(tmp_path)
    if at == "in place":
        assert (cluster, last) == ("the-swarm+7.01020304", 10)
        return
    assert (cluster, last) == ("the-swarm", 7)
    # And it can be done again.
    other: Callable[[int], bytes] = lambda count: bytes([9]) * count  # noqa: E731
    done = await recover(tmp_path, now_ms=5000, entropy=other)
    assert (await votes_now(tmp_path))[:2] == (done.cluster_id, 10)
    assert not (tmp_path / recovering.PART).exists()


async def test_without_room_nothing_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await build(tmp_path)

    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(Unavailable, match="make room"):
        await recover(tmp_path, now_ms=1, entropy=entropy)
    assert not list(tmp_path.glob("*recover*"))  # noqa: ASYNC240


async def test_what_is_no_survivor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="there is no log"):
        await recovering.inspect(tmp_path)
    learner = tmp_path / "learner"
    await build(learner, votes=False)
    found = await recovering.inspect(learner)
    assert not found.votes and found.voters == ("n2", "n3")
    # The state is newer than the log: the log was put back.
    old = tmp_path / "old"
    await build(old)
    (old / "raft.db").unlink()
    async with open_log(old / "raft.db", create=True) as log:
        await log.append(hard_state=HardState(3, 0, 2), snapshot=SnapshotMeta(2, 3)).wait()
    with pytest.raises(Conflict, match="is not the newest of this node"):
        await recovering.inspect(old)


@pytest.mark.parametrize(("index", "term", "lost"), [(4, 2, True), (3, 2, True), (3, 1, False)])
def test_a_leader_without_what_was_committed_here_is_found_out(
    index: int, term: int, lost: bool
) -> None:
    """Only a log that was gone on with by hand can lack it: whoever follows must begin anew."""
    storage = MemoryStorage()
    storage.apply_snapshot(Snapshot(SnapshotMeta(1, 1, ConfState((1, 2, 3)))))
    storage.append([Entry(1, i) for i in range(2, 6)])
    storage.set_hard_state(HardState(1, 0, 4))
    node = RawNode(Config(id=1), storage, randrange=random.Random(7).randrange)
    said = Message(MessageKind.APPEND, 1, 2, 9, index=index, log_term=term)
    if lost:
        with pytest.raises(LogLost, match="is committed here with term 1"):
            node.step(said)
    else:
        node.step(said)
        assert node.status().commit == 4
