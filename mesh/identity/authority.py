"""The swarm's own authority: it vouches that a key is a node's, and its pin stands for the swarm.

A certificate is a plain function of the authority, the node, the key and the time: asked twice, it
is the same.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.identity.certificates import (
    BACKDATED_S,
    DAY_S,
    LIFE_S,
    URI_PREFIX,
    NodeCertificate,
    day,
    parse_certificate,
    read_parsed,
)
from mesh.identity.errors import IdentityError
from mesh.identity.ids import is_node_id
from mesh.identity.tokens import PIN_BYTES

AUTHORITY_LIFE_S = 3653 * DAY_S
CHAIN_MAX = 4
CLOCKS_APART_S = 3600.0
"""A stranger's clock may disagree with a certificate's dates by so much."""

_FOR_NODES = x509.ExtendedKeyUsage(
    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
)


class Authority:
    """Able to vouch: it holds the private key, which nothing prints."""

    def __init__(self, private_key: Ed25519PrivateKey, certificate: bytes) -> None:
        self._private_key = private_key
        self._parsed = _usable_authority(certificate)
        self.certificate = certificate
        """In DER; everybody may have it."""
        if _key_of(self._parsed).public_bytes_raw() != _raw(private_key):
            raise IdentityError("authority", "the authority's certificate is of another key")

    @property
    def pin(self) -> bytes:
        return _pin(self._parsed)

    @property
    def secret(self) -> bytes:
        """The private key, 32 bytes: only ever written down sealed."""
        return self._private_key.private_bytes_raw()

    def issue(self, node_id: str, public_key: bytes, now: float) -> bytes:
        """A node's certificate in DER, for 90 days. Raises IdentityError."""
        if not is_node_id(node_id):
            raise IdentityError("certificate", f"{node_id[:100]!r} is no node id: a UUID is")
        key = _public_key(public_key)
        made = datetime.datetime.fromtimestamp(int(now), datetime.UTC)
        begins = made - datetime.timedelta(seconds=BACKDATED_S)
        of_node = x509.UniformResourceIdentifier(URI_PREFIX + node_id)
        builder = (
            _builder(_name(node_id), self._parsed.subject, key, begins, made, LIFE_S)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(_FOR_NODES, critical=False)
            .add_extension(x509.SubjectAlternativeName([of_node]), critical=False)
            .add_extension(_issuer_hint(_key_of(self._parsed)), critical=False)
        )
        return _signed(builder, self._private_key)


def make_authority(seed: bytes, now: float) -> Authority:
    """A new one, for ten years, from 32 random bytes."""
    private_key = Ed25519PrivateKey.from_private_bytes(seed)
    key = private_key.public_key()
    made = datetime.datetime.fromtimestamp(int(now), datetime.UTC)
    begins = made - datetime.timedelta(seconds=BACKDATED_S)
    name = _name(f"swarmd authority {_pin_of_key(key).hex()[:16]}")
    builder = (
        _builder(name, name, key, begins, made, AUTHORITY_LIFE_S)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(_issuer_hint(key), critical=False)
    )
    return Authority(private_key, _signed(builder, private_key))


def load_authority(secret: bytes, certificate: bytes) -> Authority:
    """From what `secret` and `certificate` gave. Raises IdentityError."""
    if len(secret) != 32:
        raise IdentityError("authority", f"an authority's key has 32 bytes, not {len(secret)}")
    return Authority(Ed25519PrivateKey.from_private_bytes(secret), certificate)


def pin_of(authority_certificate: bytes) -> bytes:
    """Raises IdentityError."""
    return _pin(_usable_authority(authority_certificate))


def check_certificate(
    certificate: bytes, authority_certificate: bytes, now: float, *, grace_s: float = 0.0
) -> NodeCertificate:
    """That this authority vouches for it, now or until the grace ago. Raises IdentityError."""
    authority = _usable_authority(authority_certificate)
    parsed = parse_certificate(certificate)
    found = read_parsed(parsed, certificate)
    try:
        parsed.verify_directly_issued_by(authority)
        leaf = not parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        raise IdentityError(
            "authority", f"the certificate of {found.node_id} is not from this swarm's authority"
        ) from None
    if not leaf:
        raise IdentityError("certificate", f"{found.node_id} shows an authority's certificate")
    if now > found.ends_s + grace_s:
        late = f", and {grace_s / DAY_S:.0f} days after that it is of no use" if grace_s else ""
        raise IdentityError(
            "expired",
            f"the certificate of {found.node_id} ended at {day(found.ends_s)}{late}; here it is"
            f" {day(now)}",
            node_id=found.node_id,
        )
    if now < found.begins_s - CLOCKS_APART_S:
        raise IdentityError(
            "not_yet",
            f"the certificate of {found.node_id} begins at {day(found.begins_s)}, here it is"
            f" {day(now)}: one of the clocks is wrong",
            node_id=found.node_id,
        )
    return found


def check_chain(chain: Sequence[bytes], pin: bytes, now: float) -> NodeCertificate:
    """The node at the head of a chain, vouched for by the authority with this pin, which comes
    with it. That the other side has the node's key is proved by the handshake alone. Raises
    IdentityError."""
    if not 2 <= len(chain) <= CHAIN_MAX:
        words = f"{len(chain)} certificates came; a node's own and its authority's are needed"
        raise IdentityError("authority", words)
    for certificate in chain[1:]:
        try:
            found = pin_of(certificate)
        except IdentityError:
            continue
        if found == pin:
            return check_certificate(chain[0], certificate, now, grace_s=CLOCKS_APART_S)
    raise IdentityError(
        "pin",
        "the node that answers belongs to another swarm than the token's, or somebody sits in"
        " between",
    )


def _usable_authority(der: bytes) -> x509.Certificate:
    parsed = parse_certificate(der)
    try:
        parsed.verify_directly_issued_by(parsed)
        constraints = parsed.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = parsed.extensions.get_extension_for_class(x509.KeyUsage).value
        usable = constraints.ca and usage.key_cert_sign
        _key_of(parsed)
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        usable = False
    if not usable:
        raise IdentityError("authority", "this is no certificate of a swarm's authority")
    return parsed


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Ed25519PublicKey,
    begins: datetime.datetime,
    made: datetime.datetime,
    life_s: float,
) -> x509.CertificateBuilder:
    """The number is from what makes the certificate, so that no two of them share one."""
    seed = f"{subject.rfc4514_string()}|{begins.timestamp()}|".encode() + key.public_bytes_raw()
    number = int.from_bytes(hashlib.sha256(seed).digest()[:19], "big") | 1
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(number)
        .not_valid_before(begins)
        .not_valid_after(made + datetime.timedelta(seconds=life_s))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _signed(builder: x509.CertificateBuilder, private_key: Ed25519PrivateKey) -> bytes:
    return builder.sign(private_key, None).public_bytes(serialization.Encoding.DER)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=authority,
        crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _issuer_hint(key: Ed25519PublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _public_key(raw: bytes) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        raise IdentityError("certificate", "a node's public key is 32 bytes of Ed25519") from None


def _key_of(parsed: x509.Certificate) -> Ed25519PublicKey:
    key = parsed.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("not an Ed25519 key")
    return key


def _raw(private_key: Ed25519PrivateKey) -> bytes:
    return private_key.public_key().public_bytes_raw()


def _pin(parsed: x509.Certificate) -> bytes:
    return _pin_of_key(_key_of(parsed))


def _pin_of_key(key: Ed25519PublicKey) -> bytes:
    spki = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(spki).digest()[:PIN_BYTES]
