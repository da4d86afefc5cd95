"""Membership of many on a network that misbehaves. `SWARMD_SIM_SEEDS` picks other seeds."""

from __future__ import annotations

import msgspec
import pytest

from mesh.swim import LAN, WAN, Change, MemberChanged, NameConflict, OwnIdTaken, Settings, State
from swarmd.sim.gossip import GossipWorld, Host, Weather
from tests.sim.world import SEEDS


def seeds(usual: range) -> list[int]:
    if not SEEDS:
        return [*usual]
    found: list[int] = []
    for part in SEEDS.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def world_of(
    count: int, seed: int, *, settings: Settings = LAN, weather: Weather | None = None
) -> tuple[GossipWorld, list[str]]:
    world = GossipWorld(seed, settings, weather)
    ids = world.start_many(count)
    world.settle(ids)
    world.run(5 + world.rng.random())
    return world, ids


def others_than(ids: list[str], *gone: str) -> list[str]:
    return [id for id in ids if id not in gone]


@pytest.mark.parametrize("seed", seeds(range(25)))
def test_an_unplugged_host_is_known_dead_to_all_of_20_within_3_s(seed: int) -> None:
    world, ids = world_of(20, seed, weather=Weather(loss=0.05))
    victim = world.rng.choice(ids)
    world.unplug(victim)
    rest = others_than(ids, victim)
    world.run_until(lambda: all(world.state(id, victim) is State.DEAD for id in rest), 3.0)
    world.run(10)
    assert not [death for death in world.deaths() if death[2] != victim]


@pytest.mark.parametrize("seed", seeds(range(10)))
def test_a_killed_process_is_known_dead_within_2_s(seed: int) -> None:
    world, ids = world_of(20, seed)
    victim = world.rng.choice(ids)
    world.kill(victim)
    rest = others_than(ids, victim)
    world.run_until(lambda: all(world.state(id, victim) is State.DEAD for id in rest), 2.0)


@pytest.mark.parametrize("seed", seeds(range(5)))
def test_where_its_links_break_a_killed_process_is_known_dead_within_1_s(seed: int) -> None:
    world, ids = world_of(20, seed)
    world.kill(ids[0])
    for id in ids[1:4]:
        world.link_broke(id, ids[0])
    world.run_until(lambda: all(world.state(id, ids[0]) is State.DEAD for id in ids[1:]), 1.0)


@pytest.mark.parametrize("seed", seeds(range(4)))
def test_links_that_break_by_themselves_kill_nobody(seed: int) -> None:
    world, ids = world_of(20, seed, weather=Weather(loss=0.1))
    for _ in range(200):
        world.run(0.1)
        world.link_broke(*world.rng.sample(ids, 2))
    assert not world.deaths()


@pytest.mark.parametrize("seed", seeds(range(4)))
def test_nobody_is_called_dead_for_lost_doubled_and_late_datagrams(seed: int) -> None:
    weather = Weather(delay_s=(0.0005, 0.08), loss=0.1, doubled=0.05)
    world, _ = world_of(20, seed, weather=weather)
    world.run(120)
    assert not world.deaths()


@pytest.mark.parametrize("seed", seeds(range(4)))
def test_nobody_is_called_dead_on_hosts_that_are_overloaded(seed: int) -> None:
    """Each process waits for its turn for up to 0.4 s several times a second, now and then 1 s."""
    world, ids = world_of(20, seed, weather=Weather(loss=0.02))

    def stall_s(host: Host) -> float:
        chance = world.rng.random()
        if chance < 0.0005:
            return 1.0
        return world.rng.uniform(0.02, 0.4) if chance < 0.03 else 0.0

    world.stalls = stall_s
    world.run(120)
    assert not world.deaths()
    victim = world.rng.choice(ids)
    world.unplug(victim)
    rest = others_than(ids, victim)
    world.run_until(lambda: all(world.state(id, victim) is State.DEAD for id in rest), 10.0)


@pytest.mark.parametrize("seed", seeds(range(8)))
def test_a_node_that_is_stopped_for_10_s_calls_nobody_dead_and_comes_back(seed: int) -> None:
    world, ids = world_of(10, seed)
    world.stop(ids[3], 10.0)
    world.run(9.9)
    assert world.state(ids[0], ids[3]) is State.DEAD, "the others go on without it"
    world.run_until(lambda: world.believes(ids[0], ids, State.ALIVE), 5.0)
    world.settle(ids, 5.0)
    world.run(20)
    assert not [death for death in world.deaths() if death[1] == ids[3]]
    assert {death[2] for death in world.deaths()} == {ids[3]}


@pytest.mark.parametrize("seed", seeds(range(4)))
def test_all_stopped_at_once_wake_up_in_peace(seed: int) -> None:
    """A hypervisor that was held up, say."""
    world, ids = world_of(10, seed)
    for id in ids:
        world.stop(id, 20.0 + world.rng.random())
    world.run(60)
    assert not world.deaths()


@pytest.mark.parametrize("seed", seeds(range(6)))
def test_a_partition_is_noticed_on_both_sides_and_heals_by_itself(seed: int) -> None:
    world, ids = world_of(20, seed)
    world.part(ids[:8], ids[8:])
    world.run_until(
        lambda: (
            world.believes(ids[0], ids[8:], State.DEAD)
            and world.believes(ids[19], ids[:8], State.DEAD)
        ),
        15.0,
    )
    world.run(300)
    assert world.believes(ids[0], ids[1:8], State.ALIVE)
    world.part()
    world.settle(ids, 10.0)


def test_a_node_that_was_alone_for_hours_is_found_again() -> None:
    world, ids = world_of(3, 1)
    world.part(ids[:1], ids[1:])
    world.run(3 * 3600)
    assert world.believes(ids[0], ids[1:], State.DEAD)
    world.part()
    world.settle(ids, 30.0)


@pytest.mark.parametrize("seed", seeds(range(4)))
def test_a_one_way_cut_of_datagrams_kills_nobody_while_others_reach_it(seed: int) -> None:
    world, ids = world_of(6, seed)
    world.udp_cut = {(ids[0], ids[1])}
    world.run(60)
    assert not world.deaths()


@pytest.mark.parametrize("seed", seeds(range(4)))
def test_a_node_whose_datagrams_are_all_lost_lives_on_by_its_connections(seed: int) -> None:
    world, ids = world_of(6, seed)
    world.udp_cut = {pair for id in ids[1:] for pair in ((ids[0], id), (id, ids[0]))}
    world.run(60)
    assert not world.deaths()
    assert world.hosts[ids[0]].swim.counts.udp_silent > 10


@pytest.mark.parametrize("seed", seeds(range(4)))
def test_a_link_that_flaps_leaves_all_alive_in_the_end(seed: int) -> None:
    world, ids = world_of(8, seed)
    for _ in range(20):
        world.part(ids[:1], ids[1:])
        world.run(world.rng.uniform(0.2, 4.0))
        world.part()
        world.run(world.rng.uniform(0.2, 4.0))
    world.settle(ids, 15.0)


@pytest.mark.parametrize("seed", seeds(range(4)))
def test_who_leaves_is_left_to_all_and_dead_to_none(seed: int) -> None:
    world, ids = world_of(20, seed, weather=Weather(loss=0.05))
    world.leave(ids[5])
    world.run_until(lambda: world.hosts[ids[5]].swim.leave_told, 2.0)
    world.kill(ids[5])
    rest = others_than(ids, ids[5])
    world.run_until(lambda: all(world.state(id, ids[5]) is State.LEFT for id in rest), 5.0)
    world.run(60)
    assert not world.deaths()
    assert all(world.state(id, ids[5]) is State.LEFT for id in rest)


@pytest.mark.parametrize("seed", seeds(range(4)))
def test_a_restarted_node_is_back_at_once(seed: int) -> None:
    world, ids = world_of(10, seed)
    world.kill(ids[2])
    rest = others_than(ids, ids[2])
    world.run_until(lambda: all(world.state(id, ids[2]) is State.DEAD for id in rest), 5.0)
    world.start(ids[2], seeds=[ids[7]])
    world.settle(ids, 2.0)
    world.run(10)
    assert len({death[0] for death in world.deaths()}) <= len(rest), "it died once for each"


def test_a_restart_that_takes_half_a_second_is_no_death_for_long() -> None:
    world, ids = world_of(10, 1)
    world.kill(ids[2])
    world.run(0.2)
    world.start(ids[2], seeds=[ids[7]], tags={"boot": "2"})
    world.settle(ids, 3.0)
    for id in ids:
        view = world.hosts[id].swim.member(ids[2])
        assert view is not None
        assert view.tags == {"boot": "2"}


def test_two_nodes_of_one_name_are_told_of_by_all() -> None:
    world = GossipWorld(4)
    world.start("a", born=1)
    world.start("b", seeds=["a"], born=2, name="web")
    world.start("c", seeds=["a"], born=3, name="web")
    world.settle("abc")
    for host in world.running():
        told = [event for _, event in host.events if isinstance(event, NameConflict)]
        assert told == [NameConflict("web", "b", ("c",))] or host.id != "a"
        assert [v.name_kept_by for v in host.swim.members() if v.id == "c"] == ["b"]


def test_a_copied_data_directory_is_noticed() -> None:
    world, ids = world_of(4, 9)
    clone = world.start_clone(ids[1], "n001-copy", seeds=[ids[0]])
    world.run(60)
    told = [e for host in (world.hosts[ids[1]], clone) for _, e in host.events]
    assert any(isinstance(event, OwnIdTaken) for event in told)


def test_new_tags_reach_all() -> None:
    world, ids = world_of(50, 2, weather=Weather(loss=0.1))
    world.update(ids[10], tags={"role": "voter"})

    def know() -> bool:
        views = [world.hosts[id].swim.member(ids[10]) for id in ids]
        return all(view is not None and view.tags == {"role": "voter"} for view in views)

    world.run_until(know, 2.0)


@pytest.mark.parametrize("seed", seeds(range(20)))
def test_among_few_too_a_change_misses_nobody(seed: int) -> None:
    """Those who tell of it are as few as those who must hear of it."""
    world, ids = world_of(8, seed)
    world.update(ids[3], tags={"role": "voter"})

    def know() -> bool:
        views = [world.hosts[id].swim.member(ids[3]) for id in ids]
        return all(view is not None and view.tags == {"role": "voter"} for view in views)

    world.run_until(know, 1.0)


def test_a_newcomer_learns_of_all_and_does_not_tell_of_them() -> None:
    world, ids = world_of(150, 2)
    world.run(40)
    before = {id: world.hosts[id].sent_bytes for id in ids}
    world.start("new", seeds=[ids[7]])
    world.settle([*ids, "new"], 5.0)
    world.run(3)
    told = {id: world.hosts[id].sent_bytes - before[id] for id in ids}
    assert max(told.values()) < 12_000, "of one newcomer, and of nobody else"
    assert world.hosts["new"].sent_bytes < 12_000


def test_200_that_start_at_once_meet() -> None:
    world = GossipWorld(3)
    ids = world.start_many(200)
    world.settle(ids, 20.0)
    world.run(5)
    assert not world.deaths()


def test_a_change_costs_every_node_a_bounded_number_of_bytes() -> None:
    world, ids = world_of(20, 6)
    world.run(30)
    before = {id: world.hosts[id].sent_bytes for id in ids}
    world.run(10)
    idle = {id: world.hosts[id].sent_bytes - before[id] for id in ids}
    assert max(idle.values()) < 10 * 600
    world.update(ids[0], tags={"x": "y" * 200})
    before = {id: world.hosts[id].sent_bytes for id in ids}
    world.run(10)
    told = {id: world.hosts[id].sent_bytes - before[id] - idle[id] for id in ids}
    words = 300
    times = LAN.retransmit_mult * 2
    assert max(told.values()) < words * (times + 2)
    assert world.largest <= LAN.payload_bytes_max


def test_one_seed_is_one_history() -> None:
    def history(seed: int) -> list[object]:
        world, ids = world_of(8, seed, weather=Weather(loss=0.2, doubled=0.1))
        world.unplug(ids[3])
        world.run(10)
        return [(host.id, host.sent, host.sent_bytes, host.events) for host in world.running()]

    assert history(5) == history(5)
    assert history(5) != history(6)


def test_coordinates_tell_two_sites_apart() -> None:
    """Six nodes at each of two sites, 40 ms apart."""
    world = GossipWorld(8, msgspec.structs.replace(LAN, probe_interval_s=0.1))
    ids = world.start_many(12)
    world.extra_delay_s = lambda a, b: 0.02 if (int(a[1:]) < 6) != (int(b[1:]) < 6) else 0.0
    world.settle(ids)
    world.run(120)
    asker = world.hosts[ids[0]].swim
    near, far = asker.distance(ids[2], ids[4]), asker.distance(ids[2], ids[9])
    assert near is not None
    assert far is not None
    assert near < 0.015
    assert 0.025 < far < 0.06
    stats = asker.rtt(ids[9])
    assert stats is not None
    assert stats.p50_s == pytest.approx(0.042, abs=0.01)


def test_a_wan_bears_what_a_lan_would_not() -> None:
    weather = Weather(delay_s=(0.05, 0.35), loss=0.1)
    world, ids = world_of(10, 3, settings=WAN, weather=weather)
    world.run(300)
    assert not world.deaths()
    world.unplug(ids[4])
    rest = others_than(ids, ids[4])
    world.run_until(lambda: all(world.state(id, ids[4]) is State.DEAD for id in rest), 40.0)


def test_what_is_believed_only_changes_as_it_may() -> None:
    """Whatever happens, each node tells of each other in an order that makes sense."""
    living = {Change.SUSPECTED, Change.DIED, Change.LEFT, Change.UPDATED, Change.FORGOTTEN}
    may_follow = {
        None: {Change.JOINED, Change.DIED, Change.LEFT},
        Change.JOINED: living,
        Change.RETURNED: living,
        Change.CLEARED: living,
        Change.UPDATED: living,
        Change.SUSPECTED: {Change.CLEARED, Change.DIED, Change.LEFT, Change.FORGOTTEN},
        Change.DIED: {Change.RETURNED, Change.LEFT, Change.FORGOTTEN},
        Change.LEFT: {Change.RETURNED, Change.FORGOTTEN},
        Change.FORGOTTEN: {Change.JOINED},
    }
    world, ids = world_of(12, 11, weather=Weather(loss=0.2))
    for step in range(30):
        id = world.rng.choice(ids[1:])
        host = world.hosts[id]
        if not host.running:
            world.start(id, seeds=[ids[0]])
        elif step % 3 == 0:
            world.unplug(id)
        elif step % 3 == 1:
            world.stop(id, 6.0)
        else:
            world.part([id], others_than(ids, id))
        world.run(world.rng.uniform(0.5, 5.0))
        world.part()
    for host in world.running():
        last: dict[str, Change] = {}
        since_start = [event for at, event in host.events if at >= host.started]
        for event in since_start:
            if isinstance(event, MemberChanged):
                before = last.get(event.member.id)
                assert event.change in may_follow[before], (host.id, event.member.id, before)
                last[event.member.id] = event.change
