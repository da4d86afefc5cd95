"""What operators are told of the log, and how leadership is handed over, in the small world."""

from __future__ import annotations

import msgspec
import pytest
import trio

from swarmd.cluster.opening import OpeningSettings
from swarmd.domain.errors import Conflict, NotFound, Unavailable
from swarmd.ops import raft, swarm
from swarmd.sim.world import World
from tests.sim.world import simulated


@simulated(11)
async def test_each_node_tells_the_same_of_a_whole_swarm(world: World) -> None:
    await world.swarm_of("a", "b", "c", "d")
    for n in range(5):
        await world.put("b", f"k{n}", "v")
    await world.settle()
    leader = await world.leader()
    for name in "abcd":
        seen = await raft.status(world.replica(name))
        assert (seen.node, seen.leader, seen.note) == (name, leader, "")
        role = "leader" if name == leader else "learner" if name in seen.learners else "follower"
        assert seen.role == role
        assert (len(seen.voters), len(seen.learners), seen.joint) == (3, 1, False)
        assert seen.first <= seen.applied == seen.committed == seen.last
        assert [m.name for m in seen.members] == ["a", "b", "c", "d"]
        assert {(m.match, m.behind, m.state) for m in seen.members} == {(seen.last, 0, "replicate")}
        assert all(m.alive for m in seen.members)
        assert seen.standing.startswith("3 of 3 voters are there, 2 are needed")


@simulated(12)
async def test_a_leader_that_does_not_answer_is_said_so_within_a_second(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    leader = await world.leader()
    other = next(n for n in "abc" if n != leader)
    world.network.isolate(leader)
    before = trio.current_time()
    seen = await raft.status(world.replica(other))
    assert trio.current_time() - before <= raft.LEADER_S_MAX + 0.1
    assert (seen.leader, [m.match for m in seen.members]) == (leader, [None] * 3)
    assert seen.note.startswith("the leader does not tell how far each member is")
    assert seen.voters == ("a", "b", "c")


@simulated(13)
async def test_without_a_majority_the_standing_says_what_is_missing(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    await world.crash("a")
    await world.crash("b")
    await world.until(
        lambda: world.replica("c").leadership().leader is None, 30, "nobody that leads"
    )
    seen = await raft.status(world.replica("c"))
    assert (seen.leader, "nobody can tell" in seen.note) == (None, True)
    assert "reaches 1 of 3 voters, 2 are needed" in seen.standing
    assert (await swarm.status(world.replica("c"))).standing == seen.standing
    assert seen.staleness_ms is not None
    with pytest.raises(Unavailable, match="nothing to hand over"):
        await raft.transfer(world.replica("c"), None)


@simulated(14)
async def test_two_voters_are_told_that_losing_either_stops_writes(world: World) -> None:
    await world.swarm_of("a", "b")
    for name in "ab":
        assert "losing either stops writes" in raft.standing(world.replica(name))


@simulated(15)
async def test_one_voter_is_as_durable_as_its_disk(world: World) -> None:
    await world.start("a")
    await world.leader()
    assert "one voter" in raft.standing(world.replica("a"))
    with pytest.raises(Conflict, match="only voter"):
        await raft.transfer(world.replica("a"), None)
    await world.until(world.replica("a").introduced.is_set, 10, "an introduction")
    assert (await raft.transfer(world.replica("a"), "a")).leader == "a"


@simulated(16)
async def test_any_node_hands_leadership_to_any_voter(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    await world.settle()
    for asked in "abc":
        for to in "abc":
            before = await world.leader()
            done = await raft.transfer(world.replica(asked), to)
            assert (done.leader, done.before) == (to, before)
            assert (await raft.status(world.replica(asked))).leader == to
    before = await world.leader()
    done = await raft.transfer(world.replica("a"), None)
    assert done.leader != before
    await world.put("a", "k", "v")


@simulated(17)
async def test_who_cannot_lead_is_refused_with_the_reason(world: World) -> None:
    await world.swarm_of("a", "b", "c", "d")
    await world.settle()
    replica = world.replica("a")
    (learner,) = (await raft.status(replica)).learners
    with pytest.raises(NotFound, match="'nobody'; there are a, b, c, d"):
        await raft.transfer(replica, "nobody")
    with pytest.raises(Conflict, match=f"{learner} is a learner: only a voter can lead"):
        await raft.transfer(replica, learner)
    leader = await world.leader()
    gone = next(n for n in "abc" if n not in (leader, learner))
    await world.crash(gone)
    asked = world.replica(leader)

    def noticed() -> bool:
        view = asked.log_view()
        progress = next((p for n, p in view.progress.items() if n == gone), None)
        return progress is not None and not progress.active

    await world.until(noticed, 30, "a leader that misses a voter")
    with pytest.raises(Conflict, match=f"{gone} does not answer"):
        await raft.transfer(asked, gone)


@simulated(18, OpeningSettings(log_entries_kept=10_000))
async def test_who_is_far_behind_is_told_by_how_much(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    await world.settle()
    leader = await world.leader()
    view = world.replica(leader).log_view()
    slow = next(n for n in view.voters if n != leader)
    nodes = {node_id: world.replica(leader).members[node_id] for node_id in view.voters}
    far = view.progress[slow].match + raft.BEHIND_MAX + 1
    with pytest.raises(Conflict, match=f"{slow} is {raft.BEHIND_MAX + 1} entries behind"):
        raft._check_one(msgspec.structs.replace(view, last=far), slow, nodes)
    raft._check_one(msgspec.structs.replace(view, last=far - 1), slow, nodes)
    with pytest.raises(Conflict, match="nobody can take over"):
        raft._check_any(msgspec.structs.replace(view, last=far), leader, nodes)
