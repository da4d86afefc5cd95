"""Certificates, boxes and proofs: what is true opens, whatever was changed does not."""

from __future__ import annotations

import datetime
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from mesh.identity.authority import (
    Authority,
    check_certificate,
    check_chain,
    load_authority,
    make_authority,
    pin_of,
)
from mesh.identity.boxes import open_box, seal, seal_to, unseal
from mesh.identity.certificates import DAY_S, peer_id_of, read_certificate
from mesh.identity.errors import IdentityError
from mesh.identity.files import Identity, make_identity
from mesh.identity.ids import id_bytes, id_text, is_node_id
from mesh.identity.proofs import USED_MAX, Nonces, check_proof

NOW = 1_800_000_000.0
ID = "1a1b1c1d-2222-4333-8444-555555555555"
CA = make_authority(bytes(range(32)), NOW)
OTHER = make_authority(bytes(range(1, 33)), NOW)


def member(ca: Authority = CA, node_id: str = ID, now: float = NOW) -> Identity:
    identity = make_identity(node_id, os.urandom)
    issued = ca.issue(node_id, identity.public_key, now)
    return identity.certified(issued, ca.certificate, now)


@contextmanager
def refused(reason: str, words: str | None = None) -> Iterator[None]:
    with pytest.raises(IdentityError, match=words) as caught:
        yield
    assert caught.value.reason == reason


# The authority.


def test_a_certificate_names_its_node_for_ninety_days_and_a_day_back() -> None:
    known = member().certificate
    assert known is not None and known.node_id == ID == peer_id_of(known.der)
    assert known.begins_s == NOW - DAY_S and known.ends_s == NOW + 90 * DAY_S
    assert known.renew_after_s == NOW + 60 * DAY_S
    assert known.renewable_until_s == NOW + 120 * DAY_S
    parsed = x509.load_der_x509_certificate(known.der)
    assert parsed.subject.rfc4514_string() == f"CN={ID}"


def test_the_same_question_has_the_same_certificate_and_another_another_number() -> None:
    key = bytes(Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    assert CA.issue(ID, key, NOW) == CA.issue(ID, key, NOW + 0.5)
    numbers = {
        x509.load_der_x509_certificate(CA.issue(node, key, now)).serial_number
        for node in (ID, ID.replace("1", "2"))
        for now in (NOW, NOW + 1)
    }
    assert len(numbers) == 4


def test_an_authority_comes_back_from_its_secret_and_certificate() -> None:
    again = load_authority(CA.secret, CA.certificate)
    assert again.pin == CA.pin == pin_of(CA.certificate) != OTHER.pin
    key = X25519PrivateKey.generate().public_key().public_bytes_raw()
    assert again.issue(ID, key, NOW) == CA.issue(ID, key, NOW)
    spki = x509.load_der_x509_certificate(CA.certificate).public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    assert CA.pin == hashlib.sha256(spki).digest()[:16]
    with refused("authority", "of another key"):
        load_authority(OTHER.secret, CA.certificate)
    with refused("authority", "32 bytes"):
        load_authority(b"short", CA.certificate)
    with refused("certificate"):
        load_authority(CA.secret, b"garbage")


@pytest.mark.parametrize("node_id", ["", "a", ID.upper(), ID + "\n", ID[:-1], "*"])
def test_no_other_form_of_id_gets_a_certificate(node_id: str) -> None:
    with refused("certificate", "is no node id"):
        CA.issue(node_id, bytes(32), NOW)
    with refused("certificate", "is no node id"):
        make_identity(node_id, os.urandom)


def test_dates_count_with_their_grace() -> None:
    der = member().certificate.der  # type: ignore[union-attr]
    assert check_certificate(der, CA.certificate, NOW + 90 * DAY_S).node_id == ID
    with refused("expired", "ended at 2027-04-15 08:00 UTC; here it is 2027-04-15 08:00"):
        check_certificate(der, CA.certificate, NOW + 90 * DAY_S + 1)
    late = NOW + 120 * DAY_S
    assert check_certificate(der, CA.certificate, late, grace_s=30 * DAY_S).node_id == ID
    with refused("expired", "30 days after that"):
        check_certificate(der, CA.certificate, late + 1, grace_s=30 * DAY_S)
    # Backdated by a day, and strangers' clocks may differ by an hour.
    assert check_certificate(der, CA.certificate, NOW - DAY_S - 3600).node_id == ID
    with refused("not_yet", "one of the clocks is wrong"):
        check_certificate(der, CA.certificate, NOW - DAY_S - 3601)


def test_only_its_own_authority_vouches_for_a_node() -> None:
    der = member().certificate.der  # type: ignore[union-attr]
    with refused("authority", "not from this swarm"):
        check_certificate(der, OTHER.certificate, NOW)
    with refused("authority", "no certificate of a swarm's authority"):
        check_certificate(der, der, NOW)
    with refused("certificate"):
        check_certificate(CA.certificate, CA.certificate, NOW)


def test_a_chain_is_good_with_the_pinned_authority_in_it() -> None:
    der = member().certificate.der  # type: ignore[union-attr]
    assert check_chain([der, CA.certificate], CA.pin, NOW).node_id == ID
    assert check_chain([der, OTHER.certificate, CA.certificate], CA.pin, NOW).node_id == ID
    with refused("pin", "another swarm than the token's"):
        check_chain([der, CA.certificate], OTHER.pin, NOW)
    with refused("authority", "not from this swarm"):
        # The right authority is shown, but it did not sign.
        check_chain([der, OTHER.certificate], OTHER.pin, NOW)
    for chain in ([], [der], [CA.certificate], [der, *[CA.certificate] * 9]):
        with refused("authority"):
            check_chain(chain, CA.pin, NOW)
    with refused("pin"):
        check_chain([der, b"garbage"], CA.pin, NOW)
    with refused("expired"):
        check_chain([der, CA.certificate], CA.pin, NOW + 91 * DAY_S)


def test_a_member_cannot_vouch_for_others() -> None:
    """Its certificate is no authority's, whatever it signs with its key."""
    mine = member()
    forged = made(key=Ed25519PrivateKey.generate(), signer=mine._signing, issuer=ID)
    with refused("authority"):
        check_certificate(forged, mine.certificate.der, NOW)  # type: ignore[union-attr]
    with refused("pin"):
        check_chain([forged, mine.certificate.der, CA.certificate], CA.pin[::-1], NOW)  # type: ignore[union-attr]
    with refused("authority"):
        check_chain([forged, mine.certificate.der, CA.certificate], CA.pin, NOW)  # type: ignore[union-attr]


def test_what_signs_itself_is_no_authority_yet() -> None:
    """Only a certificate that says so is, and that its key signed."""
    assert pin_of(made(issuer=ID, authority=True))
    for der in (made(authority=True), made(issuer=ID), made(issuer=ID, authority=False)):
        with refused("authority", "no certificate of a swarm's authority"):
            pin_of(der)


# Certificates that anybody may have made.


def made(
    *,
    names: tuple[str, ...] = (ID,),
    others: tuple[x509.GeneralName, ...] = (x509.UniformResourceIdentifier(f"swarmd:node:{ID}"),),
    key: Any = None,
    signer: Any = None,
    issuer: str = "anybody",
    authority: bool | None = None,
) -> bytes:
    key = key or Ed25519PrivateKey.generate()
    signer = signer or key
    day = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n) for n in names]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(day)
        .not_valid_after(day + datetime.timedelta(days=1))
    )
    if others:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(others)), critical=False)
    if authority is not None:
        usage = dict.fromkeys(USAGES, False) | {"key_cert_sign": authority}
        builder = builder.add_extension(
            x509.BasicConstraints(authority, None), critical=True
        ).add_extension(x509.KeyUsage(**usage), critical=True)
    return builder.sign(signer, None).public_bytes(serialization.Encoding.DER)


USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
    "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip
URI = x509.UniformResourceIdentifier


@pytest.mark.parametrize(
    "parts",
    [
        {"names": ()},
        {"names": (ID, ID)},
        {"names": (ID, ID.replace("1", "2"))},
        {"names": (ID.upper(),)},
        {"names": ("a",), "others": (URI("swarmd:node:a"),)},
        {"others": ()},
        {"others": (URI(f"swarmd:node:{ID}"), URI(f"swarmd:node:{ID}"))},
        {"others": (URI(f"swarmd:node:{ID.replace('1', '2')}"),)},
        {"others": (x509.DNSName(f"swarmd:node:{ID}"),)},
        {"others": (URI(f"SWARMD:node:{ID}"),)},
        {"others": (URI(f"swarmd:node:{ID}"), x509.DNSName("localhost"))},
    ],
    ids=str,
)
def test_a_certificate_names_exactly_one_node_in_one_form(parts: dict[str, Any]) -> None:
    assert peer_id_of(made()) == ID
    with refused("certificate", "this is no certificate of a node"):
        peer_id_of(made(**parts))


def test_another_sort_of_key_is_no_nodes() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(IdentityError, match="not an Ed25519 key"):
        from cryptography.hazmat.primitives import hashes

        day = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ID)])
        read_certificate(
            x509.CertificateBuilder()
            .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
            .not_valid_before(day).not_valid_after(day)
            .add_extension(x509.SubjectAlternativeName([URI(f"swarmd:node:{ID}")]), critical=False)
            .sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
        )  # fmt: skip


_MEMBER = member()
_GOOD = _MEMBER.certificate.der  # type: ignore[union-attr]


def test_no_certificate_has_a_second_form() -> None:
    """Bits of its signature's end that are zero anyway could be said not to count."""
    for _ in range(20):
        identity = member()
        assert identity.certificate is not None
        der = identity.certificate.der
        for unused in range(1, 8):
            with refused("certificate"):
                check_certificate(der[:-65] + bytes([unused]) + der[-64:], CA.certificate, NOW)


@given(st.data())
def test_damaged_certificates_are_refused_or_say_nothing_that_verifies(data: st.DataObject) -> None:
    raw = bytearray(_GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    try:
        read_certificate(bytes(raw))
    except IdentityError:
        pass
    if bytes(raw) != _GOOD:
        with pytest.raises(IdentityError):
            check_certificate(bytes(raw), CA.certificate, NOW)
        with pytest.raises(IdentityError):
            check_chain([_GOOD, bytes(raw)], CA.pin, NOW)


@given(st.binary(max_size=5000))
def test_any_bytes_are_refused_as_certificate_and_authority(raw: bytes) -> None:
    with pytest.raises(IdentityError):
        read_certificate(raw)
    with pytest.raises(IdentityError):
        pin_of(raw)


# Ids.


@given(st.binary(min_size=16, max_size=16))
def test_ids_are_bytes_and_text(raw: bytes) -> None:
    text = id_text(raw)
    assert is_node_id(text) and id_bytes(text) == raw and text == str(uuid.UUID(bytes=raw))


@given(st.text(max_size=40))
def test_other_text_is_no_id(text: str) -> None:
    assert not is_node_id(text)
    with pytest.raises(ValueError, match="is no node id"):
        id_bytes(text)
    with pytest.raises(ValueError, match="16 bytes"):
        id_text(b"x")


# Boxes.


@given(st.binary(max_size=300), st.text(max_size=20), st.data())
def test_what_is_sealed_opens_with_its_key_and_name_alone(
    plain: bytes, name: str, data: st.DataObject
) -> None:
    key = bytes(32)
    sealed = seal(key, name, plain, bytes)
    assert unseal(key, name, sealed) == plain != sealed
    at, bit = data.draw(st.integers(0, len(sealed) - 1)), 1 << data.draw(st.integers(0, 7))
    changed = sealed[:at] + bytes([sealed[at] ^ bit]) + sealed[at + 1 :]
    for wrong in (
        lambda: unseal(key, name, changed),
        lambda: unseal(key, name + "x", sealed),
        lambda: unseal(b"\1" * 32, name, sealed),
        lambda: unseal(key, name, sealed[:at]),
    ):
        with refused("sealed"):
            wrong()


@given(st.binary(max_size=300), st.data())
def test_a_box_opens_for_its_reader_alone(plain: bytes, data: st.DataObject) -> None:
    reader, other = (make_identity(ID, os.urandom) for _ in range(2))
    box = seal_to(reader.box_key, "sealing key", plain, os.urandom)
    assert reader.open_box("sealing key", box) == plain
    at, bit = data.draw(st.integers(0, len(box) - 1)), 1 << data.draw(st.integers(0, 7))
    changed = box[:at] + bytes([box[at] ^ bit]) + box[at + 1 :]
    for wrong in (
        lambda: reader.open_box("sealing key", changed),
        lambda: reader.open_box("another", box),
        lambda: other.open_box("sealing key", box),
        lambda: reader.open_box("sealing key", box[:at]),
    ):
        with refused("sealed"):
            wrong()


def test_a_key_without_order_is_refused() -> None:
    with refused("sealed", "no usable X25519 key"):
        seal_to(bytes(32), "x", b"", os.urandom)
    with refused("sealed", "no usable X25519 key"):
        open_box(X25519PrivateKey.generate(), "x", b"\x01" + bytes(32 + 16))
    with refused("sealed", "of form 9"):
        unseal(bytes(32), "x", b"\x09" + bytes(60))
    with pytest.raises(ValueError, match="at most"):
        seal(bytes(32), "x", bytes(2**20 + 1), os.urandom)


# Proofs.


def nonces() -> Nonces:
    return Nonces(os.urandom(32), os.urandom)


def test_an_ended_certificate_proves_its_node_for_thirty_days() -> None:
    mine, server = member(), nonces()
    for age_days, good in ((0, True), (90.5, True), (119.9, True), (120.1, False)):
        nonce = server.fresh(5.0)
        proof = mine.prove(nonce, b"ask")
        at = {"now": NOW + age_days * DAY_S, "now_s": 6.0}
        if good:
            known = check_proof(proof, CA.certificate, b"ask", server, **at)
            assert (known.node_id, known.public_key) == (ID, mine.public_key)
        else:
            with refused("expired"):
                check_proof(proof, CA.certificate, b"ask", server, **at)


def test_a_proof_is_for_one_ask_one_nonce_one_server_and_one_swarm() -> None:
    mine, server, another = member(), nonces(), nonces()
    at: dict[str, float] = {"now": NOW, "now_s": 10.0}
    nonce = server.fresh(10.0)
    proof = mine.prove(nonce, b"ask")
    with refused("proof", "not for this ask"):
        check_proof(proof, CA.certificate, b"another", server, **at)
    with refused("nonce", "not given out by this node"):
        check_proof(proof, CA.certificate, b"ask", another, **at)
    with refused("authority"):
        check_proof(proof, OTHER.certificate, b"ask", server, **at)
    with refused("nonce", "older than 60 s"):
        check_proof(proof, CA.certificate, b"ask", server, now=NOW, now_s=70.5)
    # What failed has not spent it.
    assert check_proof(proof, CA.certificate, b"ask", server, **at).node_id == ID
    with refused("nonce", "used before"):
        check_proof(proof, CA.certificate, b"ask", server, **at)


def test_somebody_elses_certificate_is_no_proof() -> None:
    mine, thief, server = member(), make_identity(ID, os.urandom), nonces()
    stolen = Identity(ID, thief._signing, thief._opening, mine.certificate, mine.authority)
    with refused("proof", "not signed with the key of"):
        check_proof(
            stolen.prove(server.fresh(1.0), b"ask"), CA.certificate, b"ask", server,
            now=NOW, now_s=1.0,
        )  # fmt: skip
    with refused("proof", "no certificate to prove"):
        thief.prove(server.fresh(1.0), b"ask")


@given(st.data())
def test_damaged_proofs_prove_nothing(data: st.DataObject) -> None:
    mine, server = _MEMBER, Nonces(bytes(32), bytes)
    raw = bytearray(mine.prove(server.fresh(1.0), b"ask"))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(IdentityError):
        check_proof(bytes(raw), CA.certificate, b"ask", server, now=NOW, now_s=1.0)
    with pytest.raises(IdentityError):
        junk = data.draw(st.binary(max_size=5000))
        check_proof(junk, CA.certificate, b"ask", server, now=NOW, now_s=1.0)


def test_nonces_cost_nothing_until_they_prove_something_and_then_have_a_bound() -> None:
    server = nonces()
    many = {server.fresh(1.0) for _ in range(5000)}
    assert len(many) == 5000 and not server._used
    first, *rest = many
    server.spend(first, 1.0)
    for nonce in rest[: USED_MAX - 1]:
        server.spend(nonce, 2.0)
    with refused("busy"):
        server.spend(rest[-1], 2.0)
    server.spend(server.fresh(70.0), 70.0)
    assert len(server._used) == 1
