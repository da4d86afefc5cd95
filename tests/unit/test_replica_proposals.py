"""Proposals: what is sent, to whom, how often, and which word stands at the end of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from mesh.wires import Refused, TimedOut, Unreachable, WireError
from swarmd.cluster.handle import Leadership
from swarmd.cluster.proposals import (
    FORWARD_REQUESTS_MAX,
    FORWARDS_MAX,
    METHOD,
    Proposals,
    ProposalSettings,
)
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Busy, Conflict, NotFound, SwarmError, TooLarge, Unavailable
from swarmd.domain.jobs import ENTRY_BYTES_MAX, NodeId
from swarmd.state.commands import PruneEvents, PutSetting, Request, RequestId
from swarmd.state.machine import Applied
from swarmd.state.requests import _kept
from swarmd.state.store import encode_request

CLIENT = Actor("client", "test")
ME, OTHER, THIRD = NodeId("me"), NodeId("other"), NodeId("third")
ORIGIN, BOOT = 7, 3

Answer = Callable[[list[Request]], Awaitable[bytes]]


class Log:
    """The way into the log of this node, which leads or not."""

    def __init__(self, leader: NodeId | None, term: int = 1) -> None:
        self.standing = Leadership(leader, term, leader == ME)
        self.taken: list[Request] = []
        self.refusal: SwarmError | None = None
        self.version = 1

    def enter(self, requests: Sequence[msgspec.Raw]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.taken += _requests(requests)

    def leadership(self) -> Leadership:
        return self.standing

    def cluster_version(self) -> int:
        return self.version


class Wire:
    """Calls to other nodes, each answered as the test says."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.answers: dict[str, Answer] = {}

    async def call(self, peer: str, method: str, body: bytes, timeout_s: float) -> bytes:
        assert method == METHOD
        requests = _requests(msgspec.msgpack.decode(body, type=list[msgspec.Raw]))
        self.calls.append((peer, [request.id.seq for request in requests]))
        with trio.move_on_after(timeout_s):
            return await self.answers[peer](requests)
        raise TimedOut("no answer in time", handed_over=True)


def _requests(raw: Sequence[msgspec.Raw]) -> list[Request]:
    return [msgspec.msgpack.decode(each, type=Request) for each in raw]


class Bench:
    def __init__(self, leader: NodeId | None, settings: ProposalSettings) -> None:
        self.log, self.wire = Log(leader), Wire()
        self.proposals = Proposals(ME, ORIGIN, BOOT, self.log, self.wire, settings)  # type: ignore[arg-type]
        self.nursery: trio.Nursery

    def lead(self, leader: NodeId | None, term: int) -> None:
        self.log.standing = Leadership(leader, term, leader == ME)
        self.proposals.leader_changed()

    def apply(self, seq: int, value: Any = None, refusal: SwarmError | None = None) -> None:
        self.proposals.deliver([Applied(RequestId(ORIGIN, BOOT, seq), value, refusal, [])])

    async def put(self, key: str = "k") -> Any:
        return await self.proposals.put(PutSetting(key, b"v"), CLIENT)


@asynccontextmanager
async def bench(leader: NodeId | None, **settings: Any) -> AsyncIterator[Bench]:
    made = Bench(leader, ProposalSettings(**settings))
    async with trio.open_nursery() as made.nursery:
        made.nursery.start_soon(made.proposals.run)
        yield made
        made.nursery.cancel_scope.cancel()


async def silence(requests: list[Request]) -> bytes:
    await trio.sleep_forever()
    raise AssertionError


async def takes(requests: list[Request]) -> bytes:
    return b""


def refuses(error: WireError) -> Answer:
    async def answer(requests: list[Request]) -> bytes:
        raise error

    return answer


async def test_the_answer_is_what_this_node_applied(autojump_clock: MockClock) -> None:
    async with bench(ME) as it:
        it.nursery.start_soon(_apply_when_taken, it, b"1")
        assert await it.put() == b"1"
        assert [r.id for r in it.log.taken] == [RequestId(ORIGIN, BOOT, 1)]
        assert it.proposals.waiting() == ()


async def test_a_leader_that_took_it_has_not_done_it_yet(autojump_clock: MockClock) -> None:
    """Who is answered reads its own write on this node."""
    async with bench(OTHER) as it:
        it.wire.answers[OTHER] = takes
        done = False

        async def put() -> None:
            nonlocal done
            await it.put()
            done = True

        it.nursery.start_soon(put)
        await trio.sleep(2)
        assert it.wire.calls == [(OTHER, [1])]
        assert not done
        it.apply(1)
        await trio.sleep(0.1)
        assert done


async def _apply_when_taken(it: Bench, value: bytes) -> None:
    while not it.log.taken:
        await trio.sleep(0.01)
    it.apply(it.log.taken[-1].id.seq, value)


async def test_a_refusal_of_the_machine_is_raised(autojump_clock: MockClock) -> None:
    async with bench(OTHER) as it:

        async def refused(requests: list[Request]) -> bytes:
            it.apply(1, refusal=NotFound("no such job"))
            return b""

        it.wire.answers[OTHER] = refused
        with pytest.raises(NotFound, match="no such job"):
            await it.put()


async def test_what_others_asked_for_is_not_mistaken_for_ones_own(
    autojump_clock: MockClock,
) -> None:
    async with bench(OTHER, wait_s_max=1) as it:

        async def others(requests: list[Request]) -> bytes:
            for origin, boot in ((8, BOOT), (ORIGIN, BOOT - 1)):
                it.proposals.deliver([Applied(RequestId(origin, boot, 1), b"?", None, [])])
            repeated = Applied(RequestId(ORIGIN, BOOT, 1), None, None, [], repeated=True)
            it.proposals.deliver([repeated])
            return b""

        it.wire.answers[OTHER] = others
        with pytest.raises(Unavailable):
            await it.put()


async def test_those_that_come_together_go_together(autojump_clock: MockClock) -> None:
    async with bench(OTHER) as it:

        async def done(requests: list[Request]) -> bytes:
            for request in requests:
                it.apply(request.id.seq)
            return b""

        it.wire.answers[OTHER] = done
        async with trio.open_nursery() as nursery:
            for n in range(1000):
                nursery.start_soon(it.put, f"k{n}")
        assert len(it.wire.calls) <= 3
        assert max(len(seqs) for _, seqs in it.wire.calls) == FORWARD_REQUESTS_MAX
        assert [s for _, seqs in it.wire.calls for s in seqs] == list(range(1, 1001))


async def test_without_a_leader_nothing_was_changed(autojump_clock: MockClock) -> None:
    async with bench(None) as it:
        began = trio.current_time()
        with pytest.raises(Unavailable, match=r"nobody leads.*nothing was changed"):
            await it.put()
        assert trio.current_time() - began == pytest.approx(10)
        assert it.proposals.waiting() == ()


async def test_it_waits_for_whoever_is_elected(autojump_clock: MockClock) -> None:
    async with bench(None) as it:

        async def elect() -> None:
            await trio.sleep(3)
            it.lead(ME, 2)
            await _apply_when_taken(it, b"1")

        it.nursery.start_soon(elect)
        assert await it.put() == b"1"


async def test_one_that_could_not_be_told_changed_nothing(autojump_clock: MockClock) -> None:
    async with bench(OTHER) as it:
        it.wire.answers[OTHER] = refuses(Unreachable("refused", handed_over=False))
        with pytest.raises(Unavailable, match="nothing was changed"):
            await it.put()
        assert len(it.wire.calls) > 50  # it was tried again all the while


@pytest.mark.parametrize(
    "later",
    [
        Unreachable("refused", handed_over=False),
        Refused("unavailable", "this node does not lead"),
        Refused("busy", "too much is under way"),
    ],
)
async def test_what_one_leader_was_told_may_be_done_whatever_came_later(
    autojump_clock: MockClock, later: WireError
) -> None:
    """The first call broke off after the request had left: from then on nobody may say no."""
    async with bench(OTHER) as it:
        answers = iter([TimedOut("no answer in time", handed_over=True)])

        async def answer(requests: list[Request]) -> bytes:
            raise next(answers, later)

        it.wire.answers[OTHER] = answer
        with pytest.raises(Unavailable, match="not known"):
            await it.put()
        assert len(it.wire.calls) > 2


async def test_while_a_call_is_out_nobody_knows(autojump_clock: MockClock) -> None:
    async with bench(OTHER, wait_s_max=1, forward_timeout_s=5) as it:
        it.wire.answers[OTHER] = silence
        with pytest.raises(Unavailable, match="not known"):
            await it.put()


async def test_a_leader_that_breaks_down_over_it_may_have_it(autojump_clock: MockClock) -> None:
    async with bench(OTHER, wait_s_max=1) as it:
        it.wire.answers[OTHER] = refuses(Refused("failed", "the handler broke"))
        with pytest.raises(Unavailable, match="not known"):
            await it.put()


async def test_busy_is_told_at_once_and_nothing_was_done(autojump_clock: MockClock) -> None:
    async with bench(OTHER) as it:
        it.wire.answers[OTHER] = refuses(Refused(Busy.code, "too much is under way"))
        began = trio.current_time()
        with pytest.raises(Busy):
            await it.put()
        assert trio.current_time() - began < 0.1
        assert len(it.wire.calls) == 1
    async with bench(ME) as it:
        it.log.refusal = Busy("too much", retry_after_s=4)
        with pytest.raises(Busy) as busy:
            await it.put()
        assert busy.value.retry_after_s == 4


async def test_over_the_bound_none_is_taken(autojump_clock: MockClock) -> None:
    async with bench(None, in_flight_max=3, wait_s_max=1) as it:
        refusals: list[type[SwarmError]] = []

        async def put() -> None:
            try:
                await it.put()
            except SwarmError as refusal:
                refusals.append(type(refusal))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(put)
        assert sorted(r.__name__ for r in refusals) == ["Busy"] * 2 + ["Unavailable"] * 3
        with pytest.raises(Unavailable):
            await it.put()  # who has given up holds no place


async def test_who_goes_away_holds_no_place(autojump_clock: MockClock) -> None:
    async with bench(None, in_flight_max=1) as it:
        with trio.move_on_after(1):
            await it.put()
        assert it.proposals.waiting() == ()


async def test_what_is_too_large_is_refused_before_it_is_sent(autojump_clock: MockClock) -> None:
    async with bench(ME) as it:
        with pytest.raises(TooLarge) as refusal:
            await it.proposals.put(PutSetting("k", bytes(ENTRY_BYTES_MAX)), CLIENT)
        assert refusal.value.facts["bytes_max"] == ENTRY_BYTES_MAX
        assert it.log.taken == [] and it.proposals.waiting() == ()


async def test_what_fits_by_a_byte_is_taken(autojump_clock: MockClock) -> None:
    async with bench(ME, wait_s_max=1) as it:
        request = Request(RequestId(ORIGIN, BOOT, 1), CLIENT, PutSetting("k", bytes(100_000)))
        room = ENTRY_BYTES_MAX - (len(encode_request(request)) - 100_000)
        with pytest.raises(Unavailable):
            await it.proposals.put(PutSetting("k", bytes(room)), CLIENT)
        assert len(it.log.taken) == 1
        with pytest.raises(TooLarge):
            await it.proposals.put(PutSetting("k", bytes(room + 1)), CLIENT)


async def test_a_leaders_own_command_is_refused_when_it_leads_no_longer(
    autojump_clock: MockClock,
) -> None:
    async with bench(OTHER) as it:
        it.wire.answers[OTHER] = takes
        for leader, term in ((OTHER, 5), (ME, 6), (None, 5)):
            it.lead(leader, term)
            with pytest.raises(Conflict, match="another term"):
                await it.proposals.put(PruneEvents(1, 1, term=5), CLIENT)
        assert it.wire.calls == [] and it.log.taken == []


async def test_a_leaders_own_command_ends_with_its_term(autojump_clock: MockClock) -> None:
    """Where it may be in the log, the word is another."""
    for refusal, word, kind in (
        (None, "not known", Unavailable),
        (Unavailable("handing over"), "leads no longer", Conflict),
    ):
        async with bench(ME) as it:
            it.log.refusal = refusal

            async def lose(it: Bench = it) -> None:
                await trio.sleep(0.2)
                it.lead(OTHER, 2)

            it.nursery.start_soon(lose)
            with pytest.raises(kind, match=word):
                await it.proposals.put(PruneEvents(1, 1, term=1), CLIENT)
            assert it.wire.calls == []


async def test_after_a_change_of_leaders_all_is_sent_again(autojump_clock: MockClock) -> None:
    async with bench(OTHER) as it:
        it.wire.answers[OTHER] = takes
        it.wire.answers[THIRD] = takes
        for n in range(3):
            it.nursery.start_soon(it.put, f"k{n}")
        await trio.sleep(1)
        it.apply(2)
        await trio.sleep(0.1)
        it.lead(THIRD, 2)
        await trio.sleep(0.1)
        assert it.wire.calls == [(OTHER, [1, 2, 3]), (THIRD, [1, 3])]
        it.apply(1)
        it.apply(3)


async def test_nobody_waits_for_a_leader_of_before(autojump_clock: MockClock) -> None:
    """Its link is cut, all the calls that may be are out: the next leader is told all the same."""
    async with bench(OTHER, forward_timeout_s=8) as it:
        it.wire.answers[OTHER] = silence
        told: set[int] = set()

        async def third(requests: list[Request]) -> bytes:
            told.update(request.id.seq for request in requests)
            for request in requests:
                it.apply(request.id.seq)
            return b""

        it.wire.answers[THIRD] = third
        for n in range(FORWARDS_MAX + 5):
            it.nursery.start_soon(it.put, f"k{n}")
            await trio.sleep(0.01)  # each on its own
        assert len(it.wire.calls) == FORWARDS_MAX
        it.lead(None, 1)
        await trio.sleep(0.1)
        it.lead(THIRD, 2)
        await trio.sleep(0.1)
        assert told == set(range(1, FORWARDS_MAX + 6))


async def test_what_was_said_to_change_nothing_is_not_sent_any_more(
    autojump_clock: MockClock,
) -> None:
    """Its deadline passed while it waited for its turn, behind calls that take longer."""
    async with bench(OTHER, wait_s_max=1.0, forward_timeout_s=3.0) as it:
        it.wire.answers[OTHER] = silence
        refusals: list[str] = []

        async def put(key: str) -> None:
            with pytest.raises(Unavailable) as refused:
                await it.put(key)
            refusals.append(refused.value.message)

        for n in range(FORWARDS_MAX + 2):
            it.nursery.start_soon(put, f"k{n}")
            await trio.sleep(0.01)  # each on its own
        await trio.sleep(5)
        untold = [n for n, why in enumerate(refusals, 1) if "nothing was changed" in why]
        assert untold == [FORWARDS_MAX + 1, FORWARDS_MAX + 2]
        assert not {seq for _, seqs in it.wire.calls for seq in seqs}.intersection(untold)


async def test_what_became_of_it_is_known_from_a_copy_of_the_state(
    autojump_clock: MockClock,
) -> None:
    async with bench(OTHER) as it:
        it.wire.answers[OTHER] = takes
        found: dict[int, Any] = {}

        async def put(seq: int) -> None:
            try:
                found[seq] = await it.put()
            except SwarmError as refusal:
                found[seq] = type(refusal)

        for seq in (1, 2, 3):
            it.nursery.start_soon(put, seq)
            await trio.sleep(0.1)
        kept = [
            (1, _kept(b"done", None)), (2, _kept(None, Conflict("no"))),
            (3, _kept(b"x" * 5000, None)), (99, _kept(None, None)),
        ]  # fmt: skip
        it.proposals.deliver_kept(kept)
        await trio.sleep(0.1)
        assert found == {1: b"done", 2: Conflict, 3: Unavailable}
        assert it.proposals.waiting() == ()


async def test_a_command_of_a_newer_version_waits_for_all_nodes(
    autojump_clock: MockClock,
) -> None:
    async with bench(ME) as it:
        it.log.version = 0
        with pytest.raises(Unavailable, match="being upgraded"):
            await it.put()
        assert it.log.taken == []
