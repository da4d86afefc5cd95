"""The binary host: what builders put into staging, and what is served to those who install it.

A file is looked at before it becomes a blob: what is no package of what it says it is, is none.
What is stored and served is signed by the swarm's key, down to its last byte."""

from __future__ import annotations

import gzip
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import trio
from msgspec.structs import replace

from swarmd.cluster.handle import Cluster
from swarmd.domain.actors import Actor
from swarmd.domain.binpkgs import BinPkg, Wanted, differences, explain, index, path_of
from swarmd.domain.builds import OUTSIDE, STAGED_MAX
from swarmd.domain.errors import Busy, Conflict, Invalid, NotFound, TooLarge
from swarmd.domain.packages import Atom, Cpv, PackageSet, parse, vercmp
from swarmd.drivers import gpkg
from swarmd.drivers.files import SLICE_BYTES, new_file
from swarmd.ops import signing
from swarmd.ops.blobs import open_blob, put
from swarmd.ops.builds import require_builds
from swarmd.state.build_commands import RemoveBinPkg, ReplaceBinPkg, StagePackage
from swarmd.state.build_queries import (
    BinHostAt,
    FindBinPkg,
    ListBinPkgs,
    ViewBinHost,
    ViewStaging,
)

HEADER_KEYS = ("CHOST",)
"""What the index says of all its packages, where they agree on it."""
PART, SIGNED = ".part", ".signed"
SAID_CHARS_MAX = 4000
PAGE = 200
"""So many are decoded on the loop at once, where another node is asked."""
UPLOADS_MAX = 8
"""At once through a node: each may lie there twice, signed and not, and is counted nowhere else."""
UPLOADS_OF_ONE_MAX = 2
"""So no builder can take all places. It sends one; the other is one that broke off."""
UPLOAD_AGAIN_S = 5


class IndexFile(msgspec.Struct, frozen=True):
    """The same file for the same packages, on every node."""

    at: int
    """When something changed last, by the index: no two have the same second."""
    plain: bytes
    packed: bytes
    """By gzip."""


_NOTHING_YET = IndexFile(-1, b"", b"")


@dataclass
class Index:
    """The `Packages` file, made anew when something changed."""

    cluster: Cluster
    _file: IndexFile = _NOTHING_YET
    _lock: trio.Lock = field(default_factory=trio.Lock)

    async def read(self) -> IndexFile:
        require_builds(self.cluster)
        async with self._lock:
            if await self.cluster.read(BinHostAt()) != self._file.at:
                pkgs, at = await _all_pkgs(self.cluster)
                self._file = await trio.to_thread.run_sync(_index, pkgs, at)
            return self._file


async def _all_pkgs(cluster: Cluster) -> tuple[list[BinPkg], int]:
    """And when that was. What changes while they are looked through is in it or is not: then
    another index, of a later time, is made for whoever asks next."""
    view = await cluster.read(ViewBinHost(limit=PAGE))
    pkgs, at = [*view.pkgs], view.at
    while len(view.pkgs) == PAGE:
        view = await cluster.read(ViewBinHost(path_of(pkgs[-1]), PAGE))
        pkgs += view.pkgs
    return pkgs, at


def _index(pkgs: Sequence[BinPkg], at: int) -> IndexFile:
    header = {}
    for key in HEADER_KEYS:
        values = {pkg.metadata.get(key, "") for pkg in pkgs}
        if len(values) == 1 and (value := values.pop()):
            header[key] = value
    plain = b"".join(index(pkgs, header, at // 1000))
    return IndexFile(at, plain, gzip.compress(plain, mtime=0))


async def find(cluster: Cluster, path: str) -> BinPkg:
    require_builds(cluster)
    pkg = await cluster.read(FindBinPkg(path))
    if pkg is None:
        raise NotFound("no such binary package; see what there is in /binhost/Packages", path=path)
    return pkg


@asynccontextmanager
async def open_package(cluster: Cluster, pkg: BinPkg) -> AsyncIterator[AsyncIterator[bytes]]:
    """NotFound when nobody has it whole."""
    async with AsyncExitStack() as stack:
        try:
            chunks = await stack.enter_async_context(open_blob(cluster, pkg.sha256))
        except NotFound:
            # A copy that is damaged is set aside when that is found, and another node's comes.
            chunks = await stack.enter_async_context(open_blob(cluster, pkg.sha256))
        yield chunks


async def list_pkgs(cluster: Cluster, package: str = "", after: str = "") -> tuple[BinPkg, ...]:
    """By path, PAGE of them, from one on; or all of one package (category and name)."""
    require_builds(cluster)
    if package:
        return await cluster.read(ListBinPkgs(_atom(package).key))
    return (await cluster.read(ViewBinHost(after, PAGE))).pkgs


async def remove(cluster: Cluster, actor: Actor, path: str) -> None:
    """Take a package off the binary host. NotFound: it is not there."""
    require_builds(cluster)
    await cluster.propose(RemoveBinPkg(path), actor)


async def resign(cluster: Cluster, actor: Actor, path: str, folder: Path, bytes_max: int) -> bool:
    """Sign a package by the key that the swarm has now; hosts see the former file until the new one
    is there. Whether that was needed. NotFound: it is not there. Conflict: it is another file by
    now. Unavailable: no voter is there to sign, the disk is full, or the swarm is
    of an older version."""
    known = await find(cluster, path)
    await trio.to_thread.run_sync(partial(folder.mkdir, mode=0o700, exist_ok=True))
    temp = folder / f"{cluster.new_id()}{PART}"
    out = temp.with_suffix(SIGNED)
    try:
        async with open_package(cluster, known) as chunks:
            await _receive(chunks, temp, bytes_max)
        signed = await signing.sign(cluster, known, temp, out)
        if signed.path == temp:
            return False
        pkg = replace(signed.pkg, build_id=known.build_id)
        await put(cluster, actor, _slices(out), expected_sha256=pkg.sha256)
        await cluster.propose(ReplaceBinPkg(path, known.sha256, pkg), actor)
        return True
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_remove, temp, out)


class Explained(msgspec.Struct, frozen=True):
    package: str
    """As it was asked for."""
    fitting: tuple[str, ...]
    """The paths of those that a host which is so would take."""
    reasons: tuple[str, ...]
    """Why none fits, the nearest first; nothing where one does."""


class Host(msgspec.Struct, frozen=True):
    """One that would install, as its user describes it: words with blanks or commas between them,
    "" where nothing is said."""

    use: str = ""
    """Flags: `loud -extra`. Those that the atom names count more."""
    chost: str = ""
    keywords: str = ""
    cflags: str = ""


async def explain_fit(cluster: Cluster, text: str, host: Host) -> Explained:
    """Why no package is what an atom asks for on such a host. Invalid: it is no atom, or more is
    said of the host than anybody would."""
    require_builds(cluster)
    for name in host.__struct_fields__:
        if len(value := getattr(host, name)) > SAID_CHARS_MAX or not value.isprintable():
            raise Invalid(f"{name} must be at most {SAID_CHARS_MAX} printable characters")
    atom = _atom(text)
    use = {word.lstrip("-+"): word[0] != "-" for word in _words(host.use)}
    flags = [(*flag.lstrip("-").partition("(")[::2], flag[0] != "-") for flag in atom.use]
    use |= {flag: on for flag, _, on in flags}
    wanted = Wanted(
        atom.key, _accepts(atom),
        f"{atom.operator}{atom.version or ''}{'*' if atom.glob else ''}", atom.slot or "", use,
        {flag: _COUNTS_AS[default] for flag, default, _ in flags}, atom.repository or "",
        host.chost, frozenset(_words(host.keywords)) or None,
        {"CFLAGS": host.cflags} if host.cflags else {},
    )  # fmt: skip
    pkgs = await cluster.read(ListBinPkgs(atom.key))
    return await trio.to_thread.run_sync(_explained, text, wanted, pkgs)


_COUNTS_AS = {"+)": True, "-)": False, "": None}
"""What `ssl(+)` and `ssl(-)` say of a package that has no such flag."""


def _explained(text: str, wanted: Wanted, pkgs: tuple[BinPkg, ...]) -> Explained:
    fitting = tuple(
        path_of(pkg) for pkg in pkgs if wanted.takes(pkg.version) and not differences(wanted, pkg)
    )
    return Explained(text, fitting, tuple(explain(wanted, pkgs)))


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _atom(text: str) -> Atom:
    want = parse(text)
    if isinstance(want, PackageSet):
        raise Invalid("a set is many packages; name one of them: dev-libs/openssl")
    return want


def _accepts(atom: Atom) -> Callable[[str], bool] | None:
    """Which versions it takes; None: any."""
    wanted = atom.version
    if wanted is None:
        return None
    if atom.glob:
        # Up to where a part of the version ends: 1.2* takes 1.2.3 and 1.2-r1, and not 1.20.
        return lambda version: (
            version.startswith(wanted)
            and not (version[len(wanted) : len(wanted) + 1].isdigit() and wanted[-1].isdigit())
        )
    if atom.operator == "~":
        return lambda version: vercmp(Cpv("", "", version).upstream, wanted) == 0
    takes: dict[str, Callable[[int], bool]] = {
        "=": lambda order: order == 0, ">": lambda order: order > 0, "<": lambda order: order < 0,
        ">=": lambda order: order >= 0, "<=": lambda order: order <= 0,
    }  # fmt: skip
    return lambda version: takes[atom.operator](vercmp(version, wanted))


# What builders made


class Staging:
    """The folder in which uploads lie while they are looked at, and whose are under way."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        self.folder = folder
        self.bytes_max = bytes_max
        self._under_way: list[str] = []

    def clear(self) -> None:
        """Take away what was under way when a daemon died, before anything is."""
        if self.folder.is_dir():
            for left in self.folder.iterdir():
                if left.suffix in (PART, SIGNED):
                    left.unlink(missing_ok=True)

    @asynccontextmanager
    async def place(self, builder_id: str, name: str) -> AsyncIterator[tuple[Path, Path]]:
        """For what comes, and for it once it is signed; nothing is left of either. Busy: too many
        are under way."""
        if builder_id and self._under_way.count(builder_id) >= UPLOADS_OF_ONE_MAX:
            raise Busy(
                f"{UPLOADS_OF_ONE_MAX} uploads of this builder are under way; send one after the"
                " other", retry_after_s=UPLOAD_AGAIN_S,
            )  # fmt: skip
        if len(self._under_way) >= UPLOADS_MAX:
            raise Busy(
                f"{UPLOADS_MAX} uploads are under way through this node; try again, here or at"
                " another", retry_after_s=UPLOAD_AGAIN_S,
            )  # fmt: skip
        came, signed = self.folder / f"{name}{PART}", self.folder / f"{name}{SIGNED}"
        self._under_way.append(builder_id)
        try:
            await trio.to_thread.run_sync(partial(self.folder.mkdir, mode=0o700, exist_ok=True))
            yield came, signed
        finally:
            self._under_way.remove(builder_id)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_remove, came, signed)  # a large unlink takes time


async def stage(
    cluster: Cluster, actor: Actor, builder_id: str, path: str, chunks: AsyncIterator[bytes],
    staging: Staging,
) -> BinPkg:  # fmt: skip
    """Take a binary package from a builder, and sign it; "" as its id: from an operator. Invalid:
    it is none, or not the one that its path says, or of the old format, which cannot be signed.
    TooLarge. Conflict: the builder does not hold the package. Busy: it has too much in staging, or
    too many uploads are under way. Unavailable: the disk or the store of blobs is full, or no voter
    is there to sign it; nothing is left of it then."""
    require_builds(cluster)
    node_id = OUTSIDE + builder_id if builder_id else ""
    # Before a byte of it is here: its sender may be anybody with a token.
    await _check_awaited(
        cluster, node_id, f"what {path[:300]} is a file of", partial(_is_file_of, path)
    )
    async with staging.place(builder_id, str(cluster.new_id())) as (came, signed):
        await _receive(chunks, came, staging.bytes_max)
        return await _sign_and_stage(cluster, actor, node_id, path, came, signed)


async def stage_own(
    cluster: Cluster, actor: Actor, path: str, file: Path, staging: Staging
) -> BinPkg:
    """The same of what this node itself has built, which stays where it is."""
    require_builds(cluster)
    if (await trio.to_thread.run_sync(file.lstat)).st_size > staging.bytes_max:
        raise TooLarge(f"a binary package has at most {staging.bytes_max} bytes here")
    async with staging.place("", str(cluster.new_id())) as (_, signed):
        return await _sign_and_stage(cluster, actor, cluster.node.id, path, file, signed)


async def _sign_and_stage(
    cluster: Cluster, actor: Actor, node_id: str, path: str, file: Path, out: Path
) -> BinPkg:
    came = await gpkg.read(file)
    _check_path(path, came)
    # A blob that is refused afterwards would lie there for an hour.
    await _check_awaited(cluster, node_id, came.cpv, lambda held: held == came.cpv)
    signed = await signing.sign(cluster, came, file, out)
    pkg = signed.pkg
    await put(cluster, actor, _slices(signed.path), expected_sha256=pkg.sha256)
    await cluster.propose(StagePackage(node_id, path, pkg), actor)
    return pkg


async def _check_awaited(
    cluster: Cluster, node_id: str, what: str, is_it: Callable[[str], bool]
) -> None:
    """As the rule of StagePackage has it, which has the last word."""
    staging = await cluster.read(ViewStaging(node_id))
    if node_id and not any(map(is_it, staging.held)):
        raise Conflict(
            f"this builder does not hold {what}: only what it is given to build goes into staging"
        )
    if staging.files >= STAGED_MAX:
        raise Busy(f"{STAGED_MAX} files are in staging; report what is built of them first")


async def _receive(chunks: AsyncIterator[bytes], temp: Path, bytes_max: int) -> None:
    try:
        async with new_file(temp) as file:
            async for chunk in chunks:
                if file.size_bytes + len(chunk) > bytes_max:
                    raise TooLarge(f"a binary package has at most {bytes_max} bytes here")
                await file.write(chunk)
            await file.finish()
    finally:
        # One that is left early is closed here and now, not whenever it is collected.
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def _check_path(path: str, pkg: BinPkg) -> None:
    """`category/name-version[-build].suffix`, or the same under a folder of its name."""
    if not _is_file_of(path, pkg.cpv):
        raise Invalid(f"this is a package of {pkg.cpv}; put it under {path_of(pkg)}", path=path)


def _is_file_of(path: str, cpv: str) -> bool:
    category, _, rest = path.partition("/")
    file = rest.rpartition("/")[2]
    return f"{category}/{file}".startswith((f"{cpv}.", f"{cpv}-"))


def _remove(*paths: Path) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            path.unlink()


async def _slices(path: Path) -> AsyncIterator[bytes]:
    async with await trio.open_file(path, "rb") as file:
        while chunk := await file.read(SLICE_BYTES):
            yield chunk
