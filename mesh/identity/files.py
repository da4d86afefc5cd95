"""A node's identity on disk: its id, keys, certificate and authority, all in one file.

The file is replaced whole or not at all: whenever the machine stops, the last complete one is
there. One that is torn, edited, or that others may read is refused with words, never mended.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from mesh.identity.authority import check_certificate, pin_of
from mesh.identity.boxes import Entropy, open_box
from mesh.identity.certificates import NodeCertificate, read_certificate
from mesh.identity.errors import IdentityError
from mesh.identity.ids import is_node_id
from mesh.identity.proofs import prove

FILE_NAME = "node.pem"
FILE_BYTES_MAX = 64 * 1024

_TITLE = "swarmd identity, form 1"
_FORM = re.compile(
    re.escape(_TITLE)
    + r"\nnode: (?P<node>[^\n]{1,100})\n"
    + r"(?P<blocks>(?:-----BEGIN [A-Z ]+-----\n(?:[A-Za-z0-9+/=]+\n)+-----END [A-Z ]+-----\n)+)"
    + r"sha256: (?P<sum>[0-9a-f]{64})\n",
    re.ASCII,
)
_BLOCK = re.compile(r"-----BEGIN ([A-Z ]+)-----\n[^-]+-----END \1-----\n", re.ASCII)
_LABELS = ["PRIVATE KEY", "PRIVATE KEY", "CERTIFICATE", "CERTIFICATE"]


class Identity:
    """Who this node is. Without a certificate it is nobody's member yet, but keeps its id and keys,
    so that a join that was cut short is the same join when it is tried again."""

    def __init__(
        self,
        node_id: str,
        signing: Ed25519PrivateKey,
        opening: X25519PrivateKey,
        certificate: NodeCertificate | None = None,
        authority: bytes = b"",
    ) -> None:
        self.node_id = node_id
        self.certificate = certificate
        self.authority = authority
        """The authority's certificate in DER; empty before there is one."""
        self._signing = signing
        self._opening = opening

    def __repr__(self) -> str:
        return f"Identity({self.node_id}, certified={self.certificate is not None})"

    @property
    def public_key(self) -> bytes:
        """Ed25519, 32 bytes: what the certificate is about."""
        return self._signing.public_key().public_bytes_raw()

    @property
    def box_key(self) -> bytes:
        """X25519, 32 bytes: what is sealed to it, only this node opens."""
        return self._opening.public_key().public_bytes_raw()

    @property
    def pin(self) -> bytes:
        """Of the swarm that it belongs to. Raises IdentityError where it belongs to none."""
        if not self.authority:
            raise IdentityError("authority", "this node has not joined a swarm yet")
        return pin_of(self.authority)

    def certified(self, certificate: bytes, authority: bytes, now: float) -> Identity:
        """With a first certificate, or a newer one of the same swarm. Raises IdentityError."""
        known = check_certificate(certificate, authority, now)
        if (known.node_id, known.public_key) != (self.node_id, self.public_key):
            raise IdentityError("certificate", "the certificate is of another node or key")
        if self.authority and pin_of(authority) != self.pin:
            raise IdentityError("pin", "the certificate is from another swarm's authority")
        return Identity(self.node_id, self._signing, self._opening, known, authority)

    def prove(self, nonce: bytes, ask: bytes) -> bytes:
        """A Proof, encoded, with the certificate at hand, which may have ended."""
        if self.certificate is None:
            raise IdentityError("proof", "this node has no certificate to prove anything with")
        return prove(self._signing, self.certificate.der, self.pin, nonce, ask)

    def open_box(self, name: str, box: bytes) -> bytes:
        """What was sealed to `box_key` under this name. Raises IdentityError."""
        return open_box(self._opening, name, box)

    def pem(self) -> bytes:
        """Its file. OpenSSL reads the first key, the certificate and its chain out of it."""
        blocks = [_private_pem(self._signing), _private_pem(self._opening)]
        if self.certificate is not None:
            blocks += [_certificate_pem(self.certificate.der), _certificate_pem(self.authority)]
        text = f"{_TITLE}\nnode: {self.node_id}\n{''.join(blocks)}"
        return f"{text}sha256: {_sum(text)}\n".encode("ascii")


def make_identity(node_id: str, entropy: Entropy) -> Identity:
    """Fresh keys for a new node. Raises IdentityError for what is no node id."""
    if not is_node_id(node_id):
        raise IdentityError("certificate", f"{node_id[:100]!r} is no node id: a UUID is")
    return Identity(
        node_id,
        Ed25519PrivateKey.from_private_bytes(entropy(32)),
        X25519PrivateKey.from_private_bytes(entropy(32)),
    )


def load_identity(folder: Path) -> Identity | None:
    """None where none was ever saved. Raises IdentityError, OSError. Blocks on the disk."""
    path = folder / FILE_NAME
    try:
        _check_private(folder, folder.lstat(), 0o700)
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise _unusable(path, "it is no plain file")
        _check_private(path, facts, 0o600)
        data = file.read(FILE_BYTES_MAX + 1)
    return parse_identity(data, path)


def parse_identity(data: bytes, path: Path) -> Identity:
    try:
        text = data[: FILE_BYTES_MAX + 1].decode("ascii")
    except UnicodeDecodeError:
        raise _damaged(path) from None
    found = _FORM.fullmatch(text) if len(text) <= FILE_BYTES_MAX else None
    if found is None:
        if text and not text.startswith(_TITLE) and not _TITLE.startswith(text):
            raise _unusable(path, f"it does not begin with {_TITLE!r}, so another wrote it")
        raise _damaged(path)
    if found["sum"] != _sum(text[: found.start("sum") - len("sha256: ")]):
        raise _damaged(path)
    blocks = list(_blocks(found["blocks"]))
    if [label for label, _ in blocks] not in (_LABELS[:2], _LABELS) or not is_node_id(
        found["node"]
    ):
        raise _damaged(path)
    signing, opening = (_private_key(pem, path) for _, pem in blocks[:2])
    if not isinstance(signing, Ed25519PrivateKey) or not isinstance(opening, X25519PrivateKey):
        raise _damaged(path)
    identity = Identity(found["node"], signing, opening)
    if len(blocks) == 2:
        return identity
    own, authority = (_der(pem, path) for _, pem in blocks[2:])
    known = read_certificate(own)
    # Ended or not is for those to say who look at it; whose it is must be right.
    checked = check_certificate(own, authority, known.begins_s)
    if (checked.node_id, checked.public_key) != (identity.node_id, identity.public_key):
        raise _unusable(path, "its certificate is of another node or key")
    return Identity(identity.node_id, signing, opening, checked, authority)


def save_identity(folder: Path, identity: Identity) -> None:
    """When it returns, this one is on disk; before, the one that was. Raises OSError. Blocks."""
    if not folder.exists():
        folder.mkdir(mode=0o700)
        _sync_directory(folder.parent)
    folder.chmod(0o700)
    fresh = folder / f"{FILE_NAME}.new"
    # What a stop in the middle left behind was never the identity.
    fresh.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(fresh, flags, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(identity.pem())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(folder / FILE_NAME)
    except BaseException:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    _sync_directory(folder)


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    for block in _BLOCK.finditer(text):
        yield block[1], block[0]


def _private_key(pem: str, path: Path) -> object:
    try:
        return serialization.load_pem_private_key(pem.encode(), None)
    except Exception:
        # Whatever the parser says of a key must not come into a message.
        raise _damaged(path) from None


def _der(pem: str, path: Path) -> bytes:
    try:
        return x509.load_pem_x509_certificate(pem.encode()).public_bytes(serialization.Encoding.DER)
    except ValueError:
        raise _damaged(path) from None


def _private_pem(key: Ed25519PrivateKey | X25519PrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode("ascii")


def _certificate_pem(der: bytes) -> str:
    return ssl.DER_cert_to_PEM_cert(der)


def _check_private(path: Path, facts: os.stat_result, mode: int) -> None:
    if facts.st_uid not in (os.geteuid(), 0):
        raise _unusable(path, f"it belongs to user {facts.st_uid}: chown it to the daemon's user")
    if stat.S_IMODE(facts.st_mode) & 0o077:
        raise _unusable(path, f"others may read it: chmod {mode:o} {path}, and look who did")


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _damaged(path: Path) -> IdentityError:
    return _unusable(
        path,
        "it was cut short or changed since it was written: put the file back from a copy, or move"
        " it away together with the node's data and join anew",
    )


def _unusable(path: Path, why: str) -> IdentityError:
    return IdentityError("file", f"{path} cannot be used: {why}", path=str(path))
