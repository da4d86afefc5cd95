"""What a node's certificate says, read from bytes that anybody may have made.

It names exactly one node, twice and in one strict form, and holds an Ed25519 key. Who vouches for
it is not asked here.
"""

from __future__ import annotations

import datetime

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID

from mesh.identity.errors import IdentityError
from mesh.identity.ids import is_node_id

DAY_S = 86_400
LIFE_S = 90 * DAY_S
BACKDATED_S = DAY_S
"""So that a node whose clock is behind takes a certificate that was just made."""
RENEWABLE_S = 30 * DAY_S
"""After its end a certificate still proves who asks for the next."""
CERTIFICATE_BYTES_MAX = 4096
URI_PREFIX = "swarmd:node:"


class NodeCertificate(msgspec.Struct, frozen=True):
    node_id: str
    public_key: bytes
    """Ed25519, 32 bytes."""
    begins_s: float
    ends_s: float
    der: bytes

    @property
    def renew_after_s(self) -> float:
        """When two thirds of its life are over, from the day that it was made."""
        made_s = self.begins_s + BACKDATED_S
        return made_s + (self.ends_s - made_s) * 2 / 3

    @property
    def renewable_until_s(self) -> float:
        return self.ends_s + RENEWABLE_S


def read_certificate(der: bytes) -> NodeCertificate:
    """Raises IdentityError."""
    return read_parsed(parse_certificate(der), der)


def peer_id_of(der: bytes) -> str:
    """The one node that a certificate names. Raises IdentityError."""
    return read_certificate(der).node_id


def parse_certificate(der: bytes) -> x509.Certificate:
    if len(der) > CERTIFICATE_BYTES_MAX:
        raise _no_certificate(f"it has {len(der)} bytes; {CERTIFICATE_BYTES_MAX} are the most")
    try:
        parsed = x509.load_der_x509_certificate(der)
    except Exception as error:
        # A parser's ways to fail are many; each means that these bytes are none.
        raise _no_certificate(f"its bytes cannot be read ({type(error).__name__})") from None
    # Of a signature that ends with zero bits, some may be said not to count: it would be another
    # certificate, and verify all the same.
    if not der.endswith(b"\0" + parsed.signature):
        raise _no_certificate("its signature is not a whole number of bytes")
    return parsed


def read_parsed(certificate: x509.Certificate, der: bytes) -> NodeCertificate:
    try:
        names = [
            attribute.value
            for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        ]
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        others = list(extension.value)
        key = certificate.public_key()
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except Exception as error:
        # Parts are parsed late: see above.
        raise _no_certificate(f"a part cannot be read ({type(error).__name__})") from None
    if len(names) != 1 or not isinstance(names[0], str) or not is_node_id(names[0]):
        raise _no_certificate("its common name is not exactly one node id")
    node_id = names[0]
    [other] = others if len(others) == 1 else [None]
    if not isinstance(other, x509.UniformResourceIdentifier) or other.value != (
        URI_PREFIX + node_id
    ):
        raise _no_certificate(f"its alternative name is not exactly {URI_PREFIX}{node_id}")
    if not isinstance(key, Ed25519PublicKey):
        raise _no_certificate("its key is not an Ed25519 key")
    return NodeCertificate(
        node_id, key.public_bytes_raw(), begins.timestamp(), ends.timestamp(), der
    )


def day(at_s: float) -> str:
    """A time as the words of a refusal show it."""
    try:
        return f"{datetime.datetime.fromtimestamp(at_s, datetime.UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return f"second {at_s:.0f}"


def _no_certificate(why: str) -> IdentityError:
    return IdentityError("certificate", f"this is no certificate of a node: {why}")
