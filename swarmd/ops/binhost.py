"""The binary host: what builders put into staging, and what is served to those who install it.

A file is looked at before it becomes a blob: what is no package of what it says it is, is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from swarmd.cluster.handle import Cluster
from swarmd.domain.actors import Actor
from swarmd.domain.binpkgs import BinPkg, index, path_of
from swarmd.domain.builds import OUTSIDE
from swarmd.domain.errors import Invalid, NotFound, TooLarge
from swarmd.drivers import gpkg
from swarmd.drivers.files import SLICE_BYTES, new_file
from swarmd.ops.blobs import open_blob, put
from swarmd.ops.builds import require_builds
from swarmd.state.build_commands import StagePackage
from swarmd.state.build_queries import BinHostAt, FindBinPkg, ViewBinHost

HEADER_KEYS = ("CHOST",)
"""What the index says of all its packages, where they agree on it."""


@dataclass
class Index:
    """The `Packages` file, made anew when something changed."""

    cluster: Cluster
    _at: int = -1
    _text: bytes = b""
    _lock: trio.Lock = field(default_factory=trio.Lock)

    async def read(self) -> bytes:
        require_builds(self.cluster)
        async with self._lock:
            if await self.cluster.read(BinHostAt()) != self._at:
                view = await self.cluster.read(ViewBinHost())
                self._text = await trio.to_thread.run_sync(_text, view.pkgs, view.at)
                self._at = view.at
            return self._text


def _text(pkgs: tuple[BinPkg, ...], at: int) -> bytes:
    header = {}
    for key in HEADER_KEYS:
        values = {pkg.metadata.get(key, "") for pkg in pkgs}
        if len(values) == 1 and (value := values.pop()):
            header[key] = value
    return b"".join(index(pkgs, header, at // 1000))


async def find(cluster: Cluster, path: str) -> BinPkg:
    require_builds(cluster)
    pkg = await cluster.read(FindBinPkg(path))
    if pkg is None:
        raise NotFound("no such binary package; see what there is in /binhost/Packages", path=path)
    return pkg


def open_package(
    cluster: Cluster, pkg: BinPkg
) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
    return open_blob(cluster, pkg.sha256)


async def stage(
    cluster: Cluster, actor: Actor, builder_id: str, path: str, chunks: AsyncIterator[bytes],
    folder: Path, bytes_max: int,
) -> BinPkg:  # fmt: skip
    """Take a binary package from a builder; "" as its id: from an operator. Invalid: it is none, or
    not the one that its path says. TooLarge. Conflict: the builder does not hold the package."""
    require_builds(cluster)
    await trio.to_thread.run_sync(partial(folder.mkdir, mode=0o700, exist_ok=True))
    temp = folder / f"{cluster.new_id()}.part"
    try:
        async with new_file(temp) as file:
            async for chunk in chunks:
                if file.size_bytes + len(chunk) > bytes_max:
                    raise TooLarge(f"a binary package has at most {bytes_max} bytes here")
                await file.write(chunk)
            await file.finish()
        pkg = await gpkg.read(temp)
        _check_path(path, pkg)
        await put(cluster, actor, _slices(temp), expected_sha256=pkg.sha256)
    finally:
        with suppress(FileNotFoundError):
            temp.unlink()
    node_id = OUTSIDE + builder_id if builder_id else ""
    await cluster.propose(StagePackage(node_id, path, pkg), actor)
    return pkg


def _check_path(path: str, pkg: BinPkg) -> None:
    """`category/name-version[-build].suffix`, or the same under a folder of its name."""
    category, _, rest = path.partition("/")
    file = rest.rpartition("/")[2]
    if category == pkg.category and file.startswith((f"{pkg.pf}.", f"{pkg.pf}-")):
        return
    raise Invalid(f"this is a package of {pkg.cpv}; put it under {path_of(pkg)}", path=path)


async def _slices(path: Path) -> AsyncIterator[bytes]:
    async with await trio.open_file(path, "rb") as file:
        while chunk := await file.read(SLICE_BYTES):
            yield chunk
