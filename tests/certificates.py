"""Certificates made for one test: an authority and the nodes it vouches for.

`Authority` vouches for any name and any time; `member` is a node as the product makes it.
"""

from __future__ import annotations

import datetime
import os
import ssl
import tempfile
import time
import uuid
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID

from mesh.identity import authority, files
from mesh.pipes import Tls


def member(
    of: authority.Authority, *, made: float | None = None, node_id: str | None = None
) -> files.Identity:
    """A node of a real authority, whose certificate was made now, or at another time."""
    now = time.time() if made is None else made
    identity = files.make_identity(node_id or str(uuid.uuid4()), os.urandom)
    certificate = of.issue(identity.node_id, identity.public_key, now)
    return identity.certified(certificate, of.certificate, now)


class Authority:
    def __init__(self, name: str = "tests") -> None:
        self._key = ed25519.Ed25519PrivateKey.generate()
        self._name = _name(name)
        self.certificate = self._sign(_name(name), self._key.public_key(), ca=True)

    def tls(self, node: str) -> Tls:
        """Both contexts of a node with this id."""
        return tls_from(self.pem(node))

    def pem(self, node: str) -> bytes:
        """Key and certificate of a node, and whom it trusts."""
        key = ed25519.Ed25519PrivateKey.generate()
        certificate = self._sign(_name(node), key.public_key(), ca=False)
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return private + _pem(certificate) + _pem(self.certificate)

    def _sign(
        self, name: x509.Name, key: ed25519.Ed25519PublicKey, *, ca: bool
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(self._key, None)
        )


def tls_from(pem: bytes) -> Tls:
    contexts = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "node.pem")
        file.write_bytes(pem)
        for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
            context = bare_context(protocol)
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(file)
            context.load_cert_chain(file)
            contexts.append(context)
    return Tls(*contexts, peer_id_of)


def bare_context(protocol: int) -> ssl.SSLContext:
    """Shows no certificate and trusts nobody by itself."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    return context


def peer_id_of(der: bytes) -> str:
    subject = x509.load_der_x509_certificate(der).subject
    return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
