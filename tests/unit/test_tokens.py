"""The join token: one text for each, and words for whatever is none."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.identity.errors import IdentityError
from mesh.identity.tokens import Token, encode_token, parse_token, secret_hash, secret_matches

SIXTEEN = st.binary(min_size=16, max_size=16)
GOOD = encode_token(Token(bytes(range(16)), bytes(range(100, 116))))


@given(SIXTEEN, SIXTEEN)
def test_what_is_written_is_read_again(pin: bytes, secret: bytes) -> None:
    token = Token(pin, secret)
    text = encode_token(token)
    assert parse_token(f" {text}\n") == token
    assert text.startswith("swm1-") and len(text) == 48
    assert secret_matches(secret, token.secret_hash)
    assert not secret_matches(secret[::-1] + b"x", secret_hash(secret))


@given(st.text(max_size=80))
@example(GOOD.replace("A", "=", 1))
@example(GOOD[:-1] + "é")
def test_anything_else_is_refused_in_one_way(text: str) -> None:
    try:
        token = parse_token(text)
    except IdentityError as refusal:
        assert refusal.reason == "token" and "swarmd token" in refusal.message
    else:
        assert encode_token(token) == text.strip()


@given(st.integers(0, len(GOOD) - 1), st.characters(codec="ascii"))
def test_a_token_that_was_mistyped_is_another_or_none(at: int, char: str) -> None:
    text = GOOD[:at] + char + GOOD[at + 1 :]
    try:
        token = parse_token(text)
    except IdentityError as refusal:
        assert GOOD[8:30] not in refusal.message
    else:
        assert (token == parse_token(GOOD)) == (text.strip() == GOOD)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("swm2-" + GOOD[5:], "another version"),
        ("hello", "does not begin with swm1-"),
        (GOOD[:-1], "too short: 42 characters"),
        (GOOD + "A", "too long: 44"),
        (GOOD[:-5] + "*" + GOOD[-4:], "characters that no token has"),
        (GOOD[:-1] + chr(ord(GOOD[-1]) + 1), "its last character cannot be"),
    ],
)
def test_the_words_say_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(IdentityError, match=words):
        parse_token(text)


def test_a_token_does_not_print_its_secret() -> None:
    token = parse_token(GOOD)
    for text in (repr(token), str(token), f"{token}", repr([token])):
        assert token.secret.hex() not in text and GOOD[30:] not in text
        assert "secret=…" in text


def test_reading_one_loads_no_cipher() -> None:
    code = "import mesh.identity.tokens, sys; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
