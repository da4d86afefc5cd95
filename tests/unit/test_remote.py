"""A node without a replica, and the replica that serves it, over real wires: what is asked for too
much, too large, too late or with ill intent."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import msgspec
import pytest
import trio

from mesh.transport import Me as Myself
from mesh.transport import Transport, TransportSettings, open_transport
from mesh.wal_sqlite import open_log
from mesh.wires import Refused, WireError
from swarmd.cluster import sessions as words
from swarmd.cluster.asks import ReadLog
from swarmd.cluster.attaching import AttachingSettings
from swarmd.cluster.choosing import ChoosingSettings
from swarmd.cluster.feed import EVERYTHING, Feed, FellBehind, Wanted
from swarmd.cluster.handle import LEADER, local_reads
from swarmd.cluster.numbers import raft_id_of
from swarmd.cluster.remote import Remote, RemoteSettings, open_remote, remembered
from swarmd.cluster.replica import Replica
from swarmd.domain.actors import SYSTEM, Actor
from swarmd.domain.errors import Busy, Conflict, NotFound, SwarmError, TooLarge, Unavailable
from swarmd.domain.events import (
    AttemptStopped,
    BlobAdded,
    Event,
    EventBody,
    JobAssigned,
    JobEnded,
    SettingChanged,
)
from swarmd.domain.jobs import AttemptId, Fetch, JobId, JobSpec, JobStatus, NodeId
from swarmd.domain.nodes import Node
from swarmd.state.commands import (
    CancelJobs,
    FinishClaim,
    NewJob,
    PruneEvents,
    PutSetting,
    Request,
    RequestId,
    SubmitJobs,
)
from swarmd.state.machine import Applied
from swarmd.state.queries import QUERIES, FindJob, GetSetting, ListEvents, ListNodes
from swarmd.state.requests import _kept, outcome_of
from tests.cluster import open_alone
from tests.wires import until

CLIENT = Actor("client", "test")
REPLICA, REMOTE = NodeId("replica"), NodeId("remote")
CHOOSING = ChoosingSettings(avoid_s=0.1)
QUICK = RemoteSettings(attaching=AttachingSettings(again_s=0.05, choosing=CHOOSING), read_s_max=3.0)
SPEC = JobSpec("binary", Fetch("blob:sha256:" + "0" * 64, "0" * 64))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def replica_at(place: Path) -> AsyncIterator[Replica]:
    (place / "replica").mkdir()
    async with open_alone(place / "replica", Node(REPLICA, "replica"), now_ms=now_ms) as replica:
        yield replica


@asynccontextmanager
async def wires_to(replica: Replica, name: str = REMOTE) -> AsyncIterator[Transport]:
    rng = random.Random(name)
    async with open_transport(TransportSettings(), Myself(name, 1), rng=rng) as wires:
        (at,) = replica._wires.addresses  # type: ignore[attr-defined]
        wires.set_peers({REPLICA: (at,)})
        yield wires


@asynccontextmanager
async def remote_at(
    place: Path, replica: Replica, settings: RemoteSettings = QUICK
) -> AsyncIterator[Remote]:  # fmt: skip
    (place / "remote").mkdir(exist_ok=True)
    numbers = count()
    async with (
        open_log(place / "remote" / "raft.db", create=True) as raft_log,
        wires_to(replica) as wires,
        open_remote(
            Node(REMOTE, "remote", mesh=wires.addresses), raft_log, wires, settings,
            replicas={REPLICA: replica._wires.addresses},  # type: ignore[attr-defined]
            now_ms=now_ms, new_id=lambda: f"remote-{next(numbers)}", rng=random.Random(5),
        ) as remote,
    ):  # fmt: skip
        assert remembered(raft_log) is not None
        yield remote


@asynccontextmanager
async def both(place: Path) -> AsyncIterator[tuple[Replica, Remote]]:
    with trio.fail_after(60):
        async with replica_at(place) as replica, remote_at(place, replica) as remote:
            await remote.introduced.wait()
            yield replica, remote
            assert remote._attaching.sessions_begun == 1  # none was lost without a reason


# The feed


def event(seq: int, body: EventBody) -> Event:
    return Event(seq, 0, seq, SYSTEM, body)


class Taken:
    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.closed = False

    def put(self, event: Event) -> None:
        if len(self.seqs) >= 10:
            raise trio.WouldBlock
        self.seqs.append(event.seq)

    def close(self) -> None:
        self.closed = True


JOB, NODE = JobId("j"), NodeId("n")
EVENTS = (
    event(1, JobAssigned(JOB, AttemptId(1), NODE)),
    event(2, AttemptStopped(JOB, AttemptId(1), NodeId("other"), "why")),
    event(3, JobEnded(JOB, JobStatus.COMPLETED)),
    event(4, BlobAdded("x", 1, NODE)),
    event(5, JobEnded(JobId("j2"), JobStatus.FAILED)),
)


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted.of(JobAssigned, AttemptStopped, about=NODE),
        Wanted.of(JobEnded, about=JOB),
        Wanted.of(JobEnded),
        Wanted.of(about=NODE),
        Wanted.of(JobEnded, JobAssigned, BlobAdded),
        EVERYTHING,
        Wanted.of(SettingChanged),
    ],
)
def test_what_is_looked_up_is_what_is_looked_at(wanted: Wanted) -> None:
    feed, taken = Feed(), Taken()
    feed.want(taken, wanted)
    feed.publish(EVENTS)
    assert taken.seqs == [each.seq for each in EVENTS if wanted(each)]
    feed.unwant(taken, wanted)
    feed.publish(EVENTS)
    assert taken.seqs == [each.seq for each in EVENTS if wanted(each)]
    assert not feed._named and not feed._keys and not feed._looking


def test_wants_that_overlap_end_one_by_one() -> None:
    feed, taken = Feed(), Taken()
    narrow, wide = Wanted.of(JobEnded), Wanted.of(JobEnded, JobAssigned)
    feed.want(taken, narrow)
    feed.want(taken, wide)
    feed.unwant(taken, narrow)
    feed.publish(EVENTS[:1] + EVENTS[2:3])
    assert taken.seqs == [1, 3]


def test_who_is_full_is_dropped_and_nobody_else() -> None:
    feed, slow, quick = Feed(), Taken(), Taken()
    for outlet in (slow, quick):
        feed.want(outlet, Wanted.of(JobEnded))
    slow.seqs = [0] * 10
    feed.publish(EVENTS)
    assert slow.closed and not quick.closed and quick.seqs == [3, 5]


# The words


def test_every_query_says_what_it_is_answered_with() -> None:
    assert set(words.ANSWERS) == set(QUERIES)
    for answer in words.ANSWERS.values():
        msgspec.msgpack.Decoder(answer)


def test_an_outcome_travels_as_the_state_keeps_it() -> None:
    request = RequestId(1, 1, 1)
    done = Applied(request, b"value", None, [])
    refused = Applied(request, None, NotFound("no such job", job_id="x"), [])
    for applied in (done, refused):
        kept = words.outcome_kept(applied)
        assert kept == _kept(applied.value, applied.refusal)
    assert outcome_of(PutSetting, words.outcome_kept(done)) == b"value"
    with pytest.raises(NotFound, match="no such job"):
        outcome_of(FinishClaim, words.outcome_kept(refused))


# Both sides


async def test_refusals_come_as_they_are(tmp_path: Path) -> None:
    async with both(tmp_path) as (_, remote):
        (submitted,) = await remote.propose(SubmitJobs((NewJob(JobId("j1"), SPEC),)), CLIENT)
        found = await remote.read(FindJob("j1"))
        assert found is not None and found.id == submitted.id == "j1"  # type: ignore[union-attr]
        (cancelled,) = await remote.propose(CancelJobs((JobId("nobody"),)), CLIENT)
        assert cancelled.code == "not_found"  # type: ignore[union-attr]
        with pytest.raises(Conflict):
            await remote.propose(PruneEvents(1, 1, term=1), CLIENT)
        with pytest.raises(TooLarge):
            await remote.propose(PutSetting("k", b"x" * 300_000), CLIENT)
        for refused in (remote.copy_state(tmp_path / "c"), remote.change_members(voters=(REMOTE,)),
                        remote.hand_over(REMOTE)):  # fmt: skip
            with pytest.raises(Unavailable):
                await refused
        await remote.hand_over(None)
        with pytest.raises(SwarmError):
            await remote.ask(LEADER, ReadLog(AttemptId(1), "stdout", 0))


async def test_an_answer_too_large_for_a_call_comes_by_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with both(tmp_path) as (_, remote):
        await remote.propose(PutSetting("k", b"x" * 200_000), CLIENT)
        monkeypatch.setattr(words, "CALL_ANSWER_BYTES_MAX", 1000)
        assert await remote.read(GetSetting("k")) == b"x" * 200_000
        with local_reads():
            assert await remote.read(GetSetting("k")) == b"x" * 200_000
        monkeypatch.setattr(words, "ANSWER_BYTES_MAX", 100_000)
        with pytest.raises(TooLarge):
            await remote.read(GetSetting("k"))


async def test_a_replica_with_too_much_to_do_says_so(tmp_path: Path) -> None:
    async with both(tmp_path) as (replica, remote):
        serving = replica._serving
        serving._settings = replace(serving._settings, reads_max=0)
        with pytest.raises(Busy):
            await remote.read(GetSetting("k"))


async def test_many_watch_one_session(tmp_path: Path) -> None:
    """Each sees its own, the replica sends an event once, and what nobody wants it sends not."""
    async with both(tmp_path) as (replica, remote):
        jobs = [JobId(f"j{n}") for n in range(50)]
        seen: dict[str, str] = {}
        ready = count()
        started = trio.Event()

        async def wait(job: JobId) -> None:
            async with remote.watch(wants=Wanted.of(JobEnded, about=job)) as events:
                if next(ready) == len(jobs) - 1:
                    started.set()
                found = await anext(events)
                assert isinstance(found.body, JobEnded)
                seen[job] = found.body.job_id

        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(wait, job)
            await started.wait()
            new = tuple(NewJob(job, SPEC) for job in jobs)
            await replica.propose(SubmitJobs(new), CLIENT)
            await replica.propose(CancelJobs(tuple(jobs)), CLIENT)
        assert seen == {job: job for job in jobs}
        await until(lambda: not replica._feed._named.get(("JobEnded", "j0")))


async def test_any_predicate_is_watched_though_it_has_no_name(tmp_path: Path) -> None:
    async with both(tmp_path) as (replica, remote):

        def wants(event: Event) -> bool:
            return isinstance(event.body, SettingChanged) and event.body.key == "b"

        async with remote.watch(wants=wants) as events:
            for key in "abc":
                await replica.propose(PutSetting(key, b"v"), CLIENT)
            found = await anext(events)
            assert isinstance(found.body, SettingChanged) and found.body.key == "b"


async def test_a_watch_from_an_event_that_is_gone_says_so(tmp_path: Path) -> None:
    async with both(tmp_path) as (replica, remote):
        for n in range(20):
            await replica.propose(PutSetting(f"k{n}", b"v"), CLIENT)
        term = replica.leadership().term
        await replica.propose(PruneEvents(5, 100, term), SYSTEM)
        async with remote.watch(1, Wanted.of(SettingChanged)) as events:
            with pytest.raises(FellBehind, match="no longer kept"):
                await anext(events)


async def test_a_replica_without_room_is_asked_again(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with replica_at(tmp_path) as replica:
            serving = replica._serving
            usual = serving._settings
            serving._settings = replace(usual, sessions_max=0)
            async with remote_at(tmp_path, replica) as remote:
                with pytest.raises(Unavailable, match="no replica"):
                    await remote.read(GetSetting("k"))
                assert remote.staleness_ms() is None
                serving._settings = usual
                await remote.introduced.wait()
                assert await remote.read(GetSetting("k")) is None


async def test_a_remote_that_takes_nothing_is_cut_off(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with replica_at(tmp_path) as replica, wires_to(replica) as wires:
            serving = replica._serving
            serving._settings = replace(serving._settings, backlog_max=200)
            opening = words.Opening(1, "", 1, (), (EVERYTHING,))
            stream = await wires.open_stream(REPLICA, words.SESSION, words.encode(opening), 3)
            await until(lambda: serving.sessions == 1)
            for n in range(2000):
                await replica.propose(PutSetting("x" * 2000, str(n).encode()), CLIENT)
                if not serving.sessions:
                    break
            assert not serving.sessions and not replica._feed._looking
            with pytest.raises(Refused, match="not taken"):
                while await stream.receive_some():
                    pass


async def test_a_newer_session_takes_the_place_of_an_older(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with replica_at(tmp_path) as replica, wires_to(replica) as wires:
            opening = words.encode(words.Opening(1, "", 1, (), ()))
            first = await wires.open_stream(REPLICA, words.SESSION, opening, 3)
            await until(lambda: replica._serving.sessions == 1)
            second = await wires.open_stream(REPLICA, words.SESSION, opening, 3)
            with pytest.raises(Refused, match="newer"):
                while await first.receive_some():
                    pass
            assert await second.receive_some()
            assert replica._serving.sessions == 1
            await second.aclose()
            await until(lambda: replica._serving.sessions == 0)


@pytest.mark.parametrize(
    "sent", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x03abc", b"\x00\x00\x00\x01\xc1", b"\x00" * 4]
)
async def test_what_is_no_message_ends_the_session_alone(tmp_path: Path, sent: bytes) -> None:
    with trio.fail_after(60):
        async with replica_at(tmp_path) as replica, wires_to(replica) as wires:
            opening = words.encode(words.Opening(1, "", 1, (), ()))
            stream = await wires.open_stream(REPLICA, words.SESSION, opening, 3)
            await stream.send_all(sent)
            with pytest.raises(WireError):
                while await stream.receive_some():
                    pass
            assert replica._serving.sessions == 0
            assert await wires.call(REPLICA, words.KNOCK, b"", 3)


async def test_hostile_asks_are_refused(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with replica_at(tmp_path) as replica, wires_to(replica) as wires:
            mine = RequestId(raft_id_of(REMOTE), 1, 1)
            other = RequestId(raft_id_of(REPLICA), 10**6, 1)
            good = words.encode(Request(mine, CLIENT, PutSetting("k", b"v")))
            forged = words.encode(Request(other, CLIENT, PutSetting("k", b"forged")))
            bodies = {
                words.PROPOSE: [
                    b"", b"\xc1", words.encode([msgspec.Raw(forged)]), words.encode([{"no": 1}]),
                    words.encode([msgspec.Raw(good), msgspec.Raw(forged)]),
                    words.encode([msgspec.Raw(good)] * 2000),
                ],
                words.READ: [
                    b"", words.encode(words.ReadAsk(msgspec.Raw(b"\x80"), False, 0, 1)),
                    words.encode(words.ReadAsk(msgspec.Raw(words.encode("drop")), True, 0, 1)),
                ],
                words.PAST: [
                    b"", words.encode([0, 10, "everything"]),
                    words.encode(words.PastAsk(0, 1, (EVERYTHING,) * 5000)),
                ],
            }  # fmt: skip
            for method, asks in bodies.items():
                for body in asks:
                    with pytest.raises(Refused):
                        await wires.call(REPLICA, method, body, 3)
            many = words.encode(words.Opening(1, "", 1, tuple(range(10**5)), ()))
            for opening in (b"", b"\xc1", many):
                stream = await wires.open_stream(REPLICA, words.SESSION, opening, 3)
                with pytest.raises(Refused):
                    await stream.receive_some()
            elsewhere = words.encode(words.Opening(1, "another swarm", 1, (), ()))
            stream = await wires.open_stream(REPLICA, words.SESSION, elsewhere, 3)
            with pytest.raises(Refused, match="another swarm"):
                await stream.receive_some()
            assert await replica.read(GetSetting("k")) is None
            page = await replica.read(ListEvents(0))
            assert not any(isinstance(e.body, SettingChanged) and e.body.key == "k" for e in page)


async def test_a_read_of_what_is_not_there_yet_ends_in_time(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with replica_at(tmp_path) as replica, wires_to(replica) as wires:
            ask = words.ReadAsk(msgspec.Raw(words.encode(ListNodes())), True, 10**9, 0.2)
            with pytest.raises(Refused, match="does not come so far"):
                await wires.call(REPLICA, words.READ, words.encode(ask), 3)
            assert not replica._serving._reads


async def test_a_swarm_that_was_restored_is_taken_as_it_is(tmp_path: Path) -> None:
    """It stands before what this node has seen: what it saw is no longer true."""
    settings = replace(QUICK, attaching=AttachingSettings(restored_s=0.3, choosing=CHOOSING))
    with trio.fail_after(60):
        async with (
            replica_at(tmp_path) as replica,
            remote_at(tmp_path, replica, settings) as remote,
        ):
            await remote.introduced.wait()
            async with remote.watch(wants=Wanted.of(SettingChanged)) as events:
                remote._attaching.at_least = 10**9
                remote._attaching._seq = 10**9
                with pytest.raises(FellBehind):
                    await anext(events)
            async with remote.watch(wants=Wanted.of(SettingChanged)) as events:
                await remote.propose(PutSetting("k", b"v"), CLIENT)
                with local_reads():
                    assert await remote.read(GetSetting("k")) == b"v"
                assert (await anext(events)).seq < 10**9


async def test_it_stands_as_its_replica_does(tmp_path: Path) -> None:
    async with both(tmp_path) as (replica, remote):
        assert remote.leadership().leader == REPLICA
        assert remote.served_by == REPLICA and remote.replicas == (REPLICA,)
        assert remote.cluster_id == replica.cluster_id
        await until(lambda: set(remote.members) == {REPLICA, REMOTE})
        await remote.propose(PutSetting("k", b"v"), CLIENT)
        await until(lambda: remote.log_view().applied == replica.log_view().applied)
        assert remote.log_view().voters == (REPLICA,)
        assert remote.peer(REPLICA).role == "voter" and remote.peer(REPLICA).alive
        assert remote.peer(REMOTE).role == "agent" and remote.peer(REMOTE).alive
        assert remote.now_ms() >= replica.entry_at
        staleness = remote.staleness_ms()
        assert staleness is not None and staleness < 2000
