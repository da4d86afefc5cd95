"""Blobs on a real disk: durable, whole or not there, served only while their hash is right."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from swarmd.agent.blobs import DAMAGED_KEPT_MAX, BlobStore
from swarmd.domain.blobs import BlobInfo
from swarmd.domain.errors import Invalid, NotFound, TooLarge, Unavailable
from tests.parts import need
from tests.steps import measured

LARGE = bytes(range(256)) * 4096  # 1 MiB: several slices


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def pieces(data: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        await trio.lowlevel.checkpoint()
        yield data[start : start + size]


async def content(store: BlobStore, name: str) -> bytes:
    async with store.open(name) as chunks:
        return b"".join([chunk async for chunk in chunks])


def files(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", bytes_max=50_000_000)


@pytest.mark.parametrize("size", [0, 1, 262_144, 262_145, 1_000_000])
async def test_what_is_put_is_read_back(store: BlobStore, size: int) -> None:
    data = LARGE[:size]
    info = await store.put(pieces(data))
    assert info == BlobInfo(sha(data), size) == await store.put_bytes(data)
    assert await content(store, info.sha256) == data
    assert await store.read(info.sha256, bytes_max=size) == data
    assert store.has(info.sha256.upper()) and await store.verify(info.sha256)
    assert files(store.root) == [f"{info.sha256[:2]}/{info.sha256}"]
    assert store.path(info.sha256).stat().st_mode & 0o777 == 0o600
    assert store.total_bytes == size


async def test_many_put_the_same_at_once(store: BlobStore) -> None:
    async with trio.open_nursery() as nursery:
        for n in range(20):
            nursery.start_soon(store.put, pieces(LARGE, 7000 + n))
            nursery.start_soon(store.put_bytes, LARGE)
    assert files(store.root) == [f"{sha(LARGE)[:2]}/{sha(LARGE)}"]
    assert store.total_bytes == len(LARGE)
    assert await content(store, sha(LARGE)) == LARGE


async def test_an_expected_hash_is_held_to(store: BlobStore) -> None:
    await store.put(pieces(b"abc"), expected_sha256=sha(b"abc").upper())
    with pytest.raises(Invalid, match=f"expected sha256 {sha(b'other')}, got {sha(b'abd')}"):
        await store.put(pieces(b"abd"), expected_sha256=sha(b"other"))
    with pytest.raises(Invalid):
        await store.put_bytes(b"abd", expected_sha256=sha(b"other"))
    assert len(files(store.root)) == 1


async def test_bounds_of_a_blob_and_of_the_store(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "b", bytes_max=100_000)
    with pytest.raises(TooLarge):
        await store.put(pieces(bytes(1001)), bytes_max=1000)
    await store.put_bytes(bytes(60_000))
    full = "is full: it holds 60000 bytes, more are being written, and 100000 are allowed"
    with pytest.raises(Unavailable, match=full):
        await store.put(pieces(b"x" * 50_000))
    with pytest.raises(Unavailable, match=full):
        await store.put_bytes(b"x" * 50_000)
    assert len(files(store.root)) == 1
    assert await store.delete(sha(bytes(60_000)))
    await store.put_bytes(b"x" * 50_000)


async def test_puts_at_once_share_the_bound(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "b", bytes_max=1_000_000)
    refused: list[Unavailable] = []

    async def put(data: bytes) -> None:
        try:
            await store.put(pieces(data))
        except Unavailable as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for n in range(8):
            nursery.start_soon(put, bytes([n]) * 300_000)
    assert refused and store.total_bytes <= 1_000_000
    await store.put_bytes(b"y" * (1_000_000 - store.total_bytes))  # nothing stays reserved


async def test_a_put_that_breaks_off_leaves_nothing(store: BlobStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield LARGE
        raise ValueError("the peer went away")

    async def stuck() -> AsyncIterator[bytes]:
        yield LARGE
        await trio.sleep_forever()

    with pytest.raises(ValueError):
        await store.put(broken())
    with trio.move_on_after(0.1):
        await store.put(stuck())
    assert files(store.root) == []
    assert store.total_bytes == 0


def test_a_crash_leaves_only_what_was_whole(tmp_path: Path) -> None:
    """A process killed while it writes: the next one finds the finished blob and no leftovers."""
    root = tmp_path / "b"
    code = (
        "import sys, trio, pathlib\n"
        "from swarmd.agent.blobs import BlobStore\n"
        "async def endless():\n"
        "    while True:\n"
        "        yield bytes(100_000)\n"
        "        print('more', flush=True)\n"
        "async def main():\n"
        "    store = BlobStore(pathlib.Path(sys.argv[1]), bytes_max=10**9)\n"
        "    await store.put_bytes(b'whole')\n"
        "    await store.put(endless())\n"
        "trio.run(main)\n"
    )
    command = [sys.executable, "-c", code, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(10):
            assert process.stdout.readline() == b"more\n"
        process.kill()
    assert len(files(root)) == 2
    store = BlobStore(root, bytes_max=10**9)
    assert files(root) == [f"{sha(b'whole')[:2]}/{sha(b'whole')}"]
    assert store.total_bytes == 5


@pytest.mark.parametrize(
    "name",
    ["", "..", "../../etc/passwd", "a" * 63, "a" * 65, "g" * 64, "a" * 63 + "\n", "/" + "a" * 63,
     "\u0661" * 64, "a" * 62 + "/.", "\0" * 64],
)  # fmt: skip
async def test_names_that_are_no_hash(store: BlobStore, name: str) -> None:
    with pytest.raises(Invalid):
        store.path(name)
    with pytest.raises(Invalid):
        store.has(name)
    with pytest.raises(Invalid):
        await content(store, name)
    with pytest.raises(Invalid):
        await store.delete(name)
    with pytest.raises(Invalid):
        await store.put_bytes(b"", expected_sha256=name)


async def test_what_is_not_here(store: BlobStore) -> None:
    name = sha(b"nothing")
    assert not store.has(name)
    assert not await store.delete(name)
    for refused in (content(store, name), store.verify(name), store.read(name, bytes_max=9)):
        with pytest.raises(NotFound, match=f"blob:sha256:{name} is not on this node"):
            await refused


def damage(store: BlobStore, name: str) -> None:
    with store.path(name).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")


@pytest.mark.parametrize("size", [100, 1_000_000])
@pytest.mark.parametrize("way", ["open", "read", "verify"])
async def test_a_damaged_blob_is_set_aside(store: BlobStore, size: int, way: str) -> None:
    data = LARGE[:size]
    name = (await store.put_bytes(data)).sha256
    damage(store, name)
    if way == "verify":
        assert not await store.verify(name)
    else:
        with pytest.raises(NotFound, match="was damaged on this disk and was set aside"):
            if way == "open":
                await content(store, name)
            else:
                await store.read(name, bytes_max=size)
    assert not store.has(name) and store.total_bytes == 0
    assert files(store.root) == [f"damaged/{name}"]
    await store.put_bytes(data)
    assert await content(store, name) == data


async def test_the_last_slice_of_a_damaged_blob_is_never_given(store: BlobStore) -> None:
    name = (await store.put_bytes(LARGE)).sha256
    damage(store, name)
    got = b""
    with pytest.raises(NotFound):
        async with store.open(name) as chunks:
            async for chunk in chunks:
                got += chunk
    assert 0 < len(got) < len(LARGE) and LARGE.startswith(got)


async def test_putting_it_again_heals_a_damaged_blob(store: BlobStore) -> None:
    name = (await store.put_bytes(LARGE)).sha256
    damage(store, name)
    await store.put(pieces(LARGE))
    assert await store.verify(name)
    assert store.total_bytes == len(LARGE)


async def test_few_damaged_ones_are_kept(store: BlobStore) -> None:
    for n in range(DAMAGED_KEPT_MAX + 3):
        name = (await store.put_bytes(b"blob %d" % n)).sha256
        damage(store, name)
        await store.verify(name)
    assert len(files(store.root)) == DAMAGED_KEPT_MAX


async def test_a_reader_reads_on_when_it_is_deleted(store: BlobStore) -> None:
    name = (await store.put_bytes(LARGE)).sha256
    async with store.open(name) as chunks:
        assert await store.delete(name)
        assert b"".join([chunk async for chunk in chunks]) == LARGE
    assert store.total_bytes == 0


async def test_a_reader_that_leaves_early_holds_nothing(store: BlobStore) -> None:
    name = (await store.put_bytes(LARGE)).sha256
    before = os.listdir("/proc/self/fd")
    for _ in range(20):
        async with store.open(name) as chunks:
            async for _ in chunks:
                break
    assert len(os.listdir("/proc/self/fd")) == len(before)


async def test_the_list_comes_in_pages(store: BlobStore) -> None:
    names = sorted([(await store.put_bytes(b"%d" % n)).sha256 for n in range(30)])
    (store.root / "ff").mkdir(exist_ok=True)
    (store.root / "ff" / "stray").touch()
    seen: list[str] = []
    while page := await store.list_blobs(after=seen[-1] if seen else "", limit=7):
        assert len(page) <= 7
        seen += [info.sha256 for info in page]
    assert seen == names
    again = BlobStore(store.root, bytes_max=10**9)
    assert again.total_bytes == store.total_bytes == sum(len(b"%d" % n) for n in range(30))


async def test_large_blobs_do_not_hold_the_loop(store: BlobStore) -> None:
    longest_s = []
    data = LARGE * 24
    for _ in range(3):
        with measured() as steps:
            info = await store.put(pieces(data, 65_536))
            async with store.open(info.sha256) as chunks:
                async for _ in chunks:
                    pass
            await store.delete(info.sha256)
        longest_s.append(steps.longest_s)
    assert min(longest_s) < 0.005


@pytest.fixture
def mounts() -> None:
    need("root")


@pytest.mark.usefixtures("mounts")
async def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys, trio, pathlib\n"
        "from swarmd.agent.blobs import BlobStore\n"
        "from swarmd.domain.errors import Unavailable\n"
        "async def much():\n"
        "    for _ in range(40): yield bytes(100_000)\n"
        "async def main():\n"
        "    store = BlobStore(pathlib.Path(sys.argv[1]) / 'b', bytes_max=10**9)\n"
        "    await store.put_bytes(b'kept')\n"
        "    for refused in (store.put(much()), store.put_bytes(bytes(4_000_000))):\n"
        "        try: await refused\n"
        "        except Unavailable as error: print(error.message)\n"
        "        print(sum(len(files) for _, _, files in os.walk(store.root)), store.total_bytes)\n"
        "    await store.put_bytes(bytes(100_000))\n"
        "trio.run(main)\n"
    )
    script = 'mount -t tmpfs -o size=1m none "$2" && exec "$0" -c "$1" "$2"'
    command = ["unshare", "--mount", "sh", "-ec", script, sys.executable, code, str(tmp_path)]
    done = await trio.run_process(
        command, capture_stdout=True, stderr=subprocess.STDOUT, check=False
    )
    words = f"the disk under {tmp_path}/b/tmp is full"
    assert done.stdout.decode().splitlines() == [words, "1 4"] * 2


async def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "b", bytes_max=10**9)
    (tmp_path / "b" / "tmp").rmdir()
    (tmp_path / "b" / "tmp").touch()  # as good as a broken disk, and root is not spared
    with pytest.raises(OSError):
        await store.put_bytes(b"x")
    with pytest.raises(OSError):
        await store.put(pieces(b"x"))
    assert store.total_bytes == 0


async def test_the_last_of_a_disk_is_left_to_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path / "blobs", bytes_max=1 << 30)
    monkeypatch.setattr("swarmd.drivers.files.RESERVE_BYTES", 1 << 62)
    monkeypatch.setattr("swarmd.drivers.files.RESERVE_PART", 1)
    for put in (store.put_bytes(bytes(300_000)), store.put(pieces(bytes(300_000)))):
        with pytest.raises(Unavailable, match="is full"):
            await put
    assert not [each for each in (tmp_path / "blobs").rglob("*") if each.is_file()]
    monkeypatch.setattr("swarmd.drivers.files.RESERVE_PART", 1_000_000)
    await store.put_bytes(bytes(300_000))
