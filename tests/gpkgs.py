"""Binary packages made by hand, as small as they may be; and hostile ones of their parts."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path


def record(name: str, data: bytes) -> str:
    sha512, blake2b = hashlib.sha512(data).hexdigest(), hashlib.blake2b(data).hexdigest()
    return f"DATA {name} {len(data)} BLAKE2B {blake2b} SHA512 {sha512}\n"


def write(file: Path, parts: dict[str, bytes], *, manifest: bytes | None = None) -> Path:
    """A container with a true Manifest, or the given one; by the standard library's tar."""
    whole = {name: data for name, data in parts.items() if name != "Manifest"}
    told = "".join(record(name, data) for name, data in whole.items()).encode()
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in {**whole, "Manifest": told if manifest is None else manifest}.items():
            add(tar, f"p-1/{name}", data)
    return file


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **more: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def metadata(said: dict[str, bytes] | None = None, **more: bytes) -> bytes:
    out = io.BytesIO()
    default = {"CATEGORY": b"app-misc", "PF": b"p-1", "SLOT": b"0"}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, value in (default | more if said is None else said).items():
            add(tar, f"metadata/{key}", value)
    return out.getvalue()


def parts_of(inner: bytes, suffix: str = "") -> dict[str, bytes]:
    return {"gpkg-1": b"", f"metadata.tar{suffix}": inner, "image.tar": b"image"}


def package(file: Path, cpv: str, image: bytes = b"image", **said: bytes) -> Path:
    """A whole one of this name, which nobody would want to install."""
    category, _, pf = cpv.partition("/")
    inner = metadata(CATEGORY=category.encode(), PF=pf.encode(), **said)
    return write(file, {"gpkg-1": b"", "metadata.tar": inner, "image.tar": image})
