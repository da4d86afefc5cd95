"""Who belongs to a swarm: founders, joiners with tokens, certificates that end, nodes put out.

Real replicas on real TLS; only the clock that certificates are made by is the test's."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from mesh.identity.files import Identity, load_identity, make_identity, save_identity
from mesh.identity.tokens import encode_token, parse_token
from mesh.wires import APPLICANT_MARK, Refused
from swarmd.belonging import open_cluster
from swarmd.cluster import identity as identities
from swarmd.cluster.members import JoinAsk
from swarmd.cluster.replica import Replica
from swarmd.cluster.trust import Application, Trust
from swarmd.config_sources import load
from swarmd.control.leadership import lead_when_elected
from swarmd.control.members import VoterSettings
from swarmd.control.upkeep import UpkeepSettings
from swarmd.domain.actors import SYSTEM
from swarmd.domain.errors import Invalid, SwarmError, Unauthorized, Unavailable, leaves
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.state.commands import PutSetting

DAY_S = 86_400.0
WAIT_S = 20.0
Opens = Callable[..., AbstractAsyncContextManager[Replica]]


@pytest.fixture
def node(tmp_path: Path) -> Opens:
    """Opens a node of the test: `node("a")` founds, `node("b", member, token)` joins."""

    @asynccontextmanager
    async def opened(
        name: str,
        member: Replica | None = None,
        token: str | None = None,
        *,
        wall: Callable[[], float] = time.time,
        voters: VoterSettings | None = None,
    ) -> AsyncIterator[Replica]:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        flags = {
            "node.name": name, "node.data_dir": place,
            "mesh.join": () if member is None else (member.node.mesh[0],), "mesh.token": token,
        }  # fmt: skip
        config = load({"SWARMD_MESH_PORT": "0"}, flags)

        async def describe(node_id: NodeId, mesh: tuple[str, ...], identity: Identity) -> Node:
            return Node(
                node_id, name, mesh=mesh, public_key=identity.public_key, box_key=identity.box_key
            )

        async with (
            open_cluster(config, place, None, describe, wall) as cluster,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(
                lead_when_elected, cluster, UpkeepSettings(), voters or VoterSettings()
            )
            with trio.fail_after(WAIT_S):
                await cluster.introduced.wait()
            yield cluster
            nursery.cancel_scope.cancel()

    return opened


def trust_of(cluster: Replica) -> Trust:
    assert cluster.trust is not None
    return cluster.trust


async def until(holds: Callable[[], bool], what: str) -> None:
    with trio.move_on_after(WAIT_S):
        while not holds():
            await trio.sleep(0.01)
        return
    raise AssertionError(f"{what} did not come about")


async def make_token(cluster: Replica, ttl_s: float = 60.0, alone: bool = False) -> str:
    await until(lambda: trust_of(cluster).vouches, "the founder vouches")
    return (await trust_of(cluster).make_token(ttl_s, alone=alone, actor=SYSTEM)).token


def only_refusal(group: BaseExceptionGroup[BaseException]) -> BaseException:
    (refusal,) = {type(each): each for each in leaves(group)}.values()
    return refusal


async def test_a_founder_is_the_same_swarm_at_every_start(node: Opens, tmp_path: Path) -> None:
    async with node("a") as a:
        await make_token(a)
        pin = trust_of(a).identity.pin
        await until(lambda: not (tmp_path / "a/identity/founding").exists(), "the state has it")
    async with node("a") as a:
        assert trust_of(a).identity.pin == pin and trust_of(a).vouches
        assert trust_of(a).ring is not None
        await a.propose(PutSetting("k", b"v"), SYSTEM)


async def test_a_founder_that_ended_before_the_swarm_knew_its_keys(
    node: Opens, tmp_path: Path
) -> None:
    """What it wrote first is what the swarm is told, at the next start."""
    folder = tmp_path / "a" / "identity"
    async with node("a") as a:
        await make_token(a)
        node_id, identity = a.node.id, trust_of(a).identity
    for file in (tmp_path / "a").glob("*.db*"):
        file.unlink()
    uncertified = Identity(node_id, identity._signing, identity._opening)
    for certified in (True, False):
        save_identity(folder, uncertified)
        start = identities.prepare(
            folder, node_id, joins=False, token=None, earlier=None, alone=True,
            entropy=lambda n: bytes(n - 1) + bytes([n]), now=time.time(),
        )  # fmt: skip
        assert (folder / "founding").exists() and start.identity.certificate is not None
        if not certified:  # the end came between the two files
            save_identity(folder, uncertified)
    async with node("a") as a:
        await make_token(a)
        assert load_identity(folder).pin == trust_of(a).identity.pin  # type: ignore[union-attr]
        await until(lambda: not (folder / "founding").exists(), "the state has it")


async def test_a_token_lets_nodes_in_until_it_ends(node: Opens) -> None:
    clock = [0.0]
    async with node("a", wall=lambda: time.time() + clock[0]) as a:
        short, long = await make_token(a, 60.0), await make_token(a, 7200.0)
        async with node("b", a, short) as b:
            assert b.cluster_id == a.cluster_id
            assert trust_of(b).identity.pin == trust_of(a).identity.pin
        clock[0] = 100.0
        with pytest.raises(BaseExceptionGroup) as refused:
            async with node("c", a, short):
                pass
        refusal = only_refusal(refused.value)
        assert isinstance(refusal, Unauthorized) and "`swarmd token` on a member" in str(refusal)
        async with node("c", a, long):
            pass
        newest = await make_token(a, alone=True)
        with pytest.raises(BaseExceptionGroup) as refused:
            async with node("d", a, long):
                pass
        assert isinstance(only_refusal(refused.value), Unauthorized)
        async with node("d", a, newest):
            pass
        assert {n.name for n in a.members.values()} == {"a", "b", "c", "d"}


async def test_without_a_token_or_with_anothers_nobody_comes_in(node: Opens) -> None:
    async with node("a") as a, node("z") as z:
        good, foreign = parse_token(await make_token(a)), parse_token(await make_token(z))
        with pytest.raises(BaseExceptionGroup) as refused:
            async with node("b", a):
                pass
        assert isinstance(only_refusal(refused.value), Invalid)
        for made in ("swm1-nonsense", "x" * 10_000, ""):
            with pytest.raises((SwarmError, BaseExceptionGroup)):
                async with node("b", a, made):
                    pass
        # The pin says whom to trust: nobody at that address is.
        with trio.move_on_after(2.0) as waited:
            async with node("b", a, encode_token(foreign)):
                pass
        assert waited.cancelled_caught
        # The right swarm, and a secret that it does not know.
        guessed = encode_token(type(good)(good.pin, bytes(16)))
        with pytest.raises(BaseExceptionGroup) as refused:
            async with node("b", a, guessed):
                pass
        assert isinstance(only_refusal(refused.value), Unauthorized)
        assert {n.name for n in a.members.values()} == {"a"}


async def test_voters_can_open_the_keys_and_others_cannot(node: Opens) -> None:
    async with node("a") as a:
        token = await make_token(a)
        async with node("b", a, token) as b, node("c", a, token) as c, node("d", a, token) as d:
            every = (a, b, c, d)
            await until(lambda: len(d.log_view().voters) == 3, "three vote")
            await until(
                lambda: sum(trust_of(each).vouches for each in every) == 3, "the voters vouch"
            )
            learner = next(n for n in every if n.node.id in a.log_view().learners)
            assert not trust_of(learner).vouches
            with pytest.raises(Unavailable, match="no voter"):
                trust_of(learner).vouch(learner.node.id, learner.node.public_key)
            # What all share it is given all the same.
            await until(lambda: trust_of(learner).ring is not None, "it has the ring")
            assert trust_of(learner).ring == trust_of(a).ring


async def test_certificates_are_renewed_before_they_end(node: Opens) -> None:
    """A voter renews its own, a learner is given one by a voter; nobody is asked for a token."""
    early = [-61 * DAY_S]

    def wall() -> float:
        return time.time() + early[0]

    one = VoterSettings(voters=1)
    async with node("a", wall=wall, voters=one) as a:
        token = await make_token(a)
        async with node("b", a, token, wall=wall, voters=one) as b:
            began = [trust_of(n).identity.certificate for n in (a, b)]
            keys = [trust_of(n).identity.public_key for n in (a, b)]
            early[0] = 0.0
            for each in (a, b):
                trust_of(each).learn(trust_of(each).known)  # any news has it look at the clock
            await until(
                lambda: all(
                    trust_of(n).identity.certificate is not old
                    for n, old in zip((a, b), began, strict=True)
                ),
                "both are renewed",
            )
            assert [trust_of(n).identity.public_key for n in (a, b)] == keys
            await b.propose(PutSetting("k", b"v"), SYSTEM)
    async with node("a", voters=one) as a:
        assert not trust_of(a).expired


async def test_a_node_whose_certificate_has_ended_is_given_one_for_the_proof_of_its_key(
    node: Opens, tmp_path: Path,
) -> None:  # fmt: skip
    one = VoterSettings(voters=1)
    async with node("a", voters=one) as a:
        token = await make_token(a)
        trust = trust_of(a)
        for name, ended_s in (("b", 20 * DAY_S), ("c", 40 * DAY_S)):
            async with node(name, a, token, voters=one) as joined:
                pass
            # As if its certificate had been made long ago.
            then = time.time() - 90 * DAY_S - ended_s
            identity = trust_of(joined).identity
            assert trust._authority is not None
            old = trust._authority.issue(identity.node_id, identity.public_key, then)
            save_identity(
                tmp_path / name / "identity", identity.certified(old, identity.authority, then)
            )
        async with node("b", voters=one) as b:
            assert not trust_of(b).expired
            await b.propose(PutSetting("k", b"v"), SYSTEM)
        with pytest.raises(BaseExceptionGroup) as refused:
            async with node("c", voters=one):
                pass
        refusal = only_refusal(refused.value)
        assert isinstance(refusal, Unauthorized) and " ended at " in str(refusal)


async def test_whoever_was_removed_is_shut_out(node: Opens) -> None:
    async with node("a") as a:
        token = await make_token(a)
        async with node("b", a, token) as b:
            await until(lambda: len(a.log_view().voters) == 2, "both vote")
            await a._members.remove(b.node.id)
            await until(lambda: not a._wires.linked(b.node.id), "no stream is left")
            with pytest.raises((SwarmError, trio.TooSlowError)), trio.fail_after(3):
                await b.propose(PutSetting("k", b"v"), SYSTEM)
            assert a._wires.counts.drops["shut_out"] > 0  # type: ignore[attr-defined]


async def test_an_id_stays_with_the_key_that_it_came_with(node: Opens) -> None:
    async with node("a") as a:
        token = parse_token(await make_token(a))
        thief = make_identity(a.node.id, os.urandom)
        application = Application(b"ask", token.secret)
        ask = JoinAsk(replace(a.node, public_key=thief.public_key))
        with pytest.raises(Refused, match="another node has this id"):
            await a._members._check_grounds(f"{APPLICANT_MARK}192.0.2.7:1 x", application, ask)
        ask = JoinAsk(replace(ask.node, id=NodeId("new")))
        await a._members._check_grounds(f"{APPLICANT_MARK}192.0.2.7:1 x", application, ask)
