"""The swarm's OpenPGP key: made, exported, and the signatures that gpg and Portage check.

One Ed25519 key of version 4, which GnuPG reads from 2.1 on, and signatures over SHA-512 alone. Of
another's bytes only what this module could have written is accepted; the rest is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from swarmd.domain.errors import Invalid, TooLarge

KEY_BYTES_MAX = 64 * 1024
SIGNATURE_BYTES_MAX = 16 * 1024
USER_ID_BYTES_MAX = 255
BACKDATED_S = 86_400
"""A host whose clock is behind would take a key of just now for one of the future."""

CLEAR_HEAD = b"-----BEGIN PGP SIGNED MESSAGE-----\n"
_SIGNATURE_HEAD = b"-----BEGIN PGP SIGNATURE-----\n"

_PACKETS_MAX = 32
_SIGNATURE, _SECRET_KEY, _PUBLIC_KEY, _USER_ID = 2, 5, 6, 13
_EDDSA, _SHA512 = 22, 10
_OVER_BYTES, _OVER_TEXT, _OVER_USER_ID = 0x00, 0x01, 0x13
_ED25519 = bytes.fromhex("092b06010401da470f01")
"""The curve's object identifier, with its length."""
_CREATED, _ISSUER, _ISSUER_FINGERPRINT = 2, 16, 33
_BORNE = frozenset({_CREATED, _ISSUER, _ISSUER_FINGERPRINT, 28})
"""Facts in a signature that bind nothing (28: the signer's name). Others may: an end does."""


class Hash(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes, /) -> None: ...
    def copy(self) -> Hash: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What checks the swarm's signatures, on our side and on a user's."""

    body: bytes
    certificate: bytes
    """The key, its name, and the key's signature over both: what is given away."""

    @classmethod
    def load(cls, data: bytes) -> PublicKey:
        """Armored or not. Invalid: no version 4 Ed25519 key."""
        packets = _packets(_dearmored(data, b"PUBLIC KEY BLOCK"))
        body = packets[0][1] if packets and packets[0][0] == _PUBLIC_KEY else b""
        _point_of(body)
        return cls(body, b"".join(_packet(tag, content) for tag, content in packets))

    @property
    def fingerprint(self) -> str:
        """As gpg prints it: 40 hexadecimal digits in capitals."""
        return self._digest().hex().upper()

    @property
    def created_s(self) -> int:
        """What the key says of itself, and hosts go by."""
        return int.from_bytes(self.body[1:5])

    @property
    def made_s(self) -> int:
        return self.created_s + BACKDATED_S

    def armored(self) -> bytes:
        """For `gpg --import`."""
        return _armored(self.certificate, b"PUBLIC KEY BLOCK")

    def check(self, content: Hash, signature: bytes) -> None:
        """A detached signature over what the hash has taken in. Invalid: not by this key, or not
        over this."""
        self._check(content, signature, _OVER_BYTES)

    def check_clear(self, signed: bytes) -> bytes:
        """The text of a clear-signed one. Invalid: as for check."""
        text, signature = split_clear(signed)
        self._check(hashlib.sha512(_canonical(text)), signature, _OVER_TEXT)
        return text

    def _check(self, content: Hash, signature: bytes, kind: int) -> None:
        packets = _packets(_dearmored(signature, b"SIGNATURE"))
        if len(packets) != 1 or packets[0][0] != _SIGNATURE:
            raise Invalid("an OpenPGP signature must be one packet of one signature")
        hashed, plain, numbers = _signature_parts(packets[0][1], kind)
        issuers = [value for number, value in plain if number in (_ISSUER, _ISSUER_FINGERPRINT)]
        mine = (self._digest()[-8:], b"\x04" + self._digest())
        if not issuers or any(issuer not in mine for issuer in issuers):
            other = issuers[0][-8:].hex().upper() if issuers else "no key that it names"
            raise Invalid(f"signed by {other}, not by {self.fingerprint}")
        try:
            key = Ed25519PublicKey.from_public_bytes(_point_of(self.body))
            key.verify(numbers, _sealed_digest(content, hashed))
        except (InvalidSignature, ValueError):
            raise Invalid(f"the signature of {self.fingerprint} is over something else") from None

    def _digest(self) -> bytes:
        # The standard names a key by SHA-1; nothing here rests on it.
        return hashlib.sha1(_framed_key(self.body), usedforsecurity=False).digest()


class Signer(ABC):
    """Makes signatures of a key that may lie elsewhere: only a digest goes to where it is."""

    __slots__ = ()
    public: PublicKey

    @abstractmethod
    def numbers(self, digest: bytes) -> bytes:
        """The key's 64 bytes over the 64 of a SHA-512. Called in the thread that signs."""

    def sign(self, content: Hash, at_s: int) -> bytes:
        """A detached, armored signature over what a SHA-512 has taken in; the hash stays as it is.
        The same key, content and time give the same bytes."""
        return _armored(self._signature(content, _OVER_BYTES, at_s), b"SIGNATURE")

    def sign_clear(self, text: bytes, at_s: int) -> bytes:
        """The text within its signature. Its last line must be ended."""
        if not text.endswith(b"\n") or b"\r" in text:
            raise Invalid("a text to be signed must be of lines that end in a line feed")
        escaped = re.sub(rb"^-", b"- -", text, flags=re.MULTILINE)
        signature = self._signature(hashlib.sha512(_canonical(text)), _OVER_TEXT, at_s)
        return CLEAR_HEAD + b"Hash: SHA512\n\n" + escaped + _armored(signature, b"SIGNATURE")

    def _signature(self, content: Hash, kind: int, at_s: int, facts: bytes = b"") -> bytes:
        # gpg refuses a signature older than its key.
        at_s = max(at_s, self.public.created_s)
        facts = (
            _fact(_ISSUER_FINGERPRINT, b"\x04" + self.public._digest())
            + _fact(_CREATED, _u32(at_s))
            + facts
        )
        hashed = bytes([4, kind, _EDDSA, _SHA512]) + _u16(len(facts)) + facts
        digest = _sealed_digest(content, hashed)
        numbers = self.numbers(digest)
        beside = _fact(_ISSUER, self.public._digest()[-8:])
        return _packet(
            _SIGNATURE,
            hashed + _u16(len(beside)) + beside + digest[:2]
            + _number(numbers[:32]) + _number(numbers[32:]),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SigningKey(Signer):
    """Kept in memory alone. `export` is what the swarm seals; it never goes to a disk unsealed."""

    public: PublicKey
    _seed: bytes = field(repr=False)

    @classmethod
    def make(cls, user_id: str, now_s: int) -> SigningKey:
        """A new key, valid from a day before now, without an end. Invalid: such a name cannot be
        shown (`Swarm at home <swarm@example.org>` can)."""
        name = user_id.encode()
        if not 0 < len(name) <= USER_ID_BYTES_MAX or not user_id.isprintable():
            raise Invalid(f"a key's name must be 1 to {USER_ID_BYTES_MAX} printable bytes")
        seed = os.urandom(32)
        point = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
        created_s = max(0, now_s - BACKDATED_S)
        body = b"\x04" + _u32(created_s) + bytes([_EDDSA]) + _ED25519 + _number(b"\x40" + point)
        unnamed = cls(PublicKey(body, b""), seed)
        own_words = (
            _fact(27, b"\x03")  # it certifies itself and signs
            + _fact(21, bytes([_SHA512]))
            + _fact(30, b"\x01")
        )
        named = hashlib.sha512(_framed_key(body) + b"\xb4" + _u32(len(name)) + name)
        by_itself = unnamed._signature(named, _OVER_USER_ID, created_s, own_words)
        certificate = _packet(_PUBLIC_KEY, body) + _packet(_USER_ID, name) + by_itself
        return cls(PublicKey(body, certificate), seed)

    @classmethod
    def load(cls, secret: bytes) -> SigningKey:
        """What export gave. Invalid: anything else; the words hold nothing of it."""
        packets = _packets(secret)
        tag, body = packets[0] if packets else (0, b"")
        public = body[: 4 + 1 + 1 + len(_ED25519) + 2 + 33]
        _point_of(public)
        rest = body[len(public) :]
        seed, end = _read_number(rest, 1)
        if tag != _SECRET_KEY or rest[:1] != b"\x00" or rest[end:] != _checksum(rest[1:end]):
            raise Invalid("the swarm's signing key is no unprotected OpenPGP secret key")
        seed = seed.rjust(32, b"\0")
        if Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw() != _point_of(
            public
        ):
            raise Invalid("the two halves of the swarm's signing key do not belong together")
        others = b"".join(_packet(number, content) for number, content in packets[1:])
        return cls(PublicKey(public, _packet(_PUBLIC_KEY, public) + others), seed)

    def export(self) -> bytes:
        """To be sealed. `gpg --import` takes it too, should the key have to be used without us."""
        number = _number(self._seed)
        body = self.public.body + b"\x00" + number + _checksum(number)
        whole = _packet(_PUBLIC_KEY, self.public.body)
        return _packet(_SECRET_KEY, body) + self.public.certificate[len(whole) :]

    def numbers(self, digest: bytes) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(self._seed).sign(digest)


def split_clear(signed: bytes) -> tuple[bytes, bytes]:
    """The text of a clear-signed one, and its armored signature, neither of them checked. Invalid:
    there is anything beside the two, or before the text another header than its hash."""
    head = re.match(rb"(?:Hash: [A-Z0-9-]{1,32}\n)?\n", signed[len(CLEAR_HEAD) :])
    at = signed.find(b"\n" + _SIGNATURE_HEAD)
    if not signed.startswith(CLEAR_HEAD) or head is None or at < 0:
        raise Invalid("a clear-signed text must be a text and one signature, and nothing else")
    lines = signed[len(CLEAR_HEAD) + head.end() : at + 1].splitlines(keepends=True)
    for line in lines:
        if line.startswith(b"-") and not line.startswith(b"- "):
            raise Invalid("a line of a clear-signed text begins with a dash that is not escaped")
    text = b"".join(line[2:] if line.startswith(b"- ") else line for line in lines)
    return text, signed[at + 1 :]


def _canonical(text: bytes) -> bytes:
    """As a signature over text sees it: no blanks at the ends of lines, and no last line end."""
    return b"\r\n".join(line.rstrip(b" \t\r") for line in text.removesuffix(b"\n").split(b"\n"))


def _signature_parts(body: bytes, kind: int) -> tuple[bytes, list[tuple[int, bytes]], bytes]:
    """What of it was hashed, the facts beside it, and its 64 bytes of numbers."""
    if body[:4] != bytes([4, kind, _EDDSA, _SHA512]):
        raise Invalid("the signature is of another kind than the swarm's: Ed25519 over SHA-512")
    end = 6 + int.from_bytes(body[4:6])
    facts = [*_facts(body[6:end])]
    beside = end + 2 + int.from_bytes(body[end : end + 2])
    # What lies beside was not hashed: it may name the issuer and nothing more.
    facts += [fact for fact in _facts(body[end + 2 : beside]) if fact[0] == _ISSUER]
    r, at = _read_number(body, beside + 2)
    s, at = _read_number(body, at)
    if at != len(body):
        raise Invalid("there is more behind an OpenPGP signature, or less in it")
    return body[:end], facts, r.rjust(32, b"\0") + s.rjust(32, b"\0")


def _facts(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        size, at = _read_length(data, at)
        if not 0 < size <= len(data) - at:
            raise Invalid("a part of an OpenPGP signature is cut short")
        number = data[at] & 0x7F
        if number not in _BORNE:
            raise Invalid(f"the signature carries a condition (number {number}) that is not ours")
        yield number, data[at + 1 : at + size]
        at += size


def _packets(data: bytes) -> list[tuple[int, bytes]]:
    """Each with its tag, in either of the two framings. Invalid: cut short, or too many."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        head = data[at]
        if not head & 0x80 or len(found) == _PACKETS_MAX:
            raise Invalid("this is no OpenPGP key or signature")
        if head & 0x40:
            tag = head & 0x3F
            size, at = _read_length(data, at + 1)
        else:
            tag, width = head >> 2 & 0x0F, 1 << (head & 3)
            size, at = int.from_bytes(data[at + 1 : at + 1 + width]), at + 1 + width
            if width == 8:
                raise Invalid("an OpenPGP packet must say how long it is")
        if size > len(data) - at:
            raise Invalid("an OpenPGP packet is cut short")
        found.append((tag, data[at : at + size]))
        at += size
    return found


def _read_length(data: bytes, at: int) -> tuple[int, int]:
    first = data[at] if at < len(data) else 0
    if first < 192:
        return first, at + 1
    if first < 224:
        return (first - 192 << 8) + int.from_bytes(data[at + 1 : at + 2]) + 192, at + 2
    if first < 255:
        raise Invalid("an OpenPGP packet must come in one part")
    return int.from_bytes(data[at + 1 : at + 5]), at + 5


def _read_number(data: bytes, at: int) -> tuple[bytes, int]:
    size = (int.from_bytes(data[at : at + 2]) + 7) // 8
    end = at + 2 + size
    if size > 32 or end > len(data):
        raise Invalid("a number of an OpenPGP key or signature has another size than Ed25519's")
    return data[at + 2 : end], end


def _point_of(body: bytes) -> bytes:
    head = bytes([_EDDSA]) + _ED25519 + _u16(263) + b"\x40"
    if len(body) != 5 + len(head) + 32 or body[:1] != b"\x04" or body[5 : 5 + len(head)] != head:
        raise Invalid("this is no OpenPGP key of version 4 over Ed25519")
    return body[-32:]


def _sealed_digest(content: Hash, hashed: bytes) -> bytes:
    whole = content.copy()
    whole.update(hashed + b"\x04\xff" + _u32(len(hashed)))
    return whole.digest()


def _framed_key(body: bytes) -> bytes:
    return b"\x99" + _u16(len(body)) + body


def _packet(tag: int, body: bytes) -> bytes:
    return bytes([0xC0 | tag]) + _length(len(body)) + body


def _fact(number: int, value: bytes) -> bytes:
    return _length(len(value) + 1) + bytes([number]) + value


def _length(size: int) -> bytes:
    if size < 192:
        return bytes([size])
    if size < 8384:
        return bytes([(size - 192 >> 8) + 192, size - 192 & 0xFF])
    return b"\xff" + _u32(size)


def _number(data: bytes) -> bytes:
    value = int.from_bytes(data)
    return _u16(value.bit_length()) + value.to_bytes((value.bit_length() + 7) // 8)


def _checksum(data: bytes) -> bytes:
    return _u16(sum(data) & 0xFFFF)


def _u16(value: int) -> bytes:
    return value.to_bytes(2)


def _u32(value: int) -> bytes:
    return value.to_bytes(4)


def _armored(data: bytes, what: bytes) -> bytes:
    text = base64.b64encode(data)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    check = b"=" + base64.b64encode(_crc24(data).to_bytes(3))
    return b"\n".join(
        [
            b"-----BEGIN PGP " + what + b"-----",
            b"",
            *lines,
            check,
            b"-----END PGP " + what + b"-----\n",
        ]
    )


def _dearmored(data: bytes, what: bytes) -> bytes:
    """The bytes within; as they are if they are not armored. One block, and nothing around it."""
    bytes_max = KEY_BYTES_MAX if what != b"SIGNATURE" else SIGNATURE_BYTES_MAX
    if len(data) > bytes_max:
        raise TooLarge(f"an OpenPGP {what.decode().lower()} may have at most {bytes_max} bytes")
    if data[:1] != b"-":
        return data
    pattern = (
        rb"-----BEGIN PGP " + what + rb"-----\r?\n(?:[A-Za-z]+: [^\r\n]*\r?\n)*\r?\n"
        rb"([A-Za-z0-9+/=\r\n]*?)(?:\n=([A-Za-z0-9+/]{4})\r?)?\n-----END PGP " + what + rb"-----\s*"
    )
    if (block := re.fullmatch(pattern, data)) is None:
        raise Invalid(f"this is no armored OpenPGP {what.decode().lower()}")
    try:
        content = base64.b64decode(re.sub(rb"\s", b"", block[1]), validate=True)
    except binascii.Error:
        raise Invalid(f"the armor of an OpenPGP {what.decode().lower()} is damaged") from None
    if block[2] is not None and base64.b64decode(block[2]) != _crc24(content).to_bytes(3):
        raise Invalid(f"the armor of an OpenPGP {what.decode().lower()} is damaged")
    return content


def _crc24(data: bytes) -> int:
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _ in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= 0x1864CFB
    return crc & 0xFFFFFF
