"""Drones' own tokens: with one a builder from outside speaks for itself, and for nothing else,
where everybody else needs the admin key. Only the hash of its secret is ever kept."""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping

import msgspec

from swarmd.domain.errors import Invalid

TOKENS_MAX = 1000
SECRET_BYTES = 32
HASH_BYTES = 32
TOKEN_CHARS_MAX = 256
PREFIX = "drone1."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,62}")


class DroneToken(msgspec.Struct, frozen=True):
    """That the builder of this name has one."""

    name: str
    hash: bytes
    by: str
    at: int


def check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise Invalid("name must be a drone's: up to 63 letters, digits and . _ -", field="name")
    return name


def encode_token(name: str, secret: bytes) -> str:
    """What the builder shows."""
    return f"{PREFIX}{check_name(name)}.{urlsafe_b64encode(secret).decode().rstrip('=')}"


def hash_token(token: str) -> bytes:
    """The secret is as long as the hash: nobody finds it by trying, and none needs to be slow."""
    return hashlib.sha256(token.encode()).digest()


def owner_of(token: str, known: Mapping[str, bytes]) -> str | None:
    """Whose token this is, by the hashes that are known by name; None: nobody's."""
    if not token.startswith(PREFIX) or len(token) > TOKEN_CHARS_MAX:
        return None
    name = token.removeprefix(PREFIX).rpartition(".")[0]
    kept = known.get(name)
    if kept is None or not hmac.compare_digest(kept, hash_token(token)):
        return None
    return name
