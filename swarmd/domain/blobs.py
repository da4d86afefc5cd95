"""Blobs: bytes named by their sha256, wherever they lie."""

from __future__ import annotations

import re

import msgspec

from swarmd.domain.errors import Invalid

SCHEME = "blob:sha256:"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BlobInfo(msgspec.Struct, frozen=True):
    sha256: str
    size_bytes: int


class OtherContent(Invalid):
    """The bytes do not have the hash that was said of them. None of them are kept."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(
            f"the content does not have the expected hash: expected sha256 {expected}, got {got}",
            expected=expected, got=got,
        )  # fmt: skip
        self.got = got


def checked_sha256(text: str, field: str = "sha256") -> str:
    """The hash in lower case. Refused with Invalid unless it is 64 hexadecimal digits."""
    lower = text.lower()
    if not _SHA256.fullmatch(lower):
        raise Invalid(f"{field} must be 64 hexadecimal digits", field=field)
    return lower


def blob_of(url: str) -> str | None:
    """The sha256 that a `blob:sha256:…` url names; None for any other url."""
    if not url.lower().startswith(SCHEME):
        return None
    return checked_sha256(url[len(SCHEME) :], "binary_url")
