"""Drones' own tokens: made, shown and told apart, and kept by their hashes alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swarmd.domain.drone_tokens import (
    HASH_BYTES,
    PREFIX,
    SECRET_BYTES,
    TOKEN_CHARS_MAX,
    TOKENS_MAX,
    DroneToken,
    encode_token,
    hash_token,
    owner_of,
)
from swarmd.domain.errors import Conflict, Invalid, NotFound
from swarmd.node import RunningNode
from swarmd.state import commands as c
from swarmd.state import queries as q
from tests.unit.test_state_builds import Builds

SECRET = bytes(range(SECRET_BYTES))


@pytest.mark.parametrize("name", ["one", "drone-01.site", "A", "x" * 63])
def test_a_token_is_its_owners(name: str) -> None:
    token = encode_token(name, SECRET)
    assert len(token) <= TOKEN_CHARS_MAX and len(hash_token(token)) == HASH_BYTES
    known = {name: hash_token(token), "other": hash_token(encode_token("other", SECRET[::-1]))}
    assert owner_of(token, known) == name
    assert owner_of(token, {"other": known["other"]}) is None
    assert owner_of(token.replace(name, "other", 1), known) is None  # another's name
    assert owner_of(f"{token}A", known) is None


@pytest.mark.parametrize(
    "shown", ["", "one", PREFIX, f"{PREFIX}one", f"{PREFIX}one.", f"{PREFIX}.x", "ö" * 40,
              f"{PREFIX}one.{'A' * TOKEN_CHARS_MAX}", "id-one.AAAA"],
)  # fmt: skip
def test_what_is_no_token_is_nobodys(shown: str) -> None:
    assert owner_of(shown, {"one": hash_token(encode_token("one", SECRET))}) is None


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "ö", "x" * 64, "a\n"])
def test_what_is_no_drones_name_has_none(name: str) -> None:
    with pytest.raises(Invalid, match="must be a drone's"):
        encode_token(name, SECRET)


@pytest.fixture
def state() -> Iterator[Builds]:
    made = Builds()
    yield made
    made.conn.close()


def test_a_drone_has_one_until_it_is_revoked(state: Builds) -> None:
    state.apply(c.PutDroneToken("two", b"a" * HASH_BYTES))
    state.apply(c.PutDroneToken("one", b"b" * HASH_BYTES))
    state.apply(c.PutDroneToken("two", b"c" * HASH_BYTES))
    assert state.ask(q.ListDroneTokens()) == [
        DroneToken("one", b"b" * HASH_BYTES, "t", state.now),
        DroneToken("two", b"c" * HASH_BYTES, "t", state.now),
    ]
    state.apply(c.DropDroneToken("two"))
    with pytest.raises(NotFound, match="has no token"):
        state.apply(c.DropDroneToken("two"))
    for name, kept in (("no name", b"a" * HASH_BYTES), ("one", b"short")):
        with pytest.raises(Invalid):
            state.apply(c.PutDroneToken(name, kept))


def test_there_is_an_end_to_tokens(state: Builds) -> None:
    for number in range(TOKENS_MAX):
        state.apply(c.PutDroneToken(f"d{number}", bytes(HASH_BYTES)))
    with pytest.raises(Conflict, match="revoke some"):
        state.apply(c.PutDroneToken("one-more", bytes(HASH_BYTES)))
    state.apply(c.PutDroneToken("d0", bytes(HASH_BYTES)))  # in place of its own


def test_the_port_that_is_told_is_the_one_that_was_found() -> None:
    running = RunningNode()
    assert running.port("buildswarm", 8100) == 8100  # it is not served
    running.urls = {
        "buildswarm": ("http://127.0.0.1:40123", "http://[::1]:40123"), "console": ("unix:/x",),
    }  # fmt: skip
    assert running.port("buildswarm", 0) == 40123 and running.port("console", 0) == 0
