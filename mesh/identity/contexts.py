"""TLS from an identity: who shows a certificate shows one of the swarm's authority, or nobody.

TLS 1.3 alone, and no tickets: a session cannot be taken up again past the end of its certificate.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable

from mesh.identity.certificates import peer_id_of
from mesh.identity.errors import IdentityError
from mesh.identity.files import Identity
from mesh.pipes import Tls


def tls_of(identity: Identity) -> Tls:
    """What `open_transport` and `Transport.use` take. Raises IdentityError where there is no
    certificate. The server's side lets in whoever shows none, as an applicant."""
    if identity.certificate is None:
        raise IdentityError("certificate", "this node has no certificate yet")
    server = _context(ssl.PROTOCOL_TLS_SERVER)
    server.verify_mode = ssl.CERT_OPTIONAL
    server.num_tickets = 0
    client = _context(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_mode = ssl.CERT_REQUIRED
    trusted = ssl.DER_cert_to_PEM_cert(identity.authority)
    for context in (server, client):
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=trusted)
    _through_a_file(identity.pem(), server.load_cert_chain, client.load_cert_chain)
    return Tls(server, client, peer_id_of)


def applicant_context() -> ssl.SSLContext:
    """Shows nothing and takes any certificate: whoever uses it checks the chain that came."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_mode = ssl.CERT_NONE
    return context


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.options |= ssl.OP_NO_TICKET
    return context


def _through_a_file(pem: bytes, *readers: Callable[[str], object]) -> None:
    """OpenSSL takes keys from a file alone; this one is in memory, and gone afterwards."""
    fd = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        view = memoryview(pem)
        while view:
            view = view[os.write(fd, view) :]
        for read in readers:
            read(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
