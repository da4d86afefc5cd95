"""The cache of executables: verified at every run, fetched once, and what is in use stays."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from swarmd.agent.binaries import Binaries
from swarmd.agent.blobs import BlobStore
from swarmd.domain.errors import Invalid, NotFound, SwarmError, TooLarge, Unavailable
from swarmd.domain.jobs import Fetch
from swarmd.drivers.http import HttpSettings
from tests.parts import need

SCRIPT = b"#!/bin/sh\necho ran as $(id -u)\n"
TRUE = Path(shutil.which("true") or "/bin/true").read_bytes()
QUICK = HttpSettings(connect_timeout_s=2, connect_tries=1, stall_timeout_s=5)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Shelf:
    """A web server that serves what stands on it, by path, and counts what it was asked."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.bodies: dict[str, bytes] = {}
        self.headers = b""
        self.asked: list[str] = []
        self.gate = trio.Event()
        self.gate.set()
        self.arrived = trio.Event()

    def source(self, path: str, sha256: str | None = None) -> Fetch:
        url = f"http://127.0.0.1:{self.port}{path}"
        return Fetch(url, sha256 or sha(self.bodies[path]))

    async def serve(self, stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some(4096)
        path = head.split()[1].decode()
        self.asked.append(path)
        self.arrived.set()
        await self.gate.wait()
        body = self.bodies.get(path)
        status = b"404 None" if body is None else b"200 OK"
        body = body or b""
        answer = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n" % (status, len(body), self.headers)
        try:
            await stream.send_all(answer + body)
        except trio.BrokenResourceError:
            pass
        finally:
            await stream.aclose()


@pytest.fixture
async def shelf() -> AsyncIterator[Shelf]:
    async with _shelf() as shelf:
        yield shelf


@asynccontextmanager
async def _shelf() -> AsyncIterator[Shelf]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    shelf = Shelf(listeners[0].socket.getsockname()[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, shelf.serve, listeners)
        yield shelf
        nursery.cancel_scope.cancel()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", bytes_max=10**9)


def cache(tmp_path: Path, store: BlobStore, bytes_max: int = 400_000_000) -> Binaries:
    return Binaries(tmp_path / "bin", store, bytes_max=bytes_max, http=QUICK, fetch_timeout_s=10)


@pytest.fixture
def binaries(tmp_path: Path, store: BlobStore) -> Binaries:
    return cache(tmp_path, store)


def names(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "bin").rglob("*") if p.is_file())


@pytest.mark.parametrize("size", [0, 30, 45_000, 131_072, 131_073, 2_000_000])
async def test_fetched_once_and_handed_out_many_times(
    tmp_path: Path, binaries: Binaries, shelf: Shelf, size: int
) -> None:
    shelf.bodies["/x"] = os.urandom(size)
    source = shelf.source("/x")
    assert not binaries.has(source)
    paths = [await binaries.obtain(source) for _ in range(5)]
    assert set(paths) == {tmp_path / "bin" / source.sha256}
    assert paths[0].read_bytes() == shelf.bodies["/x"]
    assert paths[0].stat().st_mode & 0o7777 == 0o755
    assert shelf.asked == ["/x"]
    assert binaries.has(source) and binaries.total_bytes == size


async def test_a_blob_is_a_source_too(binaries: Binaries, store: BlobStore) -> None:
    for data in (SCRIPT, os.urandom(1_000_000)):
        name = (await store.put_bytes(data)).sha256
        for url, sha256 in ((name, name.upper()), (name.upper(), name)):
            path = await binaries.obtain(Fetch(f"blob:sha256:{url}", sha256))
            assert path.name == name and path.read_bytes() == data
    with pytest.raises(NotFound, match="is not on this node"):
        await binaries.obtain(Fetch(f"blob:sha256:{sha(b'?')}", sha(b"?")))


@pytest.mark.parametrize(
    ("url", "sha256"),
    [
        (f"blob:sha256:{'a' * 64}", "b" * 64),
        ("blob:sha256:../../etc", "b" * 64),
        ("http://127.0.0.1/x", "../../../etc/passwd"),
        ("http://127.0.0.1/x", "b" * 63),
        ("file:///bin/sh", "b" * 64),
        ("", "b" * 64),
    ],
)
async def test_sources_that_are_refused(binaries: Binaries, url: str, sha256: str) -> None:
    with pytest.raises(Invalid):
        await binaries.obtain(Fetch(url, sha256))


async def test_another_hash_than_expected(tmp_path: Path, binaries: Binaries, shelf: Shelf) -> None:
    shelf.bodies["/x"] = SCRIPT
    wrong = "0" * 64
    with pytest.raises(Invalid, match=f"expected sha256 {wrong}, got {sha(SCRIPT)}$"):
        await binaries.obtain(shelf.source("/x", wrong))
    shelf.headers = b"Content-Encoding: gzip\r\n"
    with pytest.raises(Invalid, match="served with encoding gzip"):
        await binaries.obtain(shelf.source("/x", wrong))
    assert names(tmp_path) == []
    assert not binaries.has(shelf.source("/x", wrong))


async def test_a_download_that_fails(tmp_path: Path, binaries: Binaries, shelf: Shelf) -> None:
    with pytest.raises(Unavailable, match="answered 404 Not Found"):
        await binaries.obtain(shelf.source("/none", "0" * 64))
    assert names(tmp_path) == []


async def test_larger_than_the_whole_cache(tmp_path: Path, store: BlobStore, shelf: Shelf) -> None:
    shelf.bodies["/x"] = bytes(2000)
    with pytest.raises(TooLarge):
        await cache(tmp_path, store, bytes_max=1000).obtain(shelf.source("/x"))
    assert names(tmp_path) == []


@pytest.mark.parametrize("size", [1000, 300_000])
@pytest.mark.parametrize("how", ["changed", "grown", "shrunk", "gone"])
async def test_a_damaged_file_is_fetched_anew(
    binaries: Binaries, shelf: Shelf, size: int, how: str
) -> None:
    shelf.bodies["/x"] = data = os.urandom(size)
    path = await binaries.obtain(shelf.source("/x"))
    match how:
        case "changed":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "grown":
            path.write_bytes(data + b"!")
        case "shrunk":
            path.write_bytes(data[:-1])
        case "gone":
            path.unlink()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(binaries.obtain, shelf.source("/x"))
    assert path.read_bytes() == data
    assert len(shelf.asked) == 2
    assert binaries.total_bytes == size


async def test_many_who_want_the_same_wait_for_one_download(
    binaries: Binaries, shelf: Shelf
) -> None:
    shelf.bodies["/x"] = SCRIPT
    shelf.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(binaries.obtain, shelf.source("/x"))
        await shelf.arrived.wait()
        shelf.gate.set()
    assert shelf.asked == ["/x"]


async def test_those_who_wait_share_a_failure_but_not_of_another_url(
    binaries: Binaries, shelf: Shelf
) -> None:
    shelf.bodies["/good"] = SCRIPT
    shelf.gate = trio.Event()
    outcomes: list[str] = []

    async def obtain(path: str) -> None:
        try:
            await binaries.obtain(shelf.source(path, sha(SCRIPT)))
            outcomes.append("ok")
        except SwarmError as error:
            outcomes.append(type(error).__name__)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(obtain, "/bad")
        await shelf.arrived.wait()
        for path in ("/bad", "/bad", "/good", "/good"):
            nursery.start_soon(obtain, path)
        await trio.testing.wait_all_tasks_blocked()
        shelf.gate.set()
    assert sorted(outcomes) == ["Unavailable"] * 3 + ["ok"] * 2
    assert shelf.asked == ["/bad", "/good"]


async def test_another_takes_over_when_the_one_that_downloads_is_cancelled(
    binaries: Binaries, shelf: Shelf
) -> None:
    shelf.bodies["/x"] = SCRIPT
    shelf.gate = trio.Event()
    first = trio.CancelScope()

    async def impatient() -> None:
        with first:
            await binaries.obtain(shelf.source("/x"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(impatient)
        await shelf.arrived.wait()
        nursery.start_soon(binaries.obtain, shelf.source("/x"))
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        shelf.gate.set()
    assert binaries.has(shelf.source("/x"))
    assert shelf.asked == ["/x", "/x"]


async def test_many_at_once_each_in_its_place(binaries: Binaries, shelf: Shelf) -> None:
    shelf.bodies = {f"/{n}": b"%d" % n for n in range(20)}
    good = [shelf.source(f"/{n % 20}") for n in range(60)]
    bad = [shelf.source("/none", "0" * 64), Fetch("ftp://x", "1" * 64), Fetch("blob:x", "2" * 64)]
    await binaries.obtain(good[3])
    outcomes = await binaries.obtain_many([*good, *bad, *good])
    assert [o.name for o in outcomes if isinstance(o, Path)] == [s.sha256 for s in good] * 2
    assert [type(o) for o in outcomes[60:63]] == [Unavailable, Invalid, Invalid]
    assert len(shelf.asked) == 21
    assert await binaries.obtain_many([]) == []


async def test_the_least_recently_used_goes_first(
    tmp_path: Path, store: BlobStore, shelf: Shelf
) -> None:
    binaries = cache(tmp_path, store, bytes_max=3000)
    shelf.bodies = {f"/{n}": bytes([n]) * 1000 for n in range(5)}
    sources = [shelf.source(f"/{n}") for n in range(5)]
    for n in (0, 1, 2, 0, 3):
        binaries.release(await binaries.obtain(sources[n]))
    assert [binaries.has(s) for s in sources] == [True, False, True, True, False]
    assert binaries.total_bytes == 3000
    again = cache(tmp_path, store, bytes_max=2000)
    assert again.total_bytes == 2000 and len(names(tmp_path)) == 2
    assert again.has(sources[3])


async def test_what_is_in_use_is_never_evicted(
    tmp_path: Path, store: BlobStore, shelf: Shelf
) -> None:
    binaries = cache(tmp_path, store, bytes_max=2000)
    shelf.bodies = {f"/{n}": bytes([n]) * 1000 for n in range(6)}
    sources = [shelf.source(f"/{n}") for n in range(6)]
    once, *held = await binaries.obtain_many([sources[0], sources[0], sources[1]])
    assert isinstance(once, Path)
    binaries.release(once)  # and another still runs it
    for source in sources[2:5]:
        async with binaries.held(source) as path:
            assert path.exists()
    assert binaries.has(sources[0]) and binaries.has(sources[1])
    for path in held:
        assert isinstance(path, Path)
        binaries.release(path)
    taken_back = binaries.path(sources[1])
    binaries.hold(taken_back)
    binaries.release(await binaries.obtain(sources[5]))
    assert not binaries.has(sources[0]) and binaries.has(sources[1])
    assert binaries.total_bytes <= 2000
    binaries.release(taken_back)
    assert not binaries._pins, "every pin was given back"


async def test_refusals_and_cancellation_leave_no_pin(binaries: Binaries, shelf: Shelf) -> None:
    shelf.bodies["/x"] = SCRIPT
    await binaries.obtain_many([shelf.source("/none", "0" * 64)] * 3)
    binaries.release(await binaries.obtain(shelf.source("/x")))
    shelf.gate = trio.Event()
    with trio.move_on_after(0.1):
        await binaries.obtain_many([shelf.source("/x"), shelf.source("/slow", "1" * 64)])
    assert not binaries._pins


async def test_leftovers_of_a_crash_are_gone(tmp_path: Path, store: BlobStore) -> None:
    root = tmp_path / "bin"
    (root / "tmp").mkdir(parents=True)
    (root / "tmp" / "fetch-7").write_bytes(b"half")
    (root / "README").touch()
    (root / ("a" * 64)).write_bytes(b"torn")
    binaries = cache(tmp_path, store)
    assert binaries.total_bytes == 4
    with pytest.raises(NotFound):  # and what does not have its hash is not handed out
        await binaries.obtain(Fetch(f"blob:sha256:{'a' * 64}", "a" * 64))
    assert names(tmp_path) == ["README"]


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that other accounts can pass through, as pytest's own are not."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o711)
    yield root
    shutil.rmtree(root)


@pytest.fixture
def other_accounts() -> None:
    need("root", "setpriv")


@pytest.mark.usefixtures("other_accounts")
async def test_an_unprivileged_account_runs_it_and_cannot_change_it(
    open_path: Path, store: BlobStore
) -> None:
    name = (await store.put_bytes(SCRIPT)).sha256
    binaries = cache(open_path, store)
    path = await binaries.obtain(Fetch(f"blob:sha256:{name}", name))
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]

    def run(*command: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*nobody, *command], capture_output=True, timeout=20, check=False)

    assert run(str(path)).stdout == b"ran as 65534\n"
    assert run("sh", "-c", f"echo >> {path}").returncode != 0
    assert run("rm", "-f", str(path)).returncode != 0
    assert run("touch", f"{path.parent}/mine").returncode != 0
    assert run("ls", str(path.parent)).returncode != 0
    assert run("ls", f"{path.parent}/tmp").returncode != 0


async def test_it_can_be_started_as_soon_as_it_is_handed_out(
    open_path: Path, store: BlobStore
) -> None:
    """No writer is left on a fresh file: `Text file busy` would fail the job.

    As in a node it is another process that starts it: one forked from here would hold, until its
    exec, what others are just being fetched into.
    """
    binaries = cache(open_path, store)
    each = 'while read -r path; do "$path"; echo $?; done'
    pipe = subprocess.PIPE
    starter = await trio.lowlevel.open_process(["sh", "-c", each], stdin=pipe, stdout=pipe)
    assert starter.stdin is not None and starter.stdout is not None
    stdin, stdout, in_turn = starter.stdin, starter.stdout, trio.Lock()

    async def start(n: int) -> None:
        data = TRUE + b"%d" % n
        name = (await store.put_bytes(data)).sha256
        async with binaries.held(Fetch(f"blob:sha256:{name}", name)) as path, in_turn:
            await stdin.send_all(bytes(path) + b"\n")
            assert await stdout.receive_some() == b"0\n"

    with trio.fail_after(30):
        async with stdout:
            async with stdin, trio.open_nursery() as nursery:
                for n in range(30):
                    nursery.start_soon(start, n)
            assert await starter.wait() == 0
