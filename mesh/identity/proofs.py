"""Proof in words that one has the key of a certificate, where TLS cannot say so: it has ended, or
the host comes back under a new id.

The server gives a nonce, the asker signs it together with the ask, and with whom it means to talk.
A nonce is good once and for a minute; handing one out costs the server no memory.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh.garbage import GARBAGE
from mesh.identity.authority import check_certificate, pin_of
from mesh.identity.boxes import Entropy
from mesh.identity.certificates import (
    CERTIFICATE_BYTES_MAX,
    RENEWABLE_S,
    NodeCertificate,
)
from mesh.identity.errors import IdentityError

NONCE_BYTES = 32
NONCE_LIFE_S = 60.0
USED_MAX = 1024
PROOF_BYTES_MAX = CERTIFICATE_BYTES_MAX + 256

_MAC_BYTES = 16
_CONTEXT = b"swarmd proof of a node's key, form 1\x00"


class Proof(msgspec.Struct, frozen=True, array_like=True):
    certificate: bytes
    """The old one, in DER."""
    nonce: bytes
    signature: bytes


class Nonces:
    """Those of one server: whoever asks gets one, and each is taken back once.

    A nonce carries its own time and the server's mark; only those that came back with a good proof
    are remembered. `now_s` is any clock that only goes on."""

    def __init__(self, key: bytes, entropy: Entropy) -> None:
        if len(key) != 32:
            raise ValueError("the key of nonces has 32 bytes")
        self._key = key
        self._entropy = entropy
        self._used: dict[bytes, float] = {}

    def fresh(self, now_s: float) -> bytes:
        head = max(0, int(now_s * 1000)).to_bytes(8, "big") + self._entropy(8)
        return head + self._mark(head)

    def check(self, nonce: bytes, now_s: float) -> None:
        """It is one of these, of the last minute, and was not used. Raises IdentityError."""
        if len(nonce) != NONCE_BYTES or not hmac.compare_digest(nonce[16:], self._mark(nonce[:16])):
            raise _stale("it was not given out by this node since its start")
        age_s = now_s - int.from_bytes(nonce[:8], "big") / 1000
        if age_s > NONCE_LIFE_S:
            raise _stale(f"it is older than {NONCE_LIFE_S:.0f} s")
        if nonce in self._used:
            raise _stale("it was used before")

    def spend(self, nonce: bytes, now_s: float) -> None:
        """Remember that it is used. Raises IdentityError."""
        self.check(nonce, now_s)
        for old, until_s in list(self._used.items()):
            if until_s >= now_s:
                break
            del self._used[old]
        if len(self._used) >= USED_MAX:
            raise IdentityError("busy", "too many proofs in this minute; ask again in a minute")
        self._used[nonce] = now_s + NONCE_LIFE_S + 1

    def _mark(self, head: bytes) -> bytes:
        return hmac.digest(self._key, head, hashlib.sha256)[:_MAC_BYTES]


def prove(
    private_key: Ed25519PrivateKey, certificate: bytes, pin: bytes, nonce: bytes, ask: bytes
) -> bytes:
    """The proof, encoded, that the asker of `ask` has the key of the certificate."""
    if len(nonce) != NONCE_BYTES:
        raise _stale(f"it has {len(nonce)} bytes, not {NONCE_BYTES}")
    signature = private_key.sign(_transcript(pin, nonce, ask))
    return msgspec.msgpack.encode(Proof(certificate, nonce, signature))


def check_proof(
    proof: bytes,
    authority_certificate: bytes,
    ask: bytes,
    nonces: Nonces,
    *,
    now: float,
    now_s: float,
) -> NodeCertificate:
    """Whose key signed this ask; the nonce is spent. `now` is the wall's time, `now_s` that of the
    nonces' clock. A certificate counts up to 30 days after its end. Raises IdentityError."""
    found = decode_proof(proof)
    nonces.check(found.nonce, now_s)
    known = check_certificate(found.certificate, authority_certificate, now, grace_s=RENEWABLE_S)
    try:
        Ed25519PublicKey.from_public_bytes(known.public_key).verify(
            found.signature, _transcript(pin_of(authority_certificate), found.nonce, ask)
        )
    except InvalidSignature:
        raise IdentityError(
            "proof",
            f"the proof is not signed with the key of {known.node_id}, or not for this ask",
            node_id=known.node_id,
        ) from None
    nonces.spend(found.nonce, now_s)
    return known


def decode_proof(proof: bytes) -> Proof:
    if len(proof) > PROOF_BYTES_MAX:
        raise IdentityError("proof", f"a proof of {len(proof)} bytes; {PROOF_BYTES_MAX} are enough")
    try:
        return msgspec.msgpack.decode(proof, type=Proof)
    except GARBAGE:
        raise IdentityError("proof", "these bytes are no proof") from None


def _transcript(pin: bytes, nonce: bytes, ask: bytes) -> bytes:
    """Every part has its place by its length; the ask goes in as its hash."""
    return _CONTEXT + pin + nonce + hashlib.sha256(ask).digest()


def _stale(why: str) -> IdentityError:
    return IdentityError("nonce", f"the nonce is of no use: {why}; ask for a new one")
