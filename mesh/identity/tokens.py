"""The join token: which swarm, and that its bearer may come in. What it hides is never printed.

    swm1-<base64url of 16 bytes that pin the authority and 16 bytes of secret>

Only the hash of the secret and its end are kept by the swarm. Nothing here loads a cipher.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

import msgspec

from mesh.identity.errors import IdentityError

PREFIX = "swm1-"
PIN_BYTES = 16
SECRET_BYTES = 16
_TEXT_CHARS = 43
"""Of 32 bytes in base64 without padding."""
_WHERE = "copy the last line of `swarmd token` whole"


class Token(msgspec.Struct, frozen=True):
    pin: bytes
    """The first bytes of the SHA-256 of the authority's public key."""
    secret: bytes

    def __post_init__(self) -> None:
        if len(self.pin) != PIN_BYTES or len(self.secret) != SECRET_BYTES:
            raise ValueError(f"a token is {PIN_BYTES} bytes of pin and {SECRET_BYTES} of secret")

    def __repr__(self) -> str:
        return f"Token(pin={self.pin.hex()}, secret=…)"

    __str__ = __repr__

    @property
    def secret_hash(self) -> bytes:
        return secret_hash(self.secret)


def encode_token(token: Token) -> str:
    raw = base64.urlsafe_b64encode(token.pin + token.secret)
    return PREFIX + raw.rstrip(b"=").decode()


def parse_token(text: str) -> Token:
    """Raises IdentityError, with words that show nothing of the token."""
    text = text.strip()
    if not text:
        raise _no_token("it is empty")
    if not text.startswith(PREFIX):
        if text[:3].lower() == "swm":
            raise _no_token(f"it is of another version than this one reads ({PREFIX}…)")
        raise _no_token(f"it does not begin with {PREFIX}")
    body = text.removeprefix(PREFIX)
    if len(body) != _TEXT_CHARS:
        much = "short" if len(body) < _TEXT_CHARS else "long"
        raise _no_token(
            f"it is too {much}: {len(body)} characters follow {PREFIX} where {_TEXT_CHARS} should"
        )
    try:
        raw = base64.b64decode(body.encode("ascii") + b"=", altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise _no_token("it has characters that no token has") from None
    token = Token(raw[:PIN_BYTES], raw[PIN_BYTES:])
    if encode_token(token) != text:
        raise _no_token("its last character cannot be")
    return token


def secret_hash(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def secret_matches(secret: bytes, expected_hash: bytes) -> bool:
    """In a time that tells nothing of where they differ."""
    return hmac.compare_digest(secret_hash(secret), expected_hash)


def _no_token(why: str) -> IdentityError:
    return IdentityError("token", f"this is no join token: {why}; {_WHERE}")
