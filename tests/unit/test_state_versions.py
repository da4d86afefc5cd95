"""What is new in the state waits for its version, and a program that does not know one goes no
further."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from swarmd.cluster.handle import LogView, PeerView, Role
from swarmd.control import members
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Conflict, Unavailable
from swarmd.domain.jobs import Installed, JobId, JobSpec, NodeId
from swarmd.domain.nodes import Node, NodeKind
from swarmd.state import commands as c
from swarmd.state import schema
from swarmd.state.machine import Machine, Place, dump_hash, read_place
from swarmd.state.store import StoreSettings, check_copy, open_store
from swarmd.state.versions import Outdated, in_force, in_force_in, needs

ME = Actor("test", "unit")
NEXT = c.VERSION + 1


def entry(index: int, command: object) -> c.Entry:
    return c.Entry(index, 1, index * 10, ME, command)  # type: ignore[arg-type]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions on there are tables more."""
    after = "CREATE TABLE after(id INTEGER); CREATE INDEX x ON after(id);"
    more = (("next", NEXT, "CREATE TABLE next(id INTEGER)"), ("after", NEXT + 1, after))
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, *more))


def tables(conn: sqlite3.Connection) -> set[str]:
    rows = conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {str(row[0]) for row in rows} & {"next", "after"}


def fresh(path: Path | str = ":memory:", known: int = c.VERSION) -> sqlite3.Connection:
    conn = sqlite3.connect(path, isolation_level=None)
    schema.migrate(conn, known)
    return conn


def test_tables_come_with_their_version_in_the_very_step(later: None) -> None:
    conn = fresh(known=NEXT + 1)
    machine = Machine(conn, NEXT + 1)
    machine.apply([entry(1, c.RaiseVersion(c.VERSION, 1))])
    schema.migrate(conn, NEXT + 1)
    assert tables(conn) == set()
    (done,) = machine.apply([entry(2, c.RaiseVersion(NEXT, 1))])
    assert done.value == NEXT and tables(conn) == {"next"}
    # Several at once, where versions between were never in force here.
    machine.apply([entry(3, c.RaiseVersion(NEXT + 1, 1))])
    assert tables(conn) == {"next", "after"}
    schema.migrate(conn, NEXT + 1)  # as after a restart


def test_a_step_that_is_rolled_back_takes_its_tables_along(later: None) -> None:
    conn = fresh()
    before = dump_hash(conn)
    broken = entry(2, object())
    with pytest.raises(KeyError):
        Machine(conn, NEXT).apply([entry(1, c.RaiseVersion(NEXT, 1)), broken])
    assert tables(conn) == set() and dump_hash(conn) == before
    (done,) = Machine(conn, NEXT).apply([entry(1, c.RaiseVersion(NEXT, 1))])
    assert done.value == NEXT and tables(conn) == {"next"}


def test_a_version_is_never_taken_back() -> None:
    conn = fresh()
    machine = Machine(conn)
    for index, version in ((1, c.VERSION), (2, c.VERSION - 1), (3, c.VERSION)):
        (done,) = machine.apply([entry(index, c.RaiseVersion(version, 1))])
        assert done.value == c.VERSION == in_force(conn.execute)
        assert len(done.events) == (index == 1)


def test_equal_replicas_are_equal_whenever_their_tables_were_made(later: None) -> None:
    """One raised the version itself, the other was begun by a program that knows it already."""
    hashes = set()
    for known in (NEXT, NEXT + 1):
        conn = fresh(known=known)
        Machine(conn, known).apply([entry(1, c.RaiseVersion(NEXT, 1))])
        hashes.add(dump_hash(conn))
    assert len(hashes) == 1


def test_an_old_program_stops_before_what_it_does_not_know() -> None:
    conn = fresh()
    machine = Machine(conn)
    machine.apply([entry(1, c.PutSetting("a", b"1"))])
    with pytest.raises(Outdated, match=f"version {NEXT} of its state.*start the newer swarmd"):
        machine.apply([entry(2, c.PutSetting("a", b"2")), entry(3, c.RaiseVersion(NEXT, 1))])
    # Nothing of the batch is there: a newer program takes it up where this one stood.
    assert read_place(conn).index == 1 and in_force(conn.execute) == 1
    Machine(conn, NEXT).apply(
        [entry(2, c.PutSetting("a", b"2")), entry(3, c.RaiseVersion(NEXT, 1))]
    )
    assert in_force(conn.execute) == NEXT


async def test_a_state_or_a_copy_that_is_newer_is_left_as_it_is(
    later: None, tmp_path: Path
) -> None:
    path = tmp_path / "state.db"
    async with open_store(path, StoreSettings(version=NEXT)) as store:
        copy = await store.copy_to(tmp_path / "empty.db")
        assert copy.place == Place(0, 0)
    with closing(fresh(path, NEXT)) as conn:
        Machine(conn, NEXT).apply([entry(1, c.PutSetting("a", b"1"))])
    check_copy(path)  # the older program takes it, with none of the newer tables
    with closing(fresh(path, NEXT)) as conn:
        Machine(conn, NEXT).apply([entry(2, c.RaiseVersion(NEXT, 1))])
    before = path.read_bytes()
    with pytest.raises(Outdated):
        check_copy(path)
    with pytest.raises(Outdated):
        async with open_store(path, StoreSettings()):
            pass
    assert path.read_bytes() == before
    assert check_copy(path, NEXT).place.index == 2


@pytest.mark.parametrize("put", [b"\xa0", b"\xff", b"\x00", b"'"])
def test_a_copy_whose_words_are_garbled_is_refused(tmp_path: Path, put: bytes) -> None:
    """What SQLite says of it quotes bytes that need be no text."""
    path = tmp_path / "copy.db"
    with closing(fresh(path)) as conn:
        Machine(conn).apply([entry(1, c.PutSetting("a", b"1"))])
    whole = path.read_bytes()
    assert check_copy(path).place.index == 1
    for word in (b"CREATE TABLE meta", b"CREATE INDEX jobs_ready"):
        at = whole.index(word)
        path.write_bytes(whole[: at + 5] + put + whole[at + 6 :])
        with pytest.raises(Unavailable, match="is no state of a swarm"):
            check_copy(path)


def test_the_version_of_a_file_is_known_before_anything_is_in_it() -> None:
    conn = sqlite3.connect(":memory:")
    assert in_force_in(conn) == 1


def test_a_member_that_is_too_old_is_not_taken_in_and_who_is_no_member_may_be_as_old() -> None:
    machine = Machine(fresh())
    machine.apply([entry(1, c.RaiseVersion(c.VERSION, 1))])
    old = Node(NodeId("a"), "a", machine_version=c.VERSION - 1)
    (refused,) = machine.apply([entry(2, c.PutNode(old))])
    assert isinstance(refused.refusal, Conflict) and "newer swarmd" in refused.refusal.message
    drone = Node(NodeId("b"), "b", kind=NodeKind.DRONE)
    (taken,) = machine.apply([entry(3, c.PutNode(drone))])
    assert taken.refusal is None


def test_a_field_that_came_later_needs_its_version_where_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = JobSpec(type="t", source=Installed("true"))
    plain = c.SubmitJobs((c.NewJob(JobId("j"), spec),))
    assert needs(plain) == 1 and needs(c.HoldAttempts(NodeId("n"), 1)) == 2
    monkeypatch.setattr(
        "swarmd.state.versions.FIELDS_SINCE",
        {JobSpec: {"env": 7}, c.CancelJobs: {"only_pending": 5}},
    )
    assert needs(plain) == 1
    with_env = JobSpec(type="t", source=Installed("true"), env={"A": "1"})
    many = (*plain.jobs, c.NewJob(JobId("k"), with_env))
    assert needs(c.SubmitJobs(many)) == 7
    assert needs(c.CancelJobs((JobId("j"),))) == 1
    assert needs(c.CancelJobs((JobId("j"),), only_pending=True)) == 5


@dataclass
class Swarm:
    """What `raise_version` sees of a swarm: replicas, and others who are there or not."""

    replicas: dict[str, int]
    others: dict[str, int] = field(default_factory=dict)
    there: set[str] = field(default_factory=set)
    raised: list[int] = field(default_factory=list)

    def log_view(self) -> LogView:
        voters = tuple(map(NodeId, self.replicas))
        return LogView(1, 1, 1, 1, 1, voters, (), False, {})

    async def read(self, query: object) -> list[Node]:
        await trio.lowlevel.checkpoint()
        known = {**self.replicas, **self.others}
        return [Node(NodeId(n), n, machine_version=v) for n, v in known.items() if v]

    def peer(self, node_id: NodeId) -> PeerView:
        return PeerView(Role.AGENT, alive=node_id in self.there)

    def cluster_version(self) -> int:
        return max(self.raised, default=1)

    async def propose(self, command: c.RaiseVersion, actor: Actor) -> None:
        self.raised.append(command.version)


@pytest.mark.parametrize(
    ("swarm", "raised"),
    [
        (Swarm({"a": 2, "b": 2}), [2]),
        (Swarm({"a": 2, "b": 1}), []),
        (Swarm({"a": 2, "b": 0}), []),  # not in the state yet
        (Swarm({"a": 2}, {"r": 1}, {"r"}), []),
        (Swarm({"a": 2}, {"r": 2}, {"r"}), [2]),
        (Swarm({"a": 2}, {"r": 1}, set()), [2]),
        (Swarm({"a": NEXT, "b": NEXT}), [c.VERSION]),  # not beyond what the leader knows
    ],
)  # fmt: skip
async def test_a_version_is_raised_when_all_who_have_to_understand_it_do(
    swarm: Swarm, raised: list[int], autojump_clock: MockClock
) -> None:
    with trio.move_on_after(20):
        await members.raise_version(swarm, 1)  # type: ignore[arg-type]
    assert swarm.raised == raised
