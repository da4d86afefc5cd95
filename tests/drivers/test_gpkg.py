"""Packages that Portage built: read, signed, served and installed by Portage, which checks them.
And packages that nobody should have built: each is refused, soon and without much memory."""

from __future__ import annotations

import bz2
import functools
import gzip
import hashlib
import io
import lzma
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trio
from backports import zstd

from swarmd.domain.binpkgs import BinPkg, index, path_of, placed
from swarmd.domain.errors import Invalid, NotFound, SwarmError, TooLarge
from swarmd.drivers import gpkg
from swarmd.drivers.openpgp import PublicKey, SigningKey
from tests.gpkgs import add, metadata, parts_of, record, write
from tests.installs import lay_user
from tests.parts import need
from tests.portage import Host, build, lay_host, lay_overlay

NOW_S = int(time.time())
KEY = SigningKey.make("A swarm <swarm@example.org>", NOW_S)
OTHER_KEY = SigningKey.make("Another swarm <other@example.org>", NOW_S)

MAKE_PACKAGES = """
import os, sys, portage, portage.gpkg, portage.xpak
folder, image = sys.argv[1:3]
said = {"CATEGORY": "app-misc", "PF": "made-1.0", "SLOT": "0", "USE": "loud", "IUSE": "loud",
        "environment.bz2": os.urandom(300_000)}
for how in ("none", "gzip", "bzip2", "xz", "zstd"):
    settings = portage.config(clone=portage.settings)
    settings["BINPKG_COMPRESS"] = how
    made = portage.gpkg.gpkg(settings, "app-misc/made-1.0", f"{folder}/{how}.gpkg.tar")
    made.compress(image, said)
long = "a" * 120 + "-1.0"
portage.gpkg.gpkg(settings, f"app-misc/{long}", f"{folder}/long.gpkg.tar").compress(
    image, {**said, "PF": long})
xpak = portage.xpak.xpak_mem({k.encode(): v if isinstance(v, bytes) else v.encode()
                              for k, v in said.items()})
open(f"{folder}/old.tbz2", "wb").write(b"a compressed tar")
portage.xpak.tbz2(f"{folder}/old.tbz2").recompose_mem(xpak)
"""


@dataclass(frozen=True)
class Built:
    """What one run of Portage left."""

    builder: Host
    files: tuple[Path, ...]
    made: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    need("portage", "gpg")
    folder = tmp_path_factory.mktemp("built")
    overlay = lay_overlay(folder / "tree")
    overlay.ebuild("app-misc/dep-2.1-r3")
    overlay.ebuild("app-misc/hello-1.0", RDEPEND="loud? ( app-misc/dep )", IUSE="+loud extra")
    builder = lay_host(folder / "builder", overlay)
    build(builder, "app-misc/dep-2.1-r3", "app-misc/hello-1.0")
    quiet = {**builder.env, "HOME": str(folder), "USE": "-loud"}
    again = Host(builder.path, overlay, quiet)
    build(again, "app-misc/hello-1.0")
    made = folder / "made"
    for name in ("made", "image"):
        (folder / name).mkdir()
    (folder / "image" / "file").write_text("content")
    subprocess.run(
        [sys.executable, "-c", MAKE_PACKAGES, made, folder / "image"],
        env={**builder.env, "HOME": str(folder)}, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return Built(builder, tuple(sorted(builder.pkgdir.rglob("*.gpkg.tar"))), made)


shares_what_was_built = pytest.mark.xdist_group("binpkgs")


@shares_what_was_built
async def test_the_index_is_the_one_that_portage_writes(built: Built) -> None:
    pkgs = [await gpkg.read(file) for file in built.files]
    assert [pkg.cpv for pkg in pkgs] == [
        "app-misc/dep-2.1-r3", "app-misc/hello-1.0", "app-misc/hello-1.0",
    ]  # fmt: skip
    assert [path_of(pkg) for pkg in pkgs] == [
        str(file.relative_to(built.builder.pkgdir)) for file in built.files
    ]
    theirs = (built.builder.pkgdir / "Packages").read_text()
    # Portage leaves this in what it put in last, and drops it the next time it reads the file.
    lines = [line for line in theirs.split("\n") if not line.startswith("REPO_REVISIONS:")]
    head = dict(line.split(": ", 1) for line in theirs.split("\n\n")[0].splitlines())
    ours = b"".join(index(pkgs, head, int(head["TIMESTAMP"]))).decode()
    paragraphs = "\n".join(lines).split("\n\n")
    assert ours.split("\n\n")[0] == paragraphs[0]
    # Instances of one version come in no order in Portage's; in ours in the order of their ids.
    assert sorted(ours.split("\n\n")) == sorted(paragraphs)
    assert ours == b"".join(index(reversed(pkgs), head, int(head["TIMESTAMP"]))).decode()


@shares_what_was_built
@pytest.mark.parametrize("how", ["none", "gzip", "bzip2", "xz", "zstd", "long"])
async def test_every_compression_of_portage_is_read_and_signed(
    built: Built, how: str, tmp_path: Path
) -> None:
    file = built.made / f"{how}.gpkg.tar"
    pkg = await gpkg.read(file)
    assert (pkg.category, pkg.version, pkg.use) == ("app-misc", "1.0", {"loud"})
    assert pkg.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    signed = await gpkg.sign(file, tmp_path / "signed.gpkg.tar", KEY, NOW_S)
    assert await gpkg.verify(signed.path, KEY.public) == signed.pkg
    assert signed.pkg.metadata == pkg.metadata
    with tarfile.open(signed.path) as ours, tarfile.open(file) as theirs:
        for member in theirs:
            if not member.name.endswith("Manifest"):
                assert ours.extractfile(member.name).read() == theirs.extractfile(member).read()  # type: ignore[union-attr]


@shares_what_was_built
async def test_an_old_package_is_read_and_cannot_be_signed(built: Built, tmp_path: Path) -> None:
    file = built.made / "old.tbz2"
    pkg = await gpkg.read(file)
    assert (pkg.cpv, pkg.format, pkg.use) == ("app-misc/made-1.0", "xpak", {"loud"})
    assert path_of(pkg) == "app-misc/made-1.0.tbz2"
    assert path_of(placed(pkg, [])) == "app-misc/made/made-1.0-1.xpak"
    with pytest.raises(Invalid, match="build a gpkg"):
        await gpkg.sign(file, tmp_path / "out", KEY, NOW_S)
    with pytest.raises(Invalid, match="build a gpkg"):
        await gpkg.verify(file, KEY.public)
    whole = file.read_bytes()
    damaged = tmp_path / "damaged.tbz2"
    for at in range(len(whole) - 400, len(whole)):
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with trio.fail_after(5):
            try:
                await gpkg.read(damaged)
            except SwarmError:
                pass


@shares_what_was_built
async def test_what_the_swarm_signed_stays_and_what_others_did_is_signed_anew(
    built: Built, tmp_path: Path
) -> None:
    theirs = await gpkg.sign(built.files[0], tmp_path / "theirs", OTHER_KEY, NOW_S)
    with pytest.raises(Invalid, match=f"not by {KEY.public.fingerprint}"):
        await gpkg.verify(theirs.path, KEY.public)
    ours = await gpkg.sign(theirs.path, tmp_path / "ours", KEY, NOW_S)
    assert ours.path == tmp_path / "ours"
    with pytest.raises(Invalid, match="not by"):
        await gpkg.verify(ours.path, OTHER_KEY.public)
    again = await gpkg.sign(ours.path, tmp_path / "again", KEY, NOW_S + 60)
    assert again == ours
    assert not (tmp_path / "again").exists()
    unsigned = await gpkg.sign(built.files[0], tmp_path / "directly", KEY, NOW_S)
    assert unsigned.pkg == ours.pkg, "the same package, key and time give the same bytes"
    with pytest.raises(FileExistsError):
        await gpkg.sign(built.files[0], tmp_path / "ours", KEY, NOW_S)
    assert await gpkg.verify(ours.path, KEY.public) == ours.pkg


@dataclass(frozen=True)
class Binhost:
    path: Path
    url: str

    def serve(self, files: list[tuple[BinPkg, Path]], timestamp_s: int) -> None:
        for pkg, file in files:
            to = self.path / path_of(pkg)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, to)
        head = {"ARCH": "amd64", "CHOST": "x86_64-pc-linux-gnu", "REPO": "swarmrepo"}
        pkgs = [pkg for pkg, _ in files]
        (self.path / "Packages").write_bytes(b"".join(index(pkgs, head, timestamp_s)))


class Quietly(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def binhost(tmp_path: Path) -> Iterator[Binhost]:
    folder = tmp_path / "binhost"
    folder.mkdir()
    handler = functools.partial(Quietly, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Binhost(folder, f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
        thread.join()


def user(folder: Path, built: Built, binhost: Binhost, public: PublicKey, **more: str) -> Host:
    """A host of a user who trusts this key and installs nothing that it has not signed."""
    return lay_user(folder, built.builder.overlay, binhost.url, public.armored(), **more)


async def emerge(host: Host, *arguments: str) -> subprocess.CompletedProcess[str]:
    def run() -> subprocess.CompletedProcess[str]:
        return host.emerge("--getbinpkgonly", "--oneshot", *arguments)

    return await trio.to_thread.run_sync(run)


def say(host: Host, program: str) -> str:
    found = [*host.root.rglob(f"bin/{program}")]
    return subprocess.run(found[:1], check=True, capture_output=True, text=True).stdout.strip()


@shares_what_was_built
async def test_a_host_installs_what_the_swarm_signed(
    built: Built, binhost: Binhost, tmp_path: Path
) -> None:
    """Also where two builders counted for themselves, and one version came twice as the first."""
    files: list[tuple[BinPkg, Path]] = []
    for number, file in enumerate(built.files):
        signed = await gpkg.sign(file, tmp_path / f"signed-{number}", KEY, NOW_S)
        counted = BinPkg(**{**_fields(signed.pkg), "build_id": 1})
        files.append((placed(counted, [pkg for pkg, _ in files]), signed.path))
    assert [pkg.build_id for pkg, _ in files] == [1, 1, 2]
    binhost.serve(files, NOW_S)
    loud = user(tmp_path / "loud", built, binhost, KEY.public, use="loud")
    done = await emerge(loud, "--binpkg-respect-use=y", "app-misc/hello")
    assert done.returncode == 0, done.stdout
    assert say(loud, "hello") == "hello LOUD"
    assert say(loud, "dep") == "hello LOUD", "what it depends on came with it"
    quiet = user(tmp_path / "quiet", built, binhost, KEY.public, use="-loud")
    done = await emerge(quiet, "--binpkg-respect-use=y", "app-misc/hello")
    assert done.returncode == 0, done.stdout
    assert say(quiet, "hello") == "hello quiet"


def _fields(pkg: BinPkg) -> dict[str, object]:
    return {name: getattr(pkg, name) for name in pkg.__struct_fields__}


async def as_it_came(built: Built, folder: Path) -> Path:
    return built.files[0]


async def signed_by_another(built: Built, folder: Path) -> Path:
    return (await gpkg.sign(built.files[0], folder / "another", OTHER_KEY, NOW_S)).path


async def with_another_image(built: Built, folder: Path) -> Path:
    """Both halves are the swarm's own, and the Manifest tells of what is there."""
    one = (await gpkg.sign(built.files[0], folder / "one", KEY, NOW_S)).path
    other = (await gpkg.sign(built.files[1], folder / "two", KEY, NOW_S)).path
    parts, image = contents(one), contents(other)
    parts |= {name: data for name, data in image.items() if name.startswith("image")}
    return write(folder / "mixed", parts)


async def with_a_changed_image(built: Built, folder: Path) -> Path:
    """The signatures and the signed Manifest are of before."""
    parts = contents((await gpkg.sign(built.files[0], folder / "one", KEY, NOW_S)).path)
    manifest = parts["Manifest"]
    image = bytearray(parts["image.tar.zst"])
    image[-1] ^= 1
    parts["image.tar.zst"] = bytes(image)
    return write(folder / "changed", parts, manifest=manifest)


TAMPERED = {
    as_it_came: "is not signed",
    signed_by_another: "signed by",
    with_another_image: "is not signed",
    with_a_changed_image: "hash",
}


@shares_what_was_built
@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda tamper: tamper.__name__)
async def test_what_the_swarm_did_not_sign_is_installed_by_nobody(
    built: Built, binhost: Binhost, tmp_path: Path, tamper: Callable[[Built, Path], object]
) -> None:
    file = await tamper(built, tmp_path)  # type: ignore[misc]
    with pytest.raises(Invalid, match=TAMPERED[tamper]):  # type: ignore[index]
        await gpkg.verify(file, KEY.public)
    # The index tells the truth of the file, so that nothing but the signature can stop it.
    true = await gpkg.read(built.files[0])
    data = file.read_bytes()
    lie = BinPkg(
        **{
            **_fields(true),
            "size_bytes": len(data),
            "md5": hashlib.md5(data).hexdigest(),
            "sha1": hashlib.sha1(data).hexdigest(),
        }  # type: ignore[arg-type]
    )
    binhost.serve([(lie, file)], NOW_S)
    host = user(tmp_path / "user", built, binhost, KEY.public)
    done = await emerge(host, "app-misc/dep")
    assert done.returncode != 0
    assert "GnuPG verification failed" in done.stdout
    assert not [*host.root.rglob("bin/dep")]


def contents(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as tar:
        return {m.name.split("/")[1]: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


async def test_the_smallest_package_is_read(tmp_path: Path) -> None:
    """What the hostile ones below are made from is no refusal by itself."""
    for suffix, compress in COMPRESS.items():
        file = write(tmp_path / "p", parts_of(compress(metadata()), suffix))
        assert (await gpkg.read(file)).cpv == "app-misc/p-1"
        two = compress(metadata()[:700]) + compress(metadata()[700:])
        assert (await gpkg.read(write(tmp_path / "p", parts_of(two, suffix)))).cpv == "app-misc/p-1"


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
}
ZEROS = bytes(16 * 1024 * 1024)


def bomb(suffix: str) -> Callable[[Path], None]:
    """8 GiB that come out of little: one tar member that says it is as large."""

    def make(file: Path) -> None:
        head = bytearray(tarfile.TarInfo("metadata/environment").tobuf())
        head[124:136] = b"%011o\0" % (8 * 1024**3 - 1)
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        frames = COMPRESS[suffix](bytes(head)) + COMPRESS[suffix](ZEROS) * 512
        write(file, parts_of(frames, suffix))

    return make


def inner(make: Callable[[tarfile.TarFile], object], **options: object) -> Callable[[Path], None]:
    """A package whose metadata are this tar."""

    def whole(file: Path) -> None:
        out = io.BytesIO()
        settings = {"format": tarfile.USTAR_FORMAT} | options
        with tarfile.open(fileobj=out, mode="w", **settings) as tar:  # type: ignore[call-overload]
            make(tar)
        write(file, parts_of(out.getvalue()))

    return whole


def outer(*members: tuple[str, bytes], **more: object) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in members:
                add(tar, name, data)
            add(tar, "p-1/gpkg-1", **more)

    return make


def said(**values: bytes) -> Callable[[Path], None]:
    return lambda file: void(write(file, parts_of(metadata(**values))))


def void(_: object) -> None:
    pass


def manifest(text: Callable[[dict[str, bytes]], bytes]) -> Callable[[Path], None]:
    parts = parts_of(metadata())
    return lambda file: void(write(file, parts, manifest=text(parts)))


def told(parts: dict[str, bytes]) -> bytes:
    return "".join(record(name, data) for name, data in parts.items()).encode()


def sized(size: bytes) -> Callable[[Path], None]:
    """A member that says of itself it has this size."""

    def make(file: Path) -> None:
        head = bytearray(tarfile.TarInfo("p-1/image.tar").tobuf())
        head[124:136] = size
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        file.write_bytes(bytes(head) + bytes(4096))

    return make


def behind(data: bytes) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        write(file, parts_of(metadata()))
        with file.open("ab") as whole:
            whole.write(data)

    return make


HOSTILE: dict[str, Callable[[Path], None]] = {
    "nothing": lambda file: void(file.write_bytes(b"")),
    "zeros": lambda file: void(file.write_bytes(bytes(100_000))),
    "noise": lambda file: void(file.write_bytes(random.Random(1).randbytes(100_000))),
    "a directory": lambda file: file.mkdir(),
    "a pipe": lambda file: os.mkfifo(file),
    "a link": lambda file: file.symlink_to("/etc/passwd"),
    "a sparse file of a terabyte": lambda file: _sparse(file, 1024**4),
    "an xpak of nonsense": lambda file: void(file.write_bytes(b"XPAKSTOP\xff\xff\xff\xffSTOP")),
    "an xpak that points before itself": lambda file: void(
        file.write_bytes(b"XPAKPACK" + b"\xff" * 8 + b"XPAKSTOP" + (24).to_bytes(4) + b"STOP")
    ),
    **{f"a bomb of {suffix}": bomb(suffix) for suffix in COMPRESS},
    "a flood of empty frames": lambda file: void(
        write(file, parts_of(zstd.compress(b"") * 100_000, ".zst"))
    ),
    "a window of 2 GiB": lambda file: void(
        write(file, parts_of(bytes.fromhex("28b52ffd00a8") + bytes(64), ".zst"))
    ),
    "a compression that nobody has": lambda file: void(write(file, parts_of(b"", ".zip"))),
    "damaged metadata": lambda file: void(
        write(file, parts_of(zstd.compress(metadata())[:-9], ".zst"))
    ),
    "metadata over the bound": lambda file: void(write(file, parts_of(bytes(10_000_001)))),
    "many metadata": inner(lambda tar: [add(tar, f"metadata/K{n}") for n in range(2000)]),
    "a value without end": said(RDEPEND=b"a/b " * 200_000),
    "a value twice": inner(lambda tar: [add(tar, "metadata/PF", b"p-1") for _ in range(2)]),
    "a value outside": inner(lambda tar: add(tar, "metadata/../../etc/passwd")),
    "a value elsewhere": inner(lambda tar: add(tar, "/metadata/PF")),
    "a link among the metadata": inner(
        lambda tar: add(tar, "metadata/PF", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    ),
    "a device among the metadata": inner(lambda tar: add(tar, "metadata/PF", type=tarfile.BLKTYPE)),
    "a pax header of 10 MB": inner(
        lambda tar: add(tar, "metadata/PF", pax_headers={"comment": "x" * 9_000_000}),
        format=tarfile.PAX_FORMAT,
    ),
    "a name of a megabyte": inner(
        lambda tar: add(tar, "metadata/" + "P" * 1_000_000), format=tarfile.GNU_FORMAT
    ),
    "a category that climbs": said(CATEGORY=b"../../etc"),
    "a name with a slash": said(PF=b"p/../../x-1"),
    "a slot with a line": said(SLOT=b"0\x00"),
    "a value for the terminal": said(RDEPEND=b"\x1b]0;owned\x07"),
    "no category": lambda file: void(write(file, parts_of(metadata({"PF": b"p-1"})))),
    "a build id of words": said(BUILD_ID=b"one"),
    "a dependency without end": said(RDEPEND=b"a? ( " * 40_000),
    "a member outside": outer(("p-1/../../etc/cron.d/x", b"x")),
    "a member from the root": outer(("/p-1/gpkg-1", b"")),
    "a member of another's": outer(("q-1/image.tar", b"")),
    "a member without a folder": outer(("image.tar", b"")),
    "a member twice": outer(("p-1/image.tar", b""), ("p-1/image.tar", b"")),
    "two images": outer(("p-1/image.tar", b""), ("p-1/image.tar.gz", b"")),
    "a stranger among the members": outer(("p-1/run.sh", b"")),
    "thousands of members": outer(*((f"p-1/image.tar.a{n}", b"") for n in range(5000))),
    "a link as a member": outer(type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "a folder as a member": outer(type=tarfile.DIRTYPE),
    "a member of 8 EiB": sized(b"\x80" + (2**63).to_bytes(11)),
    "a member of less than nothing": sized(b"-0000000001\0"),
    "a member of a negative size": sized(b"\xff" * 12),
    "no Manifest": outer(("p-1/image.tar", b""), ("p-1/metadata.tar", metadata())),
    "no mark": lambda file: void(write(file, {"metadata.tar": metadata(), "image.tar": b""})),
    "no image": lambda file: void(write(file, {"gpkg-1": b"", "metadata.tar": metadata()})),
    "a mark of a megabyte": lambda file: void(
        write(file, parts_of(metadata()) | {"gpkg-1": bytes(1_000_000)})
    ),
    "a huge Manifest": manifest(lambda parts: told(parts) * 1000),
    "a Manifest of lines told twice": manifest(lambda parts: told(parts) * 2),
    "a Manifest that tells too much": manifest(lambda p: told({**p, "image.tar.sig": b""})),
    "a Manifest that tells too little": manifest(lambda p: told({"gpkg-1": b""})),
    "a Manifest of wrong hashes": manifest(lambda p: told({**p, "image.tar": b"imagE"})),
    "a Manifest of wrong sizes": manifest(lambda p: told(p).replace(b"tar 5 ", b"tar 6 ")),
    "a Manifest of weak hashes": manifest(
        lambda p: b"".join(b"DATA %s %d MD5 00\n" % (n.encode(), len(d)) for n, d in p.items())
    ),
    "an empty Manifest": manifest(lambda parts: b""),
    "a Manifest of nonsense": manifest(lambda parts: b"\xff\xfe" * 100),
    "a Manifest half signed": manifest(
        lambda p: b"-----BEGIN PGP SIGNED MESSAGE-----\n\n" + told(p)
    ),
    "more behind the end": behind(b"#!/bin/sh\n"),
    "zeros without end behind it": behind(bytes(4_000_000)),
}


def _sparse(file: Path, size_bytes: int) -> None:
    with file.open("wb") as made:
        made.truncate(size_bytes)


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_package_is_refused_soon_and_without_much_memory(
    name: str, tmp_path: Path
) -> None:
    file, out = tmp_path / "hostile.gpkg.tar", tmp_path / "out"
    HOSTILE[name](file)
    tracemalloc.start()
    try:
        with trio.fail_after(20):
            with pytest.raises((Invalid, TooLarge)) as refused:
                await gpkg.read(file)
            with pytest.raises((Invalid, TooLarge)):
                await gpkg.sign(file, out, KEY, NOW_S)
            with pytest.raises((Invalid, TooLarge)):
                await gpkg.verify(file, KEY.public)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 32 * 1024**2
    assert len(refused.value.message) < 500
    assert refused.value.message.isprintable()
    assert not out.exists()


async def test_a_package_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await gpkg.read(tmp_path / "none")


async def test_a_package_cut_short_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    whole = (await _signed(tmp_path)).read_bytes()
    cut = tmp_path / "cut"
    for size in range(0, len(whole) - 1024, 61):
        cut.write_bytes(whole[:size])
        with pytest.raises(Invalid):
            await gpkg.verify(cut, KEY.public)


async def test_no_changed_byte_goes_unnoticed_where_it_matters(tmp_path: Path) -> None:
    """A byte that is neither content nor signature may change: the times and owners of members,
    their padding. What is read of the package stays the same then."""
    signed = await _signed(tmp_path)
    true, whole = await gpkg.read(signed), signed.read_bytes()
    chance = random.Random(6)
    changed = tmp_path / "changed"
    passed = 0
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 8))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        changed.write_bytes(data)
        try:
            pkg = await gpkg.verify(changed, KEY.public)
        except SwarmError:
            continue
        passed += 1
        assert (pkg.cpv, pkg.metadata) == (true.cpv, true.metadata)
        parts = contents(changed)
        assert parts["image.tar"] == b"image"
    assert 0 < passed < 400


async def test_a_cancelled_hashing_ends_and_leaves_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "large", parts_of(metadata()) | {"image.tar": bytes(200 * 1024**2)})
    out = tmp_path / "out"
    with trio.move_on_after(0.05) as scope:
        await gpkg.sign(file, out, KEY, NOW_S)
    assert scope.cancelled_caught
    assert not out.exists()


async def _signed(folder: Path) -> Path:
    file = write(folder / "unsigned", parts_of(metadata()))
    return (await gpkg.sign(file, folder / "signed", KEY, NOW_S)).path
