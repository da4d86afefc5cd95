"""Signing: the key that says of a package that it is this swarm's.

It lies sealed in the replicated state and is opened on voters alone, for the moment of a signature.
Other nodes send them a digest: no member, and nobody who takes one over, ever has the key to keep.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import msgspec
import trio

from swarmd.cluster.asks import ReadSigningKey, RotateSigningKey, SignDigest
from swarmd.cluster.handle import LEADER, Ask, Cluster, Leader, TrustPort
from swarmd.domain.actors import SYSTEM, Actor
from swarmd.domain.binpkgs import BinPkg
from swarmd.domain.errors import Conflict, Invalid, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.drivers import gpkg
from swarmd.drivers.openpgp import PublicKey, Signer, SigningKey

log = logging.getLogger(__name__)

SECRET = "binhost-key"
DIGEST_BYTES = 64
ASK_S_MAX = 10.0


class KeyView(msgspec.Struct, frozen=True):
    """The public half, to be given away."""

    fingerprint: str
    created_s: int
    """As the key says, which is a day before it was made."""
    made_s: int
    armored: str


async def public_key(cluster: Cluster) -> KeyView:
    """With what a host checks the swarm's packages. Unavailable: no voter can be asked."""
    return _view(await _public(cluster))


async def rotate(cluster: Cluster, actor: Actor) -> KeyView:
    """Make a new key. What was signed stays as it is, signed by the old one: it is signed anew when
    it is staged again. Conflict: another was made meanwhile."""
    return _view(PublicKey.load(await _ask(cluster, RotateSigningKey(actor))))


async def sign(cluster: Cluster, pkg: BinPkg, path: Path, out: Path) -> gpkg.Signed:
    """The package, signed by the swarm's key: at `out`, or where it is if that has been done.
    Invalid: it is of the old format, which holds no signature. Unavailable: no voter can be asked.
    """
    # A file that comes again is then the same to the byte.
    at_s = min(pkg.build_time_s, cluster.now_ms() // 1000)
    return await gpkg.sign(path, out, _Voters(cluster, await _public(cluster)), at_s)


def answer_signing(cluster: Cluster) -> None:
    """Have this node do for others what only voters can."""
    cluster.answers(ReadSigningKey, partial(_read, cluster))
    cluster.answers(SignDigest, partial(_sign, cluster))
    cluster.answers(RotateSigningKey, partial(_rotate, cluster))


# The node that wants it


class _Voters(Signer):
    """The key, wherever it can be opened."""

    def __init__(self, cluster: Cluster, public: PublicKey) -> None:
        self.public = public
        self._cluster = cluster
        self._fingerprint = public.fingerprint

    def numbers(self, digest: bytes) -> bytes:
        asked = SignDigest(self._fingerprint, digest)
        return trio.from_thread.run(_ask, self._cluster, asked)


async def _public(cluster: Cluster) -> PublicKey:
    return PublicKey.load(await _ask(cluster, ReadSigningKey()))


async def _ask(cluster: Cluster, asked: Ask[bytes]) -> bytes:
    """This node itself where it can, else the one that leads, which always votes."""
    able = _port(cluster).vouches
    target: NodeId | Leader = cluster.node.id if able else LEADER
    with trio.move_on_after(ASK_S_MAX):
        return await cluster.ask(target, asked)
    raise Unavailable("no voter answered in time, and only they can sign; try again shortly")


def _view(public: PublicKey) -> KeyView:
    armored = public.armored().decode()
    return KeyView(public.fingerprint, public.created_s, public.made_s, armored)


# The node that has it


async def _read(cluster: Cluster, ask: ReadSigningKey) -> bytes:
    key, _ = await _open(cluster)
    return key.public.certificate


async def _sign(cluster: Cluster, ask: SignDigest) -> bytes:
    if len(ask.digest) != DIGEST_BYTES:
        raise Invalid(f"what is signed is a SHA-512, of {DIGEST_BYTES} bytes")
    key, _ = await _open(cluster)
    if key.public.fingerprint != ask.fingerprint:
        raise Unavailable("the swarm has just got another key for its packages; try again")
    return key.numbers(ask.digest)


async def _rotate(cluster: Cluster, ask: RotateSigningKey) -> bytes:
    _, revision = await _open(cluster)
    made = _make(cluster)
    await _port(cluster).put_secret(SECRET, made.export(), revision, ask.actor)
    log.info("packages have a new key", extra={"fingerprint": made.public.fingerprint})
    return made.public.certificate


async def _open(cluster: Cluster) -> tuple[SigningKey, int]:
    """The key and its revision. Whoever needs it first makes it."""
    trust = _port(cluster)
    found = await trust.open_secret(SECRET)
    if found is None:
        made = _make(cluster)
        try:
            revision = await trust.put_secret(SECRET, made.export(), 0, SYSTEM)
        except Conflict:
            found = await trust.open_secret(SECRET)
            if found is None:
                raise
        else:
            log.info("packages have a key", extra={"fingerprint": made.public.fingerprint})
            return made, revision
    return SigningKey.load(found[0]), found[1]


def _make(cluster: Cluster) -> SigningKey:
    return SigningKey.make(f"Packages of the swarm {cluster.cluster_id}", cluster.now_ms() // 1000)


def _port(cluster: Cluster) -> TrustPort:
    if cluster.trust is None:
        raise Unavailable("nodes of this swarm prove nothing to each other, and so sign nothing")
    return cluster.trust
