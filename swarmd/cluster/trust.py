"""Trust: who this node is, whom it vouches for, and what of the swarm's secrets it can open.

All secrets of the swarm are sealed with one key. That key lies in the state in a box for each
voter, which that voter alone can open; no other node ever has it, and none has it in the clear on
disk.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Protocol

import msgspec
import trio

from mesh.identity.authority import Authority, load_authority, make_authority, pin_of
from mesh.identity.boxes import Entropy, seal, seal_to, unseal
from mesh.identity.errors import IdentityError
from mesh.identity.files import Identity
from mesh.identity.proofs import Nonces, check_proof
from mesh.identity.tokens import SECRET_BYTES, Token, encode_token, secret_hash
from mesh.keyring import KEY_BYTES, Keyring, decode_keyring, encode_keyring, first_ring
from mesh.wires import Refused, WireError, Wires, applicant_of
from swarmd.cluster.handle import Cluster, MadeToken, Role, local_reads
from swarmd.cluster.patience import keep_up
from swarmd.domain.actors import SYSTEM, Actor
from swarmd.domain.errors import Busy, Conflict, Unauthorized, Unavailable
from swarmd.domain.events import Event, TrustChanged
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.state.commands import DropTokens, FoundTrust, PutSecret, PutToken
from swarmd.state.queries import FindSecret, GetTrust
from swarmd.state.queries import Trust as Known

log = logging.getLogger(__name__)

NONCE = "trust.nonce"
RENEW = "trust.renew"
RING = "trust.ring"
SEALING_KEY = "sealing-key"
AUTHORITY_KEY = "authority"
KEYRING = "keyring"
REMOVED = "this node was removed from the swarm; its host can only join as a new one"
AGAIN_S = 1.0
LOOK_EVERY_S = 3600.0
CALL_S_MAX = 5.0


class Asking(Protocol):
    """What an ask to join says of its node, as far as trust goes."""

    @property
    def node(self) -> Node: ...

    @property
    def replaces(self) -> NodeId | None: ...


class Application(msgspec.Struct, frozen=True, array_like=True):
    """An ask to join with its grounds: the secret of a token, or a proof; neither where the wires
    know who asks."""

    ask: bytes
    secret: bytes = b""
    proof: bytes = b""


class Trust:
    """Owned by the node's loop. `install` has the disk and the wires take a new identity. Where
    this node founds the swarm, `founding` is what it is told first, and `founded` is called then.
    """

    def __init__(
        self,
        identity: Identity,
        install: Callable[[Identity], Awaitable[None]],
        shut_out: Callable[[str, str], None],
        founding: FoundTrust | None = None,
        founded: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
        *,
        entropy: Entropy,
        wall: Callable[[], float],
    ) -> None:
        self.identity = identity
        self.ring: Keyring | None = None
        self.known = Known(b"", {}, {}, {}, frozenset())
        self.changed = trio.Event()
        self._install = install
        self._shut_out = shut_out
        self.founding = founding
        self._founded = founded
        self._entropy = entropy
        self._wall = wall
        self._nonces = Nonces(entropy(32), entropy)
        self._key: bytes | None = None
        self._box = b""
        self._authority: Authority | None = None
        self._cluster: Cluster

    # What it knows.

    def learn(self, known: Known) -> None:
        """What the state says now; what can be opened of it is."""
        before, self.known = self.known, known
        for node_id in known.gone - before.gone:
            self._shut_out(node_id, REMOVED)
        box = known.boxes.get(NodeId(self.identity.node_id), b"")
        if box != self._box:
            self._box, self._key, self._authority = box, None, None
            if box:
                try:
                    self._key = self.identity.open_box(SEALING_KEY, box)
                except IdentityError as error:
                    log.error("the swarm's key does not open", extra={"reason": error.message})
        if self._key is None:
            self._authority = None
        else:
            if self._authority is None and AUTHORITY_KEY in known.secrets:
                secret = self._open(AUTHORITY_KEY)
                self._authority = load_authority(secret, known.authority)
            if KEYRING in known.secrets:
                self.take_ring(self._open(KEYRING))
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def take_ring(self, encoded: bytes) -> None:
        ring = decode_keyring(encoded)
        if self.ring is None or ring.generation > self.ring.generation:
            self.ring = ring

    @property
    def vouches(self) -> bool:
        """Whether this node can say who belongs to the swarm."""
        return self._authority is not None

    def admit(self, node_id: str) -> str | None:
        """Why a node with a certificate is not let in all the same."""
        return REMOVED if NodeId(node_id) in self.known.gone else None

    def _open(self, name: str) -> bytes:
        assert self._key is not None
        return unseal(self._key, name, self.known.secrets[name].sealed)

    def sealed(self, name: str, plain: bytes) -> bytes:
        if self._key is None:
            raise _cannot()
        return seal(self._key, name, plain, self._entropy)

    async def open_secret(self, name: str) -> tuple[bytes, int] | None:
        if (key := self._key) is None:
            raise _cannot()
        held = await self._cluster.read(FindSecret(name))
        if held is None:
            return None
        try:
            return unseal(key, name, held.sealed), held.revision
        except IdentityError as error:
            raise Unavailable(error.message) from None

    async def put_secret(self, name: str, plain: bytes, replaces: int, actor: Actor) -> int:
        return await self._cluster.propose(
            PutSecret(name, self.sealed(name, plain), replaces), actor
        )

    def boxes_for(self, nodes: Iterable[Node]) -> dict[NodeId, bytes]:
        """The sealing key, for each of them alone."""
        if self._key is None:
            raise _cannot()
        return {
            node.id: seal_to(node.box_key, SEALING_KEY, self._key, self._entropy)
            for node in nodes
            if node.box_key
        }

    # Who comes in.

    async def make_token(self, ttl_s: float, *, alone: bool, actor: Actor) -> MadeToken:
        known = await self._cluster.read(GetTrust())
        if not known.authority:
            raise Unavailable("the swarm is only being founded; try again in a moment")
        token = Token(pin_of(known.authority), self._entropy(SECRET_BYTES))
        command = PutToken(token.secret_hash, int(ttl_s * 1000), alone)
        return MadeToken(encode_token(token), await self._cluster.propose(command, actor))

    async def drop_tokens(self, actor: Actor) -> int:
        return await self._cluster.propose(DropTokens(), actor)

    def vouch(self, node_id: NodeId, public_key: bytes) -> bytes:
        """A certificate. Unavailable: another node has to be asked."""
        if self._authority is None:
            raise _cannot()
        return self._authority.issue(node_id, public_key, self._wall())

    def _nonce(self) -> bytes:
        return self._nonces.fresh(trio.current_time())

    def check(self, peer: str, application: Application, ask: Asking, now_ms: int) -> None:
        """Whether who asks may come in, by what the state says now. Unauthorized, Conflict."""
        if applicant_of(peer) is None:
            if ask.node.id != peer:
                raise Unauthorized("a node joins for itself alone")
        elif application.proof:
            self._check_proof(application, ask)
        else:
            self._check_secret(application, ask, now_ms)

    def _check_proof(self, application: Application, ask: Asking) -> None:
        try:
            shown = check_proof(
                application.proof, self.known.authority, application.ask, self._nonces,
                now=self._wall(), now_s=trio.current_time(),
            )  # fmt: skip
        except IdentityError as error:
            raise Unauthorized(error.message, reason=error.reason) from None
        if (words := self.admit(shown.node_id)) is not None:
            raise Conflict(words, node_id=shown.node_id)
        if shown.node_id == ask.node.id:
            if shown.public_key != ask.node.public_key:
                raise Unauthorized("a node keeps its key for as long as it has its id")
        elif shown.node_id != ask.replaces:
            raise Unauthorized("the proof is another node's")

    def _check_secret(self, application: Application, ask: Asking, now_ms: int) -> None:
        ends_at = self.known.tokens.get(secret_hash(application.secret), 0)
        if ends_at <= now_ms:
            raise Unauthorized(
                "the token is not good, or not any more: `swarmd token` on a member prints one"
            )
        if ask.replaces is not None:
            raise Unauthorized("to take the place of another node takes a proof of having been it")

    # What it does.

    async def adopt(self, certificate: bytes, authority: bytes) -> None:
        """Be who this certificate says, on the disk first. Raises IdentityError."""
        identity = self.identity.certified(certificate, authority, self._wall())
        self.identity = identity
        await self._install(identity)

    async def renew_by_itself(self) -> bool:
        """A voter needs nobody for its own certificate. False: it is no voter, or it is early."""
        if self._authority is None or not self._due():
            return False
        mine = self.vouch(NodeId(self.identity.node_id), self.identity.public_key)
        await self.adopt(mine, self._authority.certificate)
        log.info("this node's certificate was renewed")
        return True

    def _due(self) -> bool:
        certificate = self.identity.certificate
        return certificate is not None and self._wall() >= certificate.renew_after_s

    @property
    def certificate_ends_ms(self) -> int | None:
        certificate = self.identity.certificate
        return None if certificate is None else int(certificate.ends_s * 1000)

    @property
    def expired(self) -> bool:
        certificate = self.identity.certificate
        return certificate is not None and self._wall() >= certificate.ends_s

    def serve(self, cluster: Cluster, wires: Wires) -> None:
        self._cluster = cluster

        async def renew(peer: str, body: bytes) -> bytes:
            node = cluster.members.get(NodeId(peer))
            if node is None or not node.public_key:
                raise Refused("not_found", "this node is not known here")
            if not self.vouches:
                raise Refused(Unavailable.code, _cannot().message)
            return self.vouch(node.id, node.public_key)

        async def ring(peer: str, body: bytes) -> bytes:
            await self.look(cluster)
            if self.ring is None:
                raise Refused(Unavailable.code, "this node does not have the keys itself yet")
            return encode_keyring(self.ring)

        wires.handle_call(NONCE, lambda peer, body: self._nonce(), applicants=True)
        wires.handle_call(RENEW, renew)
        wires.handle_call(RING, ring)

    async def run(self, cluster: Cluster, wires: Wires) -> None:
        """Until it is cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow, cluster, wires)
            nursery.start_soon(self._keep_certified, cluster, wires)
            if self.founding is not None:
                nursery.start_soon(self._found, cluster, self.founding)

    async def _found(self, cluster: Cluster, founding: FoundTrust) -> None:
        """Give the new swarm its first words about trust, until it has them."""
        while True:
            try:
                await cluster.propose(founding, SYSTEM)
            except (Busy, Unavailable) as refusal:
                log.debug("trust is not founded yet", extra={"reason": refusal.message})
                await trio.sleep(AGAIN_S)
                continue
            await self._founded()
            return

    async def _follow(self, cluster: Cluster, wires: Wires) -> None:
        async def look() -> None:
            await self.look(cluster)
            if self._key is None and self.known.authority:
                await self.fetch_ring(cluster, wires)

        await keep_up(cluster, _concerns, look, AGAIN_S)

    async def look(self, cluster: Cluster) -> None:
        """Learn what this node's own replica says."""
        with local_reads():
            self.learn(await cluster.read(GetTrust()))

    async def fetch_ring(self, cluster: Cluster, wires: Wires) -> None:
        """From whoever can open it. Unavailable: nobody is there who can."""
        for peer in _voters_first(cluster):
            with suppress(WireError):
                self.take_ring(await wires.call(peer, RING, b"", CALL_S_MAX))
                changed, self.changed = self.changed, trio.Event()
                changed.set()
                return
        raise Unavailable("nobody gives out the keys of the gossip at present")

    async def _keep_certified(self, cluster: Cluster, wires: Wires) -> None:
        while True:
            if self._due() and not await self.renew_by_itself():
                await self._renew_by_others(cluster, wires)
            with trio.move_on_after(AGAIN_S if self._due() else LOOK_EVERY_S):
                await self.changed.wait()

    async def _renew_by_others(self, cluster: Cluster, wires: Wires) -> None:
        for peer in _voters_first(cluster):
            try:
                certificate = await wires.call(peer, RENEW, b"", CALL_S_MAX)
                await self.adopt(certificate, self.identity.authority)
            except WireError as error:
                log.debug("not renewed", extra={"peer": peer, "reason": error.message})
                continue
            log.info("this node's certificate was renewed", extra={"by": peer})
            return

    def fresh_key(self) -> bytes:
        """For the gossip."""
        return self._entropy(KEY_BYTES)

    async def put_ring(self, cluster: Cluster, ring: Keyring, actor: Actor) -> None:
        """In the place of the one that this node knows. Conflict: another came between."""
        held = self.known.secrets.get(KEYRING)
        replaces = 0 if held is None else held.revision
        sealed = self.sealed(KEYRING, encode_keyring(ring))
        await cluster.propose(PutSecret(KEYRING, sealed, replaces), actor)


def begin_trust(identity: Identity, entropy: Entropy, now: float) -> tuple[Identity, FoundTrust]:
    """An authority and the first keys of a new swarm: this node with a certificate, and what the
    state is to know."""
    authority = make_authority(entropy(32), now)
    key = entropy(32)
    ring = first_ring(entropy(32))
    plain = {AUTHORITY_KEY: authority.secret, KEYRING: encode_keyring(ring)}
    command = FoundTrust(
        authority.certificate,
        {name: seal(key, name, secret, entropy) for name, secret in plain.items()},
        NodeId(identity.node_id),
        seal_to(identity.box_key, SEALING_KEY, key, entropy),
    )
    certificate = authority.issue(identity.node_id, identity.public_key, now)
    return identity.certified(certificate, authority.certificate, now), command


def _concerns(event: Event) -> bool:
    return isinstance(event.body, TrustChanged) or getattr(event.body, "what", "") == "removed"


def _voters_first(cluster: Cluster) -> list[NodeId]:
    others = [node_id for node_id in cluster.members if node_id != cluster.node.id]
    leader = cluster.leadership().leader

    def rank(node_id: NodeId) -> tuple[bool, bool, bool, str]:
        seen = cluster.peer(node_id)
        return node_id != leader, seen.role is not Role.VOTER, not seen.alive, node_id

    return sorted(others, key=rank)[:9]


def _cannot() -> Unavailable:
    return Unavailable("this node cannot open the swarm's keys: it is no voter, or is not yet one")
