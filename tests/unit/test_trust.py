"""Who comes in: by a token as somebody new, by a proof as whom it was, and as nobody else."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest
import trio

from mesh.identity.authority import make_authority
from mesh.identity.files import Identity, make_identity
from mesh.identity.tokens import secret_hash
from mesh.wires import APPLICANT_MARK
from swarmd.cluster.members import JoinAsk
from swarmd.cluster.trust import Application, Trust
from swarmd.domain.errors import Conflict, SwarmError, Unauthorized
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.state.queries import Trust as Known

NOW = 1_800_000_000.0
NOW_MS = 1_000_000
CA = make_authority(bytes(range(32)), NOW)
SOMEBODY = f"{APPLICANT_MARK}192.0.2.7:4711 whoever"
SECRET = b"s" * 16
IDS = {name: f"{n}a1b1c1d-2222-4333-8444-555555555555" for n, name in enumerate("abcde", 1)}


def identity_of(name: str) -> Identity:
    identity = make_identity(IDS[name], os.urandom)
    issued = CA.issue(identity.node_id, identity.public_key, NOW)
    return identity.certified(issued, CA.certificate, NOW)


def ask_of(identity: Identity, replaces: str | None = None) -> JoinAsk:
    node = Node(NodeId(identity.node_id), "host", public_key=identity.public_key)
    return JoinAsk(node, None if replaces is None else NodeId(IDS[replaces]))


@dataclass
class Door:
    trust: Trust
    shut_out: list[str]

    def by_token(self, ask: JoinAsk, at_ms: int = NOW_MS, secret: bytes = SECRET) -> None:
        self.trust.check(SOMEBODY, Application(b"ask", secret), ask, at_ms)

    def by_proof(self, earlier: Identity, ask: JoinAsk) -> None:
        proof = earlier.prove(self.trust._nonce(), b"ask")
        self.trust.check(SOMEBODY, Application(b"ask", b"", proof), ask, NOW_MS)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    shut_out: list[str] = []

    async def install(identity: Identity) -> None:
        await trio.lowlevel.checkpoint()

    trust = Trust(
        identity_of("a"), install, lambda node_id, why: shut_out.append(node_id),
        entropy=os.urandom, wall=lambda: NOW,
    )  # fmt: skip
    tokens = {secret_hash(SECRET): NOW_MS + 1000}
    trust.learn(Known(CA.certificate, {}, {}, tokens, frozenset()))
    yield Door(trust, shut_out)


def refused(kind: type[SwarmError], words: str) -> AbstractContextManager[object]:
    return pytest.raises(kind, match=words)


async def test_a_token_is_good_until_it_ends_and_for_somebody_new_alone(door: Door) -> None:
    new = identity_of("b")
    door.by_token(ask_of(new), NOW_MS + 999)
    with refused(Unauthorized, "not good"):
        door.by_token(ask_of(new), NOW_MS + 1000)
    with refused(Unauthorized, "not good"):
        door.by_token(ask_of(new), secret=b"x" * 16)
    with refused(Unauthorized, "takes a proof"):
        door.by_token(ask_of(new, replaces="c"))


async def test_a_proof_is_good_for_whom_it_was_and_for_the_key_that_it_had(door: Door) -> None:
    earlier = identity_of("b")
    door.by_proof(earlier, ask_of(earlier))
    door.by_proof(earlier, ask_of(identity_of("c"), replaces="b"))
    with refused(Unauthorized, "another node's"):
        door.by_proof(earlier, ask_of(identity_of("c"), replaces="d"))
    with refused(Unauthorized, "another node's"):
        door.by_proof(earlier, ask_of(identity_of("c")))
    with refused(Unauthorized, "keeps its key"):
        door.by_proof(earlier, ask_of(make_identity(IDS["b"], os.urandom)))


async def test_whoever_was_removed_is_shut_out_once_and_proves_nothing(door: Door) -> None:
    earlier, gone = identity_of("b"), frozenset({NodeId(IDS["b"])})
    for _ in range(2):
        door.trust.learn(Known(CA.certificate, {}, {}, {}, gone))
    assert door.shut_out == [IDS["b"]]
    with refused(Conflict, "was removed"):
        door.by_proof(earlier, ask_of(identity_of("c"), replaces="b"))


async def test_a_member_asks_for_itself_alone(door: Door) -> None:
    member = identity_of("b")
    door.trust.check(IDS["b"], Application(b"ask"), ask_of(member), NOW_MS)
    with refused(Unauthorized, "for itself alone"):
        door.trust.check(IDS["b"], Application(b"ask"), ask_of(identity_of("c")), NOW_MS)
