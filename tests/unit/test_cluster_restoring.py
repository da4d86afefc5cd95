"""Restoring a copy: a new swarm of one that goes on from it, or nothing at all."""

from __future__ import annotations

import hashlib
import itertools
import os
import resource
import shutil
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from swarmd.cluster import restoring
from swarmd.cluster.replica import Replica
from swarmd.cluster.restoring import MAY_BE_THERE, PART, Restored, restore
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Busy, Conflict, Invalid, Unavailable
from swarmd.domain.jobs import Fetch, JobSpec, NodeId
from swarmd.domain.nodes import Node
from swarmd.ops import jobs
from swarmd.ops.raft import Copies
from swarmd.state.queries import ListNodes
from tests.cluster import open_alone

ME = Actor("t", "test")
SPEC = JobSpec("t", Fetch("http://h/b", "a" * 64))


def alone(place: Path, node_id: str, prefix: str) -> AbstractAsyncContextManager[Replica]:
    place.mkdir(exist_ok=True)
    ids = itertools.count()
    node = Node(NodeId(node_id), "same-name")
    return open_alone(place, node, now_ms=lambda: 1_000_000, new_id=lambda: f"{prefix}-{next(ids)}")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Of a swarm with three jobs."""
    file = tmp_path / "copy.db"

    async def make() -> None:
        async with alone(tmp_path / "old", "old-node", "old") as cluster:
            for _ in range(3):
                await jobs.submit(cluster, ME, SPEC)
            await cluster.copy_state(file)

    trio.run(make)
    return file


def hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def restored(copy: Path, target: Path, **more: str) -> Restored:
    target.mkdir(exist_ok=True)
    return restore(
        copy, target, node_id="new-node", cluster_id="new-swarm", now_ms=2_000_000, **more
    )


async def test_the_restored_node_founds_a_swarm_of_its_own(copy: Path, tmp_path: Path) -> None:
    done = restored(copy, tmp_path / "new")
    assert (done.nodes_removed, done.sha256) == (("same-name",), hash_of(copy))
    left = sorted(p.name for p in (tmp_path / "new").iterdir())
    assert left == ["node-id", "state.db"]
    assert (tmp_path / "new" / "state.db").stat().st_mode & 0o777 == 0o600
    async with alone(tmp_path / "new", "new-node", "new") as cluster:
        assert cluster.cluster_id == "new-swarm"
        view = cluster.log_view()
        assert (view.voters, view.applied > done.index) == (("new-node",), True)
        assert [n.id for n in await cluster.read(ListNodes())] == ["new-node"]
        assert len(await jobs.list_jobs(cluster, jobs.JobFilter())) == 3
        await jobs.submit(cluster, ME, SPEC)
    async with alone(tmp_path / "new", "new-node", "again") as cluster:
        assert len(await jobs.list_jobs(cluster, jobs.JobFilter())) == 4


async def test_the_state_of_a_node_that_was_killed_is_taken_with_what_lies_beside_it(
    tmp_path: Path,
) -> None:
    dead = tmp_path / "dead"
    dead.mkdir()
    async with alone(tmp_path / "old", "old-node", "old") as cluster:
        await jobs.submit(cluster, ME, SPEC)
        for suffix in ("", "-wal"):  # nothing is written meanwhile: as kill -9 would leave it
            shutil.copy(tmp_path / "old" / f"state.db{suffix}", dead / f"state.db{suffix}")
    restored(dead / "state.db", tmp_path / "new")
    async with alone(tmp_path / "new", "new-node", "new") as cluster:
        assert len(await jobs.list_jobs(cluster, jobs.JobFilter())) == 1


def test_a_copy_that_is_not_whole_is_refused_and_leaves_nothing(copy: Path, tmp_path: Path) -> None:
    data = copy.read_bytes()
    target = tmp_path / "new"
    broken = {
        "cut": data[: len(data) // 2 // 4096 * 4096],
        "torn": data[:5000] + bytes(4096) + data[9096:],
        "empty": b"",
        "garbage": os.urandom(20_000),
    }
    for name, content in broken.items():
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(Unavailable):
            restored(file, target)
        assert list(target.iterdir()) == [], name
    with pytest.raises(Unavailable, match="cannot be read"):
        restored(tmp_path / "none", target)
    with pytest.raises(Invalid, match=hash_of(copy)):
        restored(copy, target, sha256="0" * 64)
    assert list(target.iterdir()) == []
    restored(copy, target, sha256=hash_of(copy).upper())


def test_a_directory_with_anything_in_it_is_refused(copy: Path, tmp_path: Path) -> None:
    target = tmp_path / "new"
    target.mkdir()
    for name in MAY_BE_THERE:
        (target / name).touch()
    (target / "raft.db").write_text("kept")
    with pytest.raises(Conflict, match="not empty"):
        restored(copy, target)
    assert (target / "raft.db").read_text() == "kept"
    (target / "raft.db").unlink()
    restored(copy, target)
    with pytest.raises(Conflict, match="not empty"):
        restored(copy, target)


def test_what_a_restore_left_that_was_killed_is_taken_away(copy: Path, tmp_path: Path) -> None:
    target = tmp_path / "new"
    target.mkdir()
    for name in (PART, f"{PART}-journal", "node-id", "daemon.lock"):
        (target / name).write_text("half")
    restored(copy, target)
    assert (target / "node-id").read_text() == "new-node"
    assert not (target / PART).exists()


def test_a_full_disk_is_named_and_leaves_nothing(copy: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(Unavailable, match="cannot take the copy"):
            restored(copy, tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "new").iterdir()) == []


async def test_one_copy_is_given_out_at_a_time_and_nothing_of_it_stays(tmp_path: Path) -> None:
    async with alone(tmp_path / "old", "old-node", "old") as cluster:
        await jobs.submit(cluster, ME, SPEC)
        copies = Copies(cluster, tmp_path / "old" / "copies")
        taken = await copies.take()
        with pytest.raises(Busy):
            await copies.take()
        data = b"".join([piece async for piece in taken])
        await taken.aclose()
        assert hashlib.sha256(data).hexdigest() == taken.made.sha256
        assert len(data) == taken.made.size_bytes
        await (await copies.take()).aclose()  # one that was never begun is let go of, too
        assert not list((tmp_path / "old" / "copies").iterdir())
        nowhere = Copies(cluster, tmp_path / "nowhere")
        for _ in range(2):
            with pytest.raises(Unavailable, match="nowhere"):
                await nowhere.take()


def test_what_a_part_is_made_of_is_known() -> None:
    assert not restoring._OF_A_PART & MAY_BE_THERE
