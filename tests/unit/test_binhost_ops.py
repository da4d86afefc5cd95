"""The binary host's operations: the key that is made once and opened on voters alone, packages that
are signed before they are stored, an index that rises, and why none fits.

Real replicas on real TLS, and real blobs on the disk."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from mesh.identity.files import Identity
from swarmd.agent.blobs import BlobStore
from swarmd.agent.sharing import NodeBlobs
from swarmd.belonging import open_cluster
from swarmd.cluster.asks import SignDigest
from swarmd.cluster.replica import Replica
from swarmd.cluster.trust import Trust
from swarmd.config_sources import load
from swarmd.control.leadership import lead_when_elected
from swarmd.control.members import VoterSettings
from swarmd.control.upkeep import UpkeepSettings
from swarmd.domain.actors import SYSTEM
from swarmd.domain.binpkgs import BinPkg, path_of
from swarmd.domain.builds import STAGED_MAX, Control, Outcome
from swarmd.domain.errors import Busy, Conflict, Invalid, NotFound, SwarmError, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.drivers import gpkg
from swarmd.drivers.openpgp import PublicKey, SigningKey
from swarmd.ops import binhost, builds, queueing, signing
from swarmd.ops.binhost import UPLOADS_MAX, UPLOADS_OF_ONE_MAX, Host, Index
from swarmd.ops.builds import BuilderSays
from swarmd.state.commands import VERSION
from swarmd.state.queries import FindBlob, FindSecret
from tests.gpkgs import package

WAIT_S = 30.0
MIB = 1024 * 1024
DRONE = "drone"


@dataclass
class Place:
    """A node, and what lies on its disk."""

    cluster: Replica
    folder: Path
    store: BlobStore

    def __post_init__(self) -> None:
        self.uploads = binhost.Staging(self.staging, 64 * MIB)

    @property
    def staging(self) -> Path:
        return self.folder / "staging"

    @property
    def trust(self) -> Trust:
        assert self.cluster.trust is not None
        return self.cluster.trust

    async def public(self) -> PublicKey:
        return PublicKey.load((await signing.public_key(self.cluster)).armored.encode())

    async def stage(
        self, file: Path, cpv: str, builder: str = "", bytes_max: int = 64 * MIB, build: str = ""
    ) -> BinPkg:
        chunks = Upload(await trio.Path(file).read_bytes())
        return await self.take(chunks, f"{cpv}{build}.gpkg.tar", builder, bytes_max)

    async def take(
        self, chunks: AsyncIterator[bytes], path: str, builder: str, bytes_max: int = 64 * MIB
    ) -> BinPkg:
        self.uploads.bytes_max = bytes_max
        return await binhost.stage(self.cluster, SYSTEM, builder, path, chunks, self.uploads)

    async def register(self, *names: str) -> None:
        for name in names:
            says = BuilderSays(name, name, ("10.0.0.1",), 1, 1 << 30, True, "", "1", None, {})
            await builds.register(self.cluster, SYSTEM, says)

    async def give(self, cpv: str, *names: str) -> None:
        """The drones hold the package, one of which there is for each."""
        await self.register(*names)
        await self._queue((cpv,))
        for name in names:
            work = await builds.work(self.cluster, SYSTEM, name, 1)
            assert work.package == cpv

    async def _queue(self, cpvs: Sequence[str]) -> None:
        meant = await queueing.look_up(self.cluster, cpvs)
        await queueing.enqueue(self.cluster, SYSTEM, meant, "s", f"session-{cpvs[0]}")

    async def build(self, *cpvs: str, **said: bytes) -> list[BinPkg]:
        """As a drone would."""
        await self.register(DRONE)
        await self._queue(cpvs)
        made = []
        for cpv in cpvs:
            await builds.work(self.cluster, SYSTEM, DRONE, 1)
            file = package(self.folder / "made", cpv, **said)
            made.append(await self.stage(file, cpv, DRONE))
            finish = partial(builds.finish, duration_ms=1, error=None)
            assert await finish(self.cluster, SYSTEM, DRONE, cpv, Outcome.BUILT)
        return made

    async def file_of(self, sha256: str, to: Path) -> Path:
        async with self.cluster.blobs.open(sha256) as chunks:
            await trio.Path(to).write_bytes(b"".join([chunk async for chunk in chunks]))
        return to

    def left(self) -> list[Path]:
        return [*self.staging.iterdir()] if self.staging.exists() else []

    def blobs(self) -> list[Path]:
        return [path for path in (self.folder / "blobs").rglob("*") if path.is_file()]


class Upload:
    """A body, of which it is known how much was taken; a part of it may be long in coming."""

    def __init__(self, data: bytes, slow: bool = False) -> None:
        self.taken = 0
        self.begun = trio.Event()
        self.goes_on = trio.Event()
        self._data = data
        if not slow:
            self.goes_on.set()

    def __aiter__(self) -> Upload:
        return self

    async def __anext__(self) -> bytes:
        if self.begun.is_set():
            await self.goes_on.wait()
        self.begun.set()
        chunk = self._data[self.taken : self.taken + 4096]
        self.taken += len(chunk)
        if not chunk:
            raise StopAsyncIteration
        return chunk


Opens = Callable[..., AbstractAsyncContextManager[Place]]


@pytest.fixture
def place(tmp_path: Path) -> Opens:
    """Opens a node of the test: `place("a")` founds a swarm, `place("b", a)` joins it."""

    @asynccontextmanager
    async def opened(
        name: str, member: Place | None = None, *, blobs_bytes_max: int = 64 * MIB, voters: int = 3
    ) -> AsyncIterator[Place]:
        folder = tmp_path / name
        folder.mkdir()
        token = None
        if member is not None:
            made = await member.trust.make_token(60.0, alone=False, actor=SYSTEM)
            token = made.token
        config = load({"SWARMD_MESH_PORT": "0"}, {
            "node.name": name, "node.data_dir": folder, "mesh.token": token,
            "mesh.join": () if member is None else (member.cluster.node.mesh[0],),
        })  # fmt: skip

        async def describe(node_id: NodeId, mesh: tuple[str, ...], identity: Identity) -> Node:
            return Node(
                node_id, name, mesh=mesh, machine_version=VERSION, public_key=identity.public_key,
                box_key=identity.box_key,
            )  # fmt: skip

        async with (
            open_cluster(config, folder, None, describe) as cluster,
            trio.open_nursery() as nursery,
        ):
            assert isinstance(cluster, Replica)
            settings = VoterSettings(voters, voters)
            nursery.start_soon(lead_when_elected, cluster, UpkeepSettings(), settings)
            store = BlobStore(folder / "blobs", bytes_max=blobs_bytes_max)
            cluster.blobs = NodeBlobs(cluster, store, 64 * MIB)
            signing.answer_signing(cluster)
            here = Place(cluster, folder, store)
            await until(lambda: cluster.introduced.is_set(), "the swarm knows it")
            if member is None:
                await until(lambda: here.trust.vouches, "the founder vouches")
            await until(lambda: cluster.cluster_version() == VERSION, "the state has builds")
            yield here
            nursery.cancel_scope.cancel()

    return opened


async def until(holds: Callable[[], bool], what: str) -> None:
    with trio.move_on_after(WAIT_S):
        while not holds():
            await trio.sleep(0.01)
        return
    raise AssertionError(f"{what} did not come about")


# The key


async def test_the_key_is_made_once_by_whoever_needs_it_first(
    place: Opens, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with place("a") as a, place("b", a) as b, place("c", a) as c:
        await until(lambda: a.trust.vouches and b.trust.vouches and c.trust.vouches, "all vote")
        seen: list[str] = []

        async def look(one: Place) -> None:
            seen.append((await signing.public_key(one.cluster)).fingerprint)

        async with trio.open_nursery() as nursery:
            for one in (a, b, c, a, b, c):
                nursery.start_soon(look, one)
        assert len(seen) == 6 and len({*seen}) == 1
        opened = await a.trust.open_secret(signing.SECRET)
        held = await a.cluster.read(FindSecret(signing.SECRET))
        assert opened is not None and held is not None and opened[1] == held.revision
        key = SigningKey.load(opened[0])
        assert key.public.fingerprint == seen[0] and key._seed not in held.sealed
        assert key._seed.hex() not in caplog.text and repr(key._seed) not in caplog.text


async def test_a_node_that_cannot_open_the_key_signs_by_one_that_can(
    place: Opens, tmp_path: Path
) -> None:
    async with place("a", voters=1) as a, place("b", a, voters=1) as b:
        assert not b.trust.vouches
        with pytest.raises(Unavailable, match="no voter"):
            await b.trust.open_secret(signing.SECRET)
        public = await b.public()
        assert public.fingerprint == (await a.public()).fingerprint
        (pkg,) = await b.build("app-misc/p-1")
        for one in (a, b):
            file = await one.file_of(pkg.sha256, tmp_path / one.cluster.node.name / "got")
            assert replace(await gpkg.verify(file, public), mtime_s=pkg.mtime_s) == pkg
        assert not a.left() and not b.left()


async def test_another_key_signs_from_its_making_on(place: Opens, tmp_path: Path) -> None:
    async with place("a") as a:
        old = await a.public()
        before = await a.stage(package(tmp_path / "p", "app-misc/p-1"), "app-misc/p-1")
        view = await signing.rotate(a.cluster, SYSTEM)
        new = await a.public()
        assert view.fingerprint == new.fingerprint != old.fingerprint
        signed = await a.file_of(before.sha256, tmp_path / "signed")
        assert (await gpkg.verify(signed, old)).sha256 == before.sha256
        after = await a.stage(signed, "app-misc/p-1")
        assert after.sha256 != before.sha256
        again = await a.file_of(after.sha256, tmp_path / "again")
        assert (await gpkg.verify(again, new)).sha256 == after.sha256
        with pytest.raises(Unavailable, match="another key"):
            await a.cluster.ask(a.cluster.node.id, SignDigest(old.fingerprint, bytes(64)))
        with pytest.raises(Invalid, match="SHA-512"):
            await a.cluster.ask(a.cluster.node.id, SignDigest(new.fingerprint, bytes(63)))
        refused = 0

        async def rotate() -> None:
            nonlocal refused
            try:
                await signing.rotate(a.cluster, SYSTEM)
            except Conflict:
                refused += 1

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(rotate)
        assert refused < 3 and (await a.public()).fingerprint != new.fingerprint


async def test_all_can_be_signed_by_the_new_key(place: Opens, tmp_path: Path) -> None:
    async with place("a") as a:
        await a.build("app-misc/p-1")
        (before,) = await binhost.list_pkgs(a.cluster)
        resign = partial(
            binhost.resign, a.cluster, SYSTEM, path_of(before), a.staging, bytes_max=64 * MIB
        )
        index = Index(a.cluster)
        first = await index.read()
        assert not await resign() and await index.read() == first
        await signing.rotate(a.cluster, SYSTEM)
        assert await resign() and not await resign()
        (after,) = await binhost.list_pkgs(a.cluster)
        assert after.sha256 != before.sha256
        same = replace(after, sha256=before.sha256, md5=before.md5, sha1=before.sha1,
                       size_bytes=before.size_bytes, mtime_s=before.mtime_s)  # fmt: skip
        assert same == before  # all else is, and so is its place
        file = await a.file_of(after.sha256, tmp_path / "after")
        assert (await gpkg.verify(file, await a.public())).sha256 == after.sha256
        second = await index.read()
        assert second.at > first.at and after.sha1.encode() in second.plain
        assert before.sha1.encode() not in second.plain and not a.left()
        with pytest.raises(NotFound):
            await binhost.resign(a.cluster, SYSTEM, "a/b", a.staging, 64 * MIB)
        # Somebody else takes it away, or signs it, meanwhile.
        await signing.rotate(a.cluster, SYSTEM)
        async with trio.open_nursery() as nursery:
            done: list[bool | SwarmError] = []

            async def one() -> None:
                try:
                    done.append(await resign())
                except Conflict as refusal:
                    done.append(refusal)

            nursery.start_soon(one)
            nursery.start_soon(one)
        assert True in done and not a.left()


# What is staged


async def test_what_comes_again_is_the_same_blob_and_what_is_signed_stays(
    place: Opens, tmp_path: Path
) -> None:
    async with place("a") as a:
        now = str(int(time.time()) - 1000).encode()
        file = package(tmp_path / "p", "app-misc/p-1", BUILD_TIME=now)
        first = await a.stage(file, "app-misc/p-1")
        assert (await gpkg.read(file)).sha256 != first.sha256
        os.utime(file, (1, 1))
        assert (await a.stage(file, "app-misc/p-1")).sha256 == first.sha256
        signed = await a.file_of(first.sha256, tmp_path / "signed")
        assert (await a.stage(signed, "app-misc/p-1")).sha256 == first.sha256
        ahead = str(int(time.time()) + 10**6).encode()
        file = package(tmp_path / "q", "app-misc/q-1", BUILD_TIME=ahead)
        pkg = await a.stage(file, "app-misc/q-1")
        assert pkg.build_time_s == int(ahead) and pkg.mtime_s <= time.time()
        await gpkg.verify(await a.file_of(pkg.sha256, tmp_path / "ahead"), await a.public())


async def test_what_is_no_package_of_its_path_leaves_nothing(place: Opens, tmp_path: Path) -> None:
    async with place("a") as a:
        file = package(tmp_path / "p", "app-misc/p-1")
        with pytest.raises(Invalid, match="put it under app-misc/p-1"):
            await a.stage(file, "app-misc/other-1")
        with pytest.raises(SwarmError, match="at most 1000 bytes"):
            await a.stage(file, "app-misc/p-1", bytes_max=1000)
        file.write_bytes(file.read_bytes()[:3000])
        with pytest.raises(Invalid):
            await a.stage(file, "app-misc/p-1")
        with pytest.raises(Conflict, match="does not hold"):
            await a.stage(package(tmp_path / "p", "app-misc/p-1"), "app-misc/p-1", "nobody")
        assert not a.left() and not a.blobs()


async def test_what_a_builder_does_not_hold_is_refused_before_it_is_received(
    place: Opens, tmp_path: Path
) -> None:
    async with place("a") as a:
        await a.give("app-misc/p-1", DRONE)
        await a.register("bad")
        file = package(tmp_path / "p", "app-misc/p-1", image=os.urandom(MIB))
        for builder, path in (
            ("bad", "app-misc/p-1.gpkg.tar"), (DRONE, "app-misc/p-2.gpkg.tar"),
            (DRONE, "app-misc/p-10.gpkg.tar"), (DRONE, "other/p-1.gpkg.tar"),
        ):  # fmt: skip
            upload = Upload(file.read_bytes())
            with pytest.raises(Conflict, match=f"does not hold what {path} is a file of"):
                await a.take(upload, path, builder)
            assert upload.taken == 0
        # What the path lets through is looked at before it is signed.
        other = package(tmp_path / "q", "app-misc/p-1-r1", image=os.urandom(MIB))
        with pytest.raises(Conflict, match="does not hold app-misc/p-1-r1"):
            await a.stage(other, "app-misc/p-1-r1", DRONE)
        assert not a.left() and not a.blobs() and a.store.total_bytes == 0
        assert await a.cluster.read(FindSecret(signing.SECRET)) is None, "nothing was signed"
        await a.stage(file, "app-misc/p-1", DRONE, build="-1")
        assert len(a.blobs()) == 1 and not a.left()


async def test_what_is_taken_back_while_it_is_sent_leaves_nothing(
    place: Opens, tmp_path: Path
) -> None:
    async with place("a") as a:
        await a.give("app-misc/p-1", DRONE)
        data = package(tmp_path / "p", "app-misc/p-1").read_bytes()
        upload = Upload(data, slow=True)

        async def send() -> None:
            with pytest.raises(Conflict, match="does not hold app-misc/p-1"):
                await a.take(upload, "app-misc/p-1.gpkg.tar", DRONE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await upload.begun.wait()
            await builds.control(a.cluster, SYSTEM, Control.RECLAIM, DRONE)
            upload.goes_on.set()
        assert upload.taken == len(data) and not a.left() and not a.blobs()


async def test_who_has_too_much_in_staging_sends_no_more(place: Opens, tmp_path: Path) -> None:
    async with place("a") as a:
        await a.give("app-misc/p-1", DRONE)
        file = package(tmp_path / "p", "app-misc/p-1")
        for number in range(STAGED_MAX):
            await a.stage(file, "app-misc/p-1", DRONE, build=f"-{number}")
        upload = Upload(file.read_bytes())
        with pytest.raises(Busy, match=f"{STAGED_MAX} files are in staging"):
            await a.take(upload, "app-misc/p-1-x.gpkg.tar", DRONE)
        assert upload.taken == 0 and not a.left() and len(a.blobs()) == 1


async def test_so_many_uploads_are_under_way_at_once(place: Opens, tmp_path: Path) -> None:
    async with place("a") as a:
        await a.give("app-misc/p-1", DRONE)
        data = package(tmp_path / "p", "app-misc/p-1").read_bytes()
        path = "app-misc/p-1.gpkg.tar"
        sent: list[Upload] = []

        async def refused(builder: str, words: str) -> None:
            upload = Upload(data)
            with pytest.raises(Busy, match=words) as busy:
                await a.take(upload, path, builder)
            assert busy.value.retry_after_s > 0 and upload.taken == 0

        async with trio.open_nursery() as nursery:

            async def begin(builder: str) -> None:
                sent.append(Upload(data, slow=True))
                nursery.start_soon(a.take, sent[-1], path, builder)
                await sent[-1].begun.wait()

            for _ in range(UPLOADS_OF_ONE_MAX):
                await begin(DRONE)
            await refused(DRONE, "uploads of this builder")
            for _ in range(UPLOADS_MAX - UPLOADS_OF_ONE_MAX):
                await begin("")
            await refused("", "through this node")
            assert len(a.left()) == UPLOADS_MAX
            for upload in sent:
                upload.goes_on.set()
        await a.take(Upload(data), path, DRONE)
        # Nor does one that breaks off keep its place.
        for _ in range(UPLOADS_OF_ONE_MAX + 1):
            with pytest.raises(Invalid):
                await a.take(Upload(data[:5000]), path, DRONE)
        assert not a.left() and len(a.blobs()) == 1


async def test_junk_of_one_drone_takes_no_room_from_another(place: Opens, tmp_path: Path) -> None:
    async with place("a", blobs_bytes_max=4 * MIB) as a:
        await a.give("app-misc/p-1", "good")
        await a.register("bad")
        for number in range(4):
            junk = package(tmp_path / f"{number}", "app-misc/p-1", image=os.urandom(2 * MIB))
            with pytest.raises(Conflict, match="does not hold"):
                await a.stage(junk, "app-misc/p-1", "bad")
        file = package(tmp_path / "p", "app-misc/p-1", image=os.urandom(2 * MIB))
        pkg = await a.stage(file, "app-misc/p-1", "good")
        assert a.store.total_bytes == pkg.size_bytes


async def test_a_full_store_refuses_and_nothing_is_left(place: Opens, tmp_path: Path) -> None:
    async with place("a", blobs_bytes_max=MIB) as a:
        small = await a.stage(package(tmp_path / "s", "app-misc/s-1"), "app-misc/s-1")
        file = package(tmp_path / "p", "app-misc/p-1", image=os.urandom(2 * MIB))
        with pytest.raises(Unavailable, match="blob store is full"):
            await a.stage(file, "app-misc/p-1")
        assert not a.left() and a.store.total_bytes == small.size_bytes
        assert not [*(a.folder / "blobs" / "tmp").iterdir()]
        assert await a.cluster.read(FindBlob(small.sha256)) is not None
        # One that has room goes on.
        await a.stage(package(tmp_path / "t", "app-misc/t-1"), "app-misc/t-1")


def test_what_a_daemon_that_died_left_is_taken_away(tmp_path: Path) -> None:
    binhost.Staging(tmp_path / "none", MIB).clear()
    for name in ("a.part", "a.signed", "other"):
        (tmp_path / name).write_bytes(b"x")
    binhost.Staging(tmp_path, MIB).clear()
    assert [each.name for each in tmp_path.iterdir()] == ["other"]


# The index


async def test_the_index_rises_with_every_change(place: Opens) -> None:
    async with place("a") as a:
        index = Index(a.cluster)
        empty = await index.read()
        assert b"PACKAGES: 0\n" in empty.plain and await index.read() is empty
        seen = [empty]
        for number in range(3):  # much faster than a second each
            (pkg,) = await a.build(f"app-misc/p-{number}")
            seen.append(await index.read())
            assert f"CPV: app-misc/p-{number}\n".encode() in seen[-1].plain
        (pkg, *others) = await binhost.list_pkgs(a.cluster)
        assert len(others) == 2
        await binhost.remove(a.cluster, SYSTEM, path_of(pkg))
        seen.append(await index.read())
        assert b"PACKAGES: 2\n" in seen[-1].plain
        times = [int(file.plain.split(b"TIMESTAMP: ")[1].split()[0]) for file in seen]
        assert times == sorted({*times}), "each has a later second"
        assert times == [file.at // 1000 for file in seen]
        assert [gzip.decompress(file.packed) for file in seen] == [file.plain for file in seen]
        assert await Index(a.cluster).read() == seen[-1], "another node's is the same"
        with pytest.raises(NotFound):
            await binhost.remove(a.cluster, SYSTEM, path_of(pkg))


async def test_an_index_of_many_pages_has_each_package_once(
    place: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place("a") as a:
        made = await a.build(*(f"app-misc/p-{number}" for number in range(5)))
        whole = await Index(a.cluster).read()
        assert [*await binhost.list_pkgs(a.cluster)] == [replace(pkg, build_id=1) for pkg in made]
        for page in (1, 2, 4, 5, 6):
            monkeypatch.setattr(binhost, "PAGE", page)
            assert await Index(a.cluster).read() == whole
            listed = await binhost.list_pkgs(a.cluster, after="app-misc/p/p-1-1.gpkg.tar")
            assert [pkg.version for pkg in listed] == ["2", "3", "4"][:page]


# Why none fits


async def test_why_no_package_fits(place: Opens) -> None:
    async with place("a") as a:
        said = {"IUSE": b"loud extra", "USE": b"loud", "CHOST": b"x86_64-pc-linux-gnu",
                "KEYWORDS": b"amd64", "CFLAGS": b"-O2", "repository": b"mine"}  # fmt: skip
        await a.build("app-misc/p-1.2", "app-misc/p-1.10-r1", "app-misc/p-q-3", **said)
        of_p = [pkg.cpv for pkg in await binhost.list_pkgs(a.cluster, "app-misc/p")]
        assert of_p == ["app-misc/p-1.10-r1", "app-misc/p-1.2"]

        async def why(atom: str, **host: str) -> tuple[int, str]:
            found = await binhost.explain_fit(a.cluster, atom, Host(**host))
            assert bool(found.fitting) is not bool(found.reasons)
            return len(found.fitting), "\n".join(found.reasons)

        assert await why("app-misc/p") == (2, "")
        assert await why(">=app-misc/p-1.10", use="loud,-extra") == (1, "")
        assert await why("~app-misc/p-1.10") == (1, "")
        assert await why("=app-misc/p-1.1*") == (0, (
            "there is no binary package of app-misc/p in version =1.1*, only in 1.10-r1, 1.2"
        ))  # fmt: skip
        assert await why("=app-misc/p-1*") == (2, "")
        for atom in (">app-misc/p-1.10-r1", "<app-misc/p-1.2", "app-misc/p-1.3"):
            assert "only in 1.10-r1, 1.2" in (await why(atom))[1], atom
        assert await why("<=app-misc/p-1.2:0") == (1, "")
        assert "slot 0, wanted is 2" in (await why("app-misc/p-1.2:2"))[1]
        words = (await why("app-misc/p-1.2", use="-loud"))[1]
        assert words == "app-misc/p-1.2 (build 1): USE flag loud is on, wanted off"
        assert (await why("app-misc/p-1.2[-loud]", use="loud"))[1] == words
        for flag, wants in (
            ("none", "on"), ("-none", "off"), ("none(-)", "on"), ("-none(+)", "off"),
        ):  # fmt: skip
            words = (await why(f"app-misc/p-1.2[{flag}]"))[1]
            assert words.endswith(f"it has no USE flag none, wanted {wants}")
        for fits in ("app-misc/p-1.2[none(+)]", "app-misc/p-1.2[-none(-),loud]"):
            assert await why(fits) == (1, "")
        assert await why("app-misc/p-1.2", use="none") == (1, "")
        assert await why("app-misc/p-1.2::mine") == (1, "")
        assert "of repository mine, wanted is gentoo" in (await why("app-misc/p-1.2::gentoo"))[1]
        assert "CHOST" in (await why("app-misc/p-1.2", chost="armv7a"))[1]
        assert "keywords are amd64" in (await why("app-misc/p-1.2", keywords="~arm arm"))[1]
        assert 'CFLAGS "-O2"' in (await why("app-misc/p-1.2", cflags="-O3"))[1]
        assert "no binary package of app-misc/none" in (await why("app-misc/none"))[1]
        for atom, host in (("@world", {}), ("p", {}), ("a/p", {"use": "x" * 5000})):
            with pytest.raises(Invalid):
                await why(atom, **host)


def test_a_version_that_is_begun_is_not_another() -> None:
    accepts = binhost._accepts(binhost._atom("=app-misc/p-1.2*"))
    assert accepts is not None
    assert [v for v in ("1.2", "1.2.3", "1.2-r1", "1.2_rc1", "1.20", "1.3") if accepts(v)] == [
        "1.2", "1.2.3", "1.2-r1", "1.2_rc1",
    ]  # fmt: skip
