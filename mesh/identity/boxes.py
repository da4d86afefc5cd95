"""Secrets under a key: sealed with one that both sides have, or into a box for one reader.

Each is sealed under a key of its own, made from the given one and fresh random bytes, so that no
nonce is ever used twice however many there are. The name goes in as well: what was sealed under
one name does not open under another.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from mesh.identity.errors import IdentityError

Entropy = Callable[[int], bytes]
"""So many bytes that nobody can guess: os.urandom."""

KEY_BYTES = 32
PLAIN_BYTES_MAX = 1024 * 1024
_VERSION = b"\x01"
_SALT_BYTES = 24
_TAG_BYTES = 16
_NONCE = bytes(12)


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF with SHA-256 (RFC 5869), its first 32 bytes."""
    middle = hmac.digest(salt or bytes(32), secret, hashlib.sha256)
    return hmac.digest(middle, info + b"\x01", hashlib.sha256)


def seal(key: bytes, name: str, plain: bytes, entropy: Entropy) -> bytes:
    """Under a key that stays; `unseal` with the same name opens it."""
    _check_plain(plain)
    salt = entropy(_SALT_BYTES)
    aead = ChaCha20Poly1305(hkdf(_checked_key(key), salt, b"swarmd sealed 1"))
    return _VERSION + salt + aead.encrypt(_NONCE, plain, _VERSION + name.encode())


def unseal(key: bytes, name: str, sealed: bytes) -> bytes:
    """Raises IdentityError where the key, the name or a single bit is another."""
    what = f"what is sealed as {name!r}"
    salt, body = _split(sealed, _SALT_BYTES, what)
    aead = ChaCha20Poly1305(hkdf(_checked_key(key), salt, b"swarmd sealed 1"))
    try:
        return aead.decrypt(_NONCE, body, _VERSION + name.encode())
    except InvalidTag:
        raise IdentityError(
            "sealed", f"{what} does not open: it was sealed with another key or name, or changed"
        ) from None


def seal_to(public_key: bytes, name: str, plain: bytes, entropy: Entropy) -> bytes:
    """For whoever has the private half of an X25519 key; not even the sender can open it again."""
    _check_plain(plain)
    once = X25519PrivateKey.from_private_bytes(entropy(KEY_BYTES))
    sender = once.public_key().public_bytes_raw()
    aead = _box_cipher(once, public_key, sender + public_key, "the reader's public key")
    return _VERSION + sender + aead.encrypt(_NONCE, plain, _VERSION + name.encode())


def open_box(private_key: X25519PrivateKey, name: str, box: bytes) -> bytes:
    """Raises IdentityError."""
    what = f"the box {name!r}"
    sender, body = _split(box, KEY_BYTES, what)
    mine = private_key.public_key().public_bytes_raw()
    aead = _box_cipher(private_key, sender, sender + mine, what)
    try:
        return aead.decrypt(_NONCE, body, _VERSION + name.encode())
    except InvalidTag:
        raise IdentityError(
            "sealed", f"{what} does not open: it is for another node or name, or was changed"
        ) from None


def _box_cipher(
    private_key: X25519PrivateKey, public_key: bytes, salt: bytes, what: str
) -> ChaCha20Poly1305:
    try:
        shared = private_key.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError:
        raise IdentityError("sealed", f"{what} holds no usable X25519 key") from None
    return ChaCha20Poly1305(hkdf(shared, salt, b"swarmd box 1"))


def _split(sealed: bytes, head_bytes: int, what: str) -> tuple[bytes, bytes]:
    if not len(_VERSION) + head_bytes + _TAG_BYTES <= len(sealed) <= PLAIN_BYTES_MAX + 1024:
        raise IdentityError("sealed", f"{what} has {len(sealed)} bytes, which cannot be")
    if sealed[:1] != _VERSION:
        raise IdentityError(
            "sealed", f"{what} is of form {sealed[0]}; this version of swarmd reads {_VERSION[0]}"
        )
    return sealed[1 : 1 + head_bytes], sealed[1 + head_bytes :]


def _checked_key(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a sealing key has {KEY_BYTES} bytes")
    return key


def _check_plain(plain: bytes) -> None:
    if len(plain) > PLAIN_BYTES_MAX:
        raise ValueError(f"{len(plain)} bytes; at most {PLAIN_BYTES_MAX} are sealed at once")
