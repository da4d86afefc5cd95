"""The ring of keys as a value: each change is the next generation, or refused with words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.identity.errors import IdentityError
from mesh.keyring import (
    KEYS_MAX,
    Keyring,
    decode_keyring,
    encode_keyring,
    first_ring,
    key_id_of,
)

A, B, C = (bytes([n]) * 32 for n in range(3))
KEY = st.binary(min_size=32, max_size=32)


def test_a_rotation_is_three_generations() -> None:
    ring = first_ring(A)
    assert (ring.generation, ring.primary, ring.keys) == (1, key_id_of(A), (A,))
    ring = ring.add(B)
    assert (ring.generation, ring.primary, ring.keys) == (2, key_id_of(A), (A, B))
    ring = ring.promote(key_id_of(B))
    assert (ring.generation, ring.primary) == (3, key_id_of(B))
    ring = ring.retire(key_id_of(A))
    assert (ring.generation, ring.keys, ring.by_id) == (4, (B,), {key_id_of(B): B})


def test_what_cannot_be_is_refused_with_words() -> None:
    ring = first_ring(A).add(B)
    for change, words in (
        (lambda: ring.add(A), "already: make another"),
        (lambda: ring.add(b"short"), "32 bytes, not 5"),
        (lambda: first_ring(b""), "32 bytes, not 0"),
        (lambda: ring.promote(key_id_of(A)), "primary key already"),
        (lambda: ring.promote(key_id_of(C)), "has no key"),
        (lambda: ring.retire(key_id_of(A)), "promote another first"),
        (lambda: ring.retire(key_id_of(C)), "has no key"),
    ):
        with pytest.raises(IdentityError, match=words):
            change()
    for n in range(10, 10 + KEYS_MAX - 2):
        ring = ring.add(bytes([n]) * 32)
    with pytest.raises(IdentityError, match="retire one first"):
        ring.add(C)


@given(st.lists(KEY, min_size=1, max_size=KEYS_MAX, unique_by=key_id_of), st.data())
def test_what_is_written_is_read_and_nothing_is_printed(
    keys: list[bytes], data: st.DataObject
) -> None:
    ring = first_ring(keys[0])
    for key in keys[1:]:
        ring = ring.add(key)
    raw = encode_keyring(ring)
    assert decode_keyring(raw) == ring
    assert not any(key.hex() in f"{ring!r} {ring}" or repr(key) in repr(ring) for key in keys)
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(IdentityError):
        decode_keyring(raw[:cut])


@given(st.binary(max_size=1100))
def test_any_bytes_are_no_ring(raw: bytes) -> None:
    with pytest.raises(IdentityError):
        decode_keyring(raw)


@pytest.mark.parametrize(
    "ring",
    [
        Keyring(0, key_id_of(A), (A,)),
        Keyring(1, key_id_of(A), ()),
        Keyring(1, key_id_of(B), (A,)),
        Keyring(1, key_id_of(A), (A, A)),
        Keyring(1, key_id_of(A), (A, b"short")),
        Keyring(1, key_id_of(A), (A, *(bytes([n]) * 32 for n in range(1, KEYS_MAX + 1)))),
    ],
)
def test_rings_that_cannot_be_are_not_read(ring: Keyring) -> None:
    with pytest.raises(IdentityError, match="1 to 8 different keys"):
        decode_keyring(encode_keyring(ring))
