"""The keys that seal the swarm's gossip: a few that are understood, one of them to seal with.

A ring is a value with a generation; a change is the next one. A new key is first given to all, then
made the primary, and the old one leaves last: so nobody is ever sent what it cannot open.
"""

from __future__ import annotations

import hashlib

import msgspec

from mesh.garbage import GARBAGE
from mesh.identity.errors import IdentityError

KEY_BYTES = 32
KEY_ID_BYTES = 4
KEYS_MAX = 8
RING_BYTES_MAX = 1024


class Keyring(msgspec.Struct, frozen=True, array_like=True):
    generation: int
    primary: bytes
    """The id of the key to seal with."""
    keys: tuple[bytes, ...]

    def __repr__(self) -> str:
        ids = ", ".join(key_id.hex() for key_id in self.key_ids)
        return f"Keyring(generation {self.generation}: {ids}; primary {self.primary.hex()})"

    __str__ = __repr__

    @property
    def key_ids(self) -> tuple[bytes, ...]:
        return tuple(map(key_id_of, self.keys))

    @property
    def by_id(self) -> dict[bytes, bytes]:
        return {key_id_of(key): key for key in self.keys}

    def add(self, key: bytes) -> Keyring:
        """Understood from now on. Raises IdentityError."""
        if len(key) != KEY_BYTES:
            raise _refused(f"a key has {KEY_BYTES} bytes, not {len(key)}")
        if key_id_of(key) in self.key_ids:
            raise _refused(f"the ring has a key {key_id_of(key).hex()} already: make another")
        if len(self.keys) >= KEYS_MAX:
            raise _refused(f"the ring has {KEYS_MAX} keys already: retire one first")
        return Keyring(self.generation + 1, self.primary, (*self.keys, key))

    def promote(self, key_id: bytes) -> Keyring:
        """Sealed with from now on. Raises IdentityError."""
        self._check_known(key_id)
        if key_id == self.primary:
            raise _refused(f"{key_id.hex()} is the primary key already")
        return Keyring(self.generation + 1, key_id, self.keys)

    def retire(self, key_id: bytes) -> Keyring:
        """Not understood any more. Raises IdentityError."""
        self._check_known(key_id)
        if key_id == self.primary:
            raise _refused(f"{key_id.hex()} is the primary key: promote another first")
        kept = tuple(key for key in self.keys if key_id_of(key) != key_id)
        return Keyring(self.generation + 1, self.primary, kept)

    def _check_known(self, key_id: bytes) -> None:
        if key_id not in self.key_ids:
            raise _refused(f"the ring has no key {key_id.hex()[:16]}")


def first_ring(key: bytes) -> Keyring:
    """Raises IdentityError."""
    if len(key) != KEY_BYTES:
        raise _refused(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    return Keyring(1, key_id_of(key), (key,))


def key_id_of(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()[:KEY_ID_BYTES]


def encode_keyring(ring: Keyring) -> bytes:
    """In the clear: only ever stored sealed, and sent to nodes that have proved who they are."""
    return msgspec.msgpack.encode(ring)


def decode_keyring(data: bytes) -> Keyring:
    """Raises IdentityError."""
    if len(data) > RING_BYTES_MAX:
        raise _refused(f"a ring has {RING_BYTES_MAX} bytes at most, not {len(data)}")
    try:
        ring = msgspec.msgpack.decode(data, type=Keyring)
    except GARBAGE:
        raise _refused("these bytes are no ring") from None
    ids = ring.key_ids
    if (
        not 0 < ring.generation < 2**63
        or not 0 < len(ring.keys) <= KEYS_MAX
        or any(len(key) != KEY_BYTES for key in ring.keys)
        or len(set(ids)) != len(ids)
        or ring.primary not in ids
    ):
        raise _refused("a ring has 1 to 8 different keys of 32 bytes, one of them the primary")
    return ring


def _refused(why: str) -> IdentityError:
    return IdentityError("keyring", f"not with this keyring: {why}")
