"""Scenarios: a swarm that somebody described, its work, and what is to befall it; lived through in
one go, and told.

It opens no socket and knows no real node: what it writes is in a directory of its own, which is
gone afterwards.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from swarmd import __version__
from swarmd.cluster.opening import OpeningSettings
from swarmd.domain.errors import Invalid
from swarmd.sim.building import Yard
from swarmd.sim.estate import DRAWN, Blows, Estate
from swarmd.sim.exported import Exported
from swarmd.sim.faults import Fault
from swarmd.sim.report import Seen, document, summarize, told_waiting
from swarmd.sim.story import Story
from swarmd.sim.topology import Load, Topology, listed
from swarmd.sim.waiting import look
from swarmd.sim.work import Pause, Work
from swarmd.sim.world import run_in

MINUTES_MIN, MINUTES_MAX = 0.05, 1440.0
JOBS_MAX = 200_000
"""That may come in all: each is remembered."""
SETTLE_S = 3.0
"""From when all have met to where the story begins."""
TELL_EVERY_S = 0.25
LAST_WORDS_S = 60.0
"""Of simulated time, for what is asked of the nodes at the end."""
BEFORE_S_MAX = 3600.0
"""Until all have met."""
MEET_S, MEET_SQUARE_S = 0.055, 0.000065
LIVE_S, LIVE_SQUARE_S = 0.005, 0.000004
"""What the estimate goes by: seconds a node, and a pair of nodes, until all have met, and then for
each simulated second."""
BASE_BYTES, NODE_BYTES, PAIR_BYTES = 70 << 20, 1300 << 10, 3 << 10
"""Every node knows every other."""


@dataclass(frozen=True)
class Scenario:
    topology: Topology
    title: str
    """What it is about, in a few words."""
    seed: int = 1
    seconds: float = 120.0
    load: tuple[Load, ...] = ()
    exported: Exported | None = None
    usual_s: float = 30.0
    """How long jobs run of which nothing else is known."""
    kill: tuple[str, ...] = ()
    """Nodes and builders."""
    kill_at_s: float = 0.0
    back_after_s: float | None = None
    faults: str = "none"
    schedule: tuple[Fault, ...] = ()

    def check(self) -> None:
        """Invalid: something is out of bounds, or contradicts itself."""
        check_seconds(self.seconds)
        if self.kill and not 0 <= self.kill_at_s < self.seconds:
            raise Invalid(
                f"the nodes are to be gone at {self.kill_at_s:g} s, and the scenario lasts"
                f" {self.seconds:g} s; choose a moment within, or more minutes"
            )
        if self.back_after_s is not None:
            if not self.kill:
                raise Invalid("who is to come back has to go first: say who, with --kill")
            if not 0 < self.back_after_s < self.seconds - self.kill_at_s:
                raise Invalid(
                    f"the nodes would be back {self.back_after_s:g} s after {self.kill_at_s:g} s,"
                    f" and the scenario lasts {self.seconds:g} s"
                )
        for number, fault in enumerate(self.schedule, 1):
            if fault.at_s >= self.seconds:
                raise Invalid(
                    f"fault {number} comes at {fault.at_s:g} s, and the scenario lasts"
                    f" {self.seconds:g} s; choose a moment within, or more minutes"
                )
        come = sum(each.jobs_a_minute for each in self.load) * self.seconds / 60
        if come > JOBS_MAX:
            raise Invalid(
                f"about {come:.0f} jobs would come, and at most {JOBS_MAX} may; choose fewer a"
                " minute, or fewer minutes"
            )

    def notes(self) -> list[str]:
        """What is taken for granted, a line each."""
        told = [
            f"load     {each.jobs_a_minute:g} jobs a minute of type {each.name}, of"
            f" {each.length_s[0]:g} to {each.length_s[1]:g} s"
            for each in self.load
        ]
        if (found := self.exported) is not None:
            known = {job.spec.type for job in found.jobs if job.spec.type in found.lengths_s}
            types = {job.spec.type for job in found.jobs}
            ran = sum(job.ran_s is not None for job in found.jobs)
            waited = len(found.jobs) - ran
            told.append(
                f"state    as of entry {found.index}: {len(found.topology.nodes)} nodes, voters"
                f" {listed(found.voters) or 'unknown'}; open jobs that ran {ran}, that waited"
                f" {waited}"
            )
            told.append(
                f"lengths  from their history for {len(known)} of {len(types)} types of job, else"
                f" about {self.usual_s:g} s"
            )
            told += found.builds.notes(self.usual_s)
            told += [f"left out {count} {what}" for what, count in sorted(found.left_out.items())]
        return told

    def facts(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "version": __version__,
            "seed": self.seed,
            "seconds": self.seconds,
            "nodes": len(self.topology.nodes),
            "builders": [] if self.exported is None else self.exported.builds.names(),
            "slots": sum(node.capacity.slots for node in self.topology.nodes),
            "notes": self.notes(),
            "kill": list(self.kill),
            "kill_at_s": self.kill_at_s if self.kill else None,
            "back_after_s": self.back_after_s,
            "faults": self.faults,
            "faults_planned": len(self.schedule),
        }


def check_seconds(seconds: float) -> None:
    if not MINUTES_MIN <= seconds / 60 <= MINUTES_MAX:
        raise Invalid(
            f"a scenario lasts {MINUTES_MIN:g} to {MINUTES_MAX:g} minutes, not {seconds / 60:g}"
        )


def estimate(nodes: int, seconds: float) -> tuple[float, int]:
    """About how long a run takes, in seconds, and how much memory: as measured on one machine."""
    meet_s = MEET_S * nodes + MEET_SQUARE_S * nodes**2
    live_s = (LIVE_S * nodes + LIVE_SQUARE_S * nodes**2) * seconds
    return meet_s + live_s, BASE_BYTES + NODE_BYTES * nodes + PAIR_BYTES * nodes**2


@dataclass
class Progress:
    """How far a run has come, for whoever waits for it."""

    nodes: int
    seconds: float
    met: int = 0
    lived_s: float = 0.0


@dataclass
class Stop:
    """Ends a run from without; a signal's handler may call it. Who sends a second one has waited
    long enough: it ends the process."""

    asked: bool = False
    _scope: trio.CancelScope | None = None
    _token: trio.lowlevel.TrioToken | None = None

    def __call__(self, number: int | None = None, *_: object) -> None:
        if self.asked and number is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.asked = True
        if self._token is not None and self._scope is not None:
            self._token.run_sync_soon(self._scope.cancel)

    def attach(self, scope: trio.CancelScope) -> None:
        self._scope, self._token = scope, trio.lowlevel.current_trio_token()
        if self.asked:
            scope.cancel()

    def detach(self) -> None:
        self._scope = self._token = None


@dataclass
class Run:
    """One scenario, once."""

    scenario: Scenario
    stop: Stop = field(default_factory=Stop)
    tell: Callable[[Progress], None] = lambda progress: None
    """Called now and then; it must not change anything."""
    _seen: Seen | None = None
    _progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.scenario.check()
        self._progress = Progress(len(self.scenario.topology.nodes), self.scenario.seconds)

    def live(self) -> dict[str, Any]:
        """To its end, or until it is stopped, or something in it fails, as where a rule is broken
        that holds for every swarm: the document of what was seen."""
        broken: str | None = None
        with tempfile.TemporaryDirectory(prefix="swarmd-bottle-") as folder:
            try:
                run_in(Estate, self.scenario.seed, Path(folder), self._body, OpeningSettings())
            except (Exception, BaseExceptionGroup) as error:
                broken = f"{type(error).__name__}: {error}"
        ended = "broken" if broken else "interrupted" if self.stop.asked else "as planned"
        seen = self._seen
        return document(self.scenario.facts(), seen, ended, broken)

    async def _body(self, estate: Estate) -> None:
        """A world bounds its body by less than a day: this one has a bound of its own."""
        bound_s = BEFORE_S_MAX + self.scenario.seconds
        with trio.CancelScope(shield=True, deadline=trio.current_time() + bound_s) as scope:
            estate.background(partial(_end_with_the_world, scope))
            self.stop.attach(scope)
            seen = self._seen = self._begin(estate)
            try:
                await self._live(seen)
            finally:
                self.stop.detach()
                self._conclude(seen)
        if seen.began:
            await self._ask_why(estate, seen)

    async def _ask_why(self, estate: Estate, seen: Seen) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + LAST_WORDS_S) as scope:
            estate.background(partial(_end_with_the_world, scope))
            builders = () if seen.yard is None else seen.yard.there()
            waiting, more = await look(estate, seen.story, builders)
            assert seen.summary is not None
            seen.summary |= told_waiting(waiting, more)

    def _begin(self, estate: Estate) -> Seen:
        story = Story(estate)

        def paused(pause: Pause) -> None:
            lasted_s = pause.until - pause.since
            story.tell("writes", f"a write is taken again, after {lasted_s:.1f} s")

        scenario, yard = self.scenario, None
        if scenario.exported is not None and scenario.exported.builds:
            yard = Yard(
                estate, scenario.exported.builds, scenario.seed, scenario.usual_s,
                story.tally.packages,
            )  # fmt: skip
        return Seen(story, Work(estate, scenario.seed, paused), estate, yard)

    def _conclude(self, seen: Seen) -> None:
        if seen.began:
            seen.story.gather()
            if not seen.work.taken():
                since_s = seen.work.waiting_s()
                seen.story.tell("writes", f"no write was taken for the last {since_s:.1f} s")
            seen.lasted_s = seen.story.now_s
            seen.summary = summarize(seen)

    async def _live(self, seen: Seen) -> None:
        scenario, estate, story, work = self.scenario, seen.estate, seen.story, seen.work
        exported = scenario.exported
        first = () if exported is None else exported.replicas
        await estate.arrive(scenario.topology, first, self._came)
        if exported is not None:
            await work.bring(exported, scenario.usual_s)
        if seen.yard is not None:
            await seen.yard.bring()
        async with trio.open_nursery() as nursery:
            if seen.yard is not None:
                nursery.start_soon(seen.yard.live)
            for load in scenario.load:
                nursery.start_soon(work.come, load)
            await trio.sleep(SETTLE_S)
            seen.met_s, seen.began = trio.current_time(), True
            story.begin()
            nursery.start_soon(story.watch, scenario.seconds)
            nursery.start_soon(work.try_writes)
            nursery.start_soon(self._befall, seen)
            nursery.start_soon(self._tell_progress, story)
            await trio.sleep(scenario.seconds)
            nursery.cancel_scope.cancel()

    async def _befall(self, seen: Seen) -> None:
        story, yard, scenario = seen.story, seen.yard, self.scenario
        blows = Blows(seen.estate, story.tell_fault, drawn=scenario.faults in DRAWN)
        builders = () if yard is None else yard.named(scenario.kill)
        nodes = tuple(name for name in scenario.kill if name not in builders)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blows.befall, scenario.schedule)
            if not scenario.kill:
                return
            await trio.sleep(scenario.kill_at_s)
            story.tell("gone", _lost(scenario.kill, story, yard), scenario.kill)
            if yard is not None:
                yard.take(builders)
            await blows.take(nodes)
            if scenario.back_after_s is not None:
                await trio.sleep(scenario.back_after_s)
                have = "has" if len(scenario.kill) == 1 else "have"
                words = f"{listed(scenario.kill)} {have} power again"
                story.tell("back", words, scenario.kill)
                if yard is not None:
                    yard.give_back(builders)
                await blows.give_back(nodes)

    def _came(self, count: int) -> None:
        self._progress.met = count
        self.tell(self._progress)

    async def _tell_progress(self, story: Story) -> None:
        while True:
            self._progress.lived_s = story.now_s
            self.tell(self._progress)
            await trio.sleep(TELL_EVERY_S)


async def _end_with_the_world(scope: trio.CancelScope) -> None:
    """A shield keeps out the world's own end as well, which comes early where a rule is broken."""
    try:
        await trio.sleep_forever()
    finally:
        scope.cancel()


def _lost(names: tuple[str, ...], story: Story, yard: Yard | None) -> str:
    voters = () if story.view is None else story.named(story.view.voters)
    roles = [f"{story.leading.name} leads"] if story.leading.name in names else []
    if voting := [name for name in voters if name in names]:
        roles.append(f"{listed(voting)} {'votes' if len(voting) == 1 else 'vote'}")
    if yard is not None:
        roles += [f"{name} builds {task}" for name, task in yard.tasks(names)]
    about = f" ({'; '.join(roles)})" if roles else ""
    return f"{listed(names)} {'loses' if len(names) == 1 else 'lose'} power{about}"
