"""Payloads: no version is changed, one deploys at a time, and what lies where is what was said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from swarmd.domain.actors import Actor
from swarmd.domain.errors import Conflict, Invalid, NotFound, Unavailable
from swarmd.domain.events import BlobsDropped, PayloadChanged, PayloadMoved, SettingChanged
from swarmd.domain.jobs import NodeId
from swarmd.domain.payloads import (
    DEPLOYMENTS_MAX,
    HOLD_MS_MAX,
    ROLL_MS_MAX,
    ROLLED_MAX,
    TAKES_MAX,
    VERSIONS_MAX,
    Before,
    Deployment,
    Payload,
    PayloadSort,
    Place,
    PlaceStatus,
    Progress,
    Roll,
    Rolling,
    Step,
    check_version,
    restart_command,
)
from swarmd.ops.payloads import Matrix
from swarmd.ops.reach import Hosts
from swarmd.state import commands as c
from swarmd.state import payload_commands as p
from swarmd.state import payload_queries as pq
from swarmd.state import queries as q
from swarmd.state.rules.payloads import host_key_setting
from swarmd.state.versions import ROLLS_SINCE
from tests.unit.test_state_builds import Builds
from tests.unit.test_state_jobs import HOUR_MS, State

SORT = PayloadSort.CONFIG


class Payloads(Builds):
    def put(self, version: str, sha: str = "a", sort: PayloadSort = SORT) -> Payload:
        self.apply(c.AddBlob(sha * 64, 100, NodeId("n1")))
        return self.apply(  # type: ignore[no-any-return]
            p.PutPayload(Payload(sort, version, sha * 64, 100, "d", "n", "me", 77, 99))
        )

    def note(
        self, node_id: NodeId, step: Step, version: str = "1", *, lies: str | None = None,
        status: PlaceStatus = PlaceStatus.DEPLOYED,
    ) -> Deployment:  # fmt: skip
        place = None if lies is None else Place(node_id, SORT, status, lies)
        done = Deployment(node_id, "x", SORT, version, step, True)
        return self.apply(p.NoteDeployment(done, place))  # type: ignore[no-any-return]

    def hold(
        self, holder: str, node_id: str = "", *, again: bool = False, for_ms: int = 1000
    ) -> int:
        return self.apply(  # type: ignore[no-any-return]
            p.HoldPayload(SORT, node_id, holder, for_ms, again)
        )

    def begin(
        self, holder: str = "a", nodes: tuple[str, ...] = ("n1", "n2"), version: str = "1"
    ) -> Rolling:
        roll = Roll(f"r{version}", SORT, version, tuple(map(NodeId, nodes)), by="me")
        return self.apply(p.BeginRoll(roll, holder))  # type: ignore[no-any-return]

    def rolls(self) -> list[Rolling]:
        return self.ask(pq.ListRolls())  # type: ignore[no-any-return]

    def told(self) -> list[str]:
        return [e.body.what for e in self.events if isinstance(e.body, PayloadChanged)]


@pytest.fixture
def state() -> Iterator[Payloads]:
    made = Payloads()
    yield made
    made.check_counts()
    made.conn.close()


def test_a_version_is_kept_as_it_came_and_the_same_is_taken_again(state: Payloads) -> None:
    first = state.put("1")
    assert (first.id, first.created_at) == (1, state.now)  # whatever the proposer said of them
    assert state.put("1") == first
    with pytest.raises(Conflict, match="never changed"):
        state.put("1", "b")
    second = state.put("2", "b")
    assert state.ask(pq.ListPayloads(SORT)) == [second, first]
    assert state.ask(pq.FindPayload(SORT, "1")) == first
    other = state.put("1", "c", PayloadSort.BINARY)
    assert state.ask(pq.ListPayloads()) == [other, second, first]
    assert state.kinds().count(PayloadChanged) == 1  # of the last entry alone


def test_a_file_that_nobody_has_is_no_version(state: Payloads) -> None:
    with pytest.raises(NotFound, match="store the file first"):
        state.apply(p.PutPayload(Payload(SORT, "1", "f" * 64, 1)))


def test_there_is_an_end_to_versions(state: Payloads) -> None:
    for number in range(VERSIONS_MAX):
        state.put(str(number))
    with pytest.raises(Conflict, match="forget some"):
        state.put("one more")


def test_a_blob_stays_for_as_long_as_a_version_is_of_it(state: Payloads) -> None:
    state.put("1")
    state.put("2")
    assert state.blob("a" * 64) == (2, False)
    state.apply(p.DropPayload(SORT, "1"))
    state.now += HOUR_MS
    assert state.apply(c.DropBlobs(state.now, 10, 1)) == ()
    state.apply(p.DropPayload(SORT, "2"))
    assert state.blob("a" * 64) == (0, True)
    state.now += HOUR_MS
    assert state.apply(c.DropBlobs(state.now, 10, 1)) == ("a" * 64,)
    assert BlobsDropped in state.kinds()


def test_a_version_that_lies_somewhere_is_not_forgotten(state: Payloads) -> None:
    node = state.builder("one")
    state.put("1")
    state.note(node, Step.DEPLOY, lies="1")
    with pytest.raises(Conflict, match="lies on 1 builder"):
        state.apply(p.DropPayload(SORT, "1"))
    state.put("2")
    state.note(node, Step.DEPLOY, "2", lies="2")
    state.apply(p.DropPayload(SORT, "1"))
    with pytest.raises(NotFound):
        state.apply(p.DropPayload(SORT, "1"))


def test_one_rolls_at_a_time_and_alone(state: Payloads) -> None:
    assert state.hold("a") == state.now + 1000
    for node_id in ("", "n1"):
        with pytest.raises(Conflict, match="a rolling deployment of it is under way"):
            state.hold("b", node_id)
    assert state.hold("a", again=True) == state.now + 1000
    assert state.apply(p.HoldPayload(PayloadSort.BINARY, "", "b", 1000))
    assert not state.apply(p.ReleasePayload(SORT, "", "b"))
    assert state.apply(p.ReleasePayload(SORT, "", "a"))
    assert not state.apply(p.ReleasePayload(SORT, "", "a"))
    assert state.hold("b")


def test_single_deployments_are_beside_each_other_but_not_on_one_builder(state: Payloads) -> None:
    state.hold("a", "n1")
    state.hold("b", "n2")
    for node_id in ("", "n1"):
        with pytest.raises(Conflict, match="a deployment of it is under way"):
            state.hold("c", node_id)
    state.apply(p.ReleasePayload(SORT, "n1", "a"))
    state.apply(p.ReleasePayload(SORT, "n2", "b"))
    assert state.hold("c")


def test_whoever_deployed_and_is_gone_is_in_nobodys_way(state: Payloads) -> None:
    state.hold("a")
    state.now += 1000
    with pytest.raises(Conflict, match="did not go on in time"):
        state.hold("a", again=True)
    assert state.hold("b")
    with pytest.raises(Conflict):
        state.hold("a", again=True)
    for for_ms in (0, -1, HOLD_MS_MAX + 1):
        with pytest.raises(Invalid):
            state.hold("c", for_ms=for_ms)


def test_a_roll_is_there_until_its_end_whoever_is_at_it(state: Payloads) -> None:
    state.hold("a")
    assert state.told() == ["roll begun"]
    begun = state.begin()
    assert begun.roll.begun_at == state.now and begun.roll.actor == Actor("t", "test")
    assert state.rolls() == [replace(begun, held_until=state.now + 1000)]
    half = Progress(1, Before("b" * 64, "0"), "it ails", 1)
    state.apply(p.NoteRoll(SORT, "a", half))
    # Its node is gone, or stops in good order.
    assert state.apply(p.ReleasePayload(SORT, "", "a"))
    assert state.told() == ["roll left"]
    assert state.rolls() == [replace(begun, progress=half)]
    state.hold("b")
    assert state.told() == []
    taken = state.apply(p.TakeRoll(SORT, "b"))
    assert taken == replace(begun, progress=half, takes=1) and state.told() == ["roll taken over"]
    assert state.apply(p.EndRoll(SORT, "b", False)) and state.told() == ["roll stopped"]
    assert not state.apply(p.EndRoll(SORT, "b", True)) and state.rolls() == []
    state.apply(p.ReleasePayload(SORT, "", "b"))
    assert state.told() == ["roll ended"]


def test_whoever_does_not_hold_the_sort_has_no_word_on_its_roll(state: Payloads) -> None:
    state.hold("a")
    state.begin()
    state.now += 1000  # its time is over
    late = [
        p.NoteRoll(SORT, "a", Progress()), p.EndRoll(SORT, "a", True), p.TakeRoll(SORT, "a"),
        p.BeginRoll(Roll("r", SORT, "1", (NodeId("n1"),)), "a"),
    ]  # fmt: skip
    for word in late:
        with pytest.raises(Conflict, match="another node may be at it"):
            state.apply(word)
    state.hold("b")
    for word in late:
        with pytest.raises(Conflict):
            state.apply(word)
    assert state.apply(p.TakeRoll(SORT, "b")).takes == 1
    with pytest.raises(Invalid, match="nobody has that turn"):
        state.apply(p.NoteRoll(SORT, "b", Progress(3)))


def test_a_roll_that_is_left_too_often_is_given_up(state: Payloads) -> None:
    state.hold("0")
    state.begin("0")
    for take in range(1, TAKES_MAX + 1):
        state.now += 1000
        state.hold(str(take))
        assert state.apply(p.TakeRoll(SORT, str(take))).takes == take
    state.now += 1000
    state.hold("last")
    assert state.apply(p.TakeRoll(SORT, "last")) is None
    assert state.told() == ["roll given up"] and state.rolls() == []
    assert state.apply(p.TakeRoll(SORT, "last")) is None and state.told() == []
    with pytest.raises(NotFound):
        state.apply(p.NoteRoll(SORT, "last", Progress()))


def test_a_roll_that_was_begun_too_long_ago_is_given_up(state: Payloads) -> None:
    state.hold("a")
    state.begin()
    state.now += ROLL_MS_MAX
    state.hold("b")
    assert state.apply(p.TakeRoll(SORT, "b")) is None and state.rolls() == []


def test_who_rolls_out_another_version_gives_the_left_one_up(state: Payloads) -> None:
    state.put("1")
    state.put("2", "b")
    state.hold("a")
    state.begin()
    with pytest.raises(Conflict, match="is being rolled out"):
        state.apply(p.DropPayload(SORT, "1"))
    state.now += 1000
    state.hold("b")
    begun = state.begin("b", version="2")
    assert state.told() == ["roll given up", "roll begun"]
    assert [each.roll.id for each in state.rolls()] == [begun.roll.id]
    state.apply(p.DropPayload(SORT, "1"))


def test_a_roll_has_a_bound(state: Payloads) -> None:
    state.hold("a")
    for count in (0, ROLLED_MAX + 1):
        with pytest.raises(Invalid, match=f"1 to {ROLLED_MAX} builders"):
            state.begin(nodes=tuple(map(str, range(count))))
    state.begin(nodes=tuple(map(str, range(ROLLED_MAX))))


def test_before_its_version_there_are_no_rolls() -> None:
    state = State()
    state.apply(c.RaiseVersion(ROLLS_SINCE - 1, 1))
    state.apply(p.HoldPayload(SORT, "", "a", 1000))
    assert state.ask(pq.ListRolls()) == state.ask(q.ListDroneTokens()) == []
    state.apply(p.ReleasePayload(SORT, "", "a"))
    assert [e.body.what for e in state.events if isinstance(e.body, PayloadChanged)] == [
        "roll ended"
    ]


def test_each_step_is_told_and_all_but_the_first_are_in_the_log(state: Payloads) -> None:
    one, two = state.builder("one"), state.builder("two")
    state.put("1")
    for node in (one, two):
        for step in Step:
            noted = state.note(node, step)
            assert noted.node_name == node.removeprefix("builder/") and noted.at == state.now
            assert [type(event.body) for event in state.events] == [PayloadMoved]
    rows = state.ask(pq.ListDeployments(SORT, 100))
    assert [row.id for row in rows] == sorted((row.id for row in rows), reverse=True)
    assert [row.step for row in rows] == [s for s in reversed(Step) if s is not Step.BEGIN] * 2
    assert [row.node_id for row in state.ask(pq.ListDeployments(SORT, 3, one))] == [one] * 3
    assert state.ask(pq.ListPlaces()) == []
    with pytest.raises(NotFound):
        state.note(NodeId("nobody"), Step.DEPLOY)


def test_what_lies_there_is_what_was_said_last(state: Payloads) -> None:
    node = state.builder("one")
    state.note(node, Step.BEGIN, lies="1", status=PlaceStatus.DEPLOYING)
    state.note(node, Step.RESTART)
    place = state.ask(pq.FindPlace(SORT, node))
    assert place is not None and place.status is PlaceStatus.DEPLOYING
    state.note(node, Step.DEPLOY, lies="2")
    (place,) = state.ask(pq.ListPlaces(SORT))
    assert (place.version, place.status, place.at) == ("2", PlaceStatus.DEPLOYED, state.now)
    assert state.ask(pq.ListPlaces(PayloadSort.BINARY)) == []


def test_the_log_has_an_end(state: Payloads) -> None:
    node = state.builder("one")
    state.note(node, Step.DEPLOY)
    state.conn.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'payload_log'",
                       (DEPLOYMENTS_MAX,))  # fmt: skip
    state.note(node, Step.DEPLOY)
    assert [row.id for row in state.ask(pq.ListDeployments(SORT, 10))] == [DEPLOYMENTS_MAX + 1]


def test_the_key_of_a_host_is_kept_until_it_is_forgotten(state: Payloads) -> None:
    node = state.builder("one")
    key = host_key_setting(node)
    assert state.apply(c.PutSetting(key, b"first", only_new=True)) == b"first"
    assert state.apply(c.PutSetting(key, b"other", only_new=True)) == b"first"
    assert state.apply(p.ForgetHostKey(node)) is True
    assert SettingChanged in state.kinds()
    assert state.ask(q.GetSetting(key)) is None
    assert state.apply(p.ForgetHostKey(node)) is False


def test_current_is_what_is_the_latest_and_lies_there() -> None:
    latest = {SORT: Payload(SORT, "2", "a" * 64, 1)}
    node = NodeId("n")
    places = {
        "current": Place(node, SORT, PlaceStatus.DEPLOYED, "2"),
        "old": Place(node, SORT, PlaceStatus.DEPLOYED, "1"),
        "changed": Place(node, SORT, PlaceStatus.CHANGED, "2"),
        "no version": Place(node, PayloadSort.BINARY, PlaceStatus.DEPLOYED, "2"),
    }
    matrix = Matrix(latest, {name: {place.sort: place} for name, place in places.items()})
    assert [name for name, place in places.items() if matrix.is_current(place)] == ["current"]
    assert matrix.outdated == 3


@pytest.mark.parametrize("version", ["", "-1", "a/b", "..", "a b", "1\n", "x" * 65, "ü", "1'"])
def test_what_is_no_version_is_refused(version: str) -> None:
    with pytest.raises(Invalid, match="version must be"):
        check_version(version)


@pytest.mark.parametrize("service", ["", "a b", "$(reboot)", "-x", "a;b", "a\nb"])
def test_what_is_no_service_is_not_put_into_a_shell(service: str) -> None:
    with pytest.raises(Invalid):
        restart_command(service)


@pytest.mark.parametrize(
    ("said", "place"),
    [
        (None, ("10.0.0.9", 2222)),
        ("host", ("host", 2222)),
        ("host:22", ("host", 22)),
        ("fd00::5", ("fd00::5", 2222)),
        ("[fd00::5]", ("fd00::5", 2222)),
        ("[fd00::5]:22", ("fd00::5", 22)),
    ],
)
def test_a_host_is_where_it_says_or_elsewhere(said: str | None, place: tuple[str, int]) -> None:
    hosts = Hosts(port=2222, elsewhere={} if said is None else {"one": said})
    assert hosts.place("one", ("10.0.0.9",)) == place


@pytest.mark.parametrize("said", ["host:", "host:x", "host:0", "host:99999", "[::1]:x"])
def test_a_port_that_is_none_is_refused(said: str) -> None:
    with pytest.raises(Unavailable, match=r"ssh\.hosts has no port"):
        Hosts(elsewhere={"one": said}).place("one", ())
    with pytest.raises(Unavailable, match="nobody knows where two is"):
        Hosts().place("two", ())
