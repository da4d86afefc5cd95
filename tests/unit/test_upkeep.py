"""Upkeep: what is too old is forgotten though nobody asks for anything, and without a word to the
log where there is nothing to forget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import trio
import trio.testing

from swarmd.cluster.handle import Cluster
from swarmd.control.upkeep import PRUNE_EVERY_S, UpkeepSettings, prune
from swarmd.domain.actors import Actor
from swarmd.domain.terminals import KEPT_MS
from swarmd.state.command import Command
from swarmd.state.queries import Query
from swarmd.state.terminal_commands import ForgetTerminals
from swarmd.state.versions import TERMINALS_SINCE
from tests.unit.test_state_terminals import Terminals


class Alone:
    """As much of a cluster as upkeep needs, with a state of its own."""

    def __init__(self) -> None:
        self.state = Terminals()
        self.version = TERMINALS_SINCE
        self.proposed: list[Command[Any]] = []

    def cluster_version(self) -> int:
        return self.version

    def now_ms(self) -> int:
        return self.state.now

    async def read(self, query: Query[Any]) -> Any:
        return self.state.ask(query)

    async def propose(self, command: Command[Any], actor: Actor) -> Any:
        await trio.lowlevel.checkpoint()
        self.proposed.append(command)
        return self.state.apply(command)

    @property
    def forgetting(self) -> list[Command[Any]]:
        return [each for each in self.proposed if isinstance(each, ForgetTerminals)]

    async def look(self) -> None:
        """Once."""
        with trio.move_on_after(PRUNE_EVERY_S / 2):
            await prune(cast(Cluster, self), 1, UpkeepSettings())


@pytest.fixture
def alone() -> Iterator[Alone]:
    made = Alone()
    yield made
    made.state.check_counts()
    made.state.conn.close()


async def test_recordings_go_by_age_though_nobody_opens_a_terminal(
    alone: Alone, autojump_clock: trio.testing.MockClock
) -> None:
    state = alone.state
    state.begin("last")
    state.end("last", "a" * 64)
    state.now += KEPT_MS
    await alone.look()
    assert state.kept() == ["last"] and not alone.forgetting
    state.now += 1
    await alone.look()
    assert state.kept() == [] and state.blob("a" * 64) == (0, True)
    await alone.look()
    assert len(alone.forgetting) == 1


async def test_many_go_a_few_at_a_time(
    alone: Alone, autojump_clock: trio.testing.MockClock
) -> None:
    for number in range(250):
        alone.state.begin(str(number))
    alone.state.now += KEPT_MS + 1
    await alone.look()
    assert alone.state.kept() == [] and len(alone.forgetting) == 3


async def test_an_older_swarm_hears_nothing_of_them(
    alone: Alone, autojump_clock: trio.testing.MockClock
) -> None:
    alone.version = TERMINALS_SINCE - 1
    alone.state.begin()
    alone.state.now += KEPT_MS + 1
    await alone.look()
    assert alone.state.kept() == ["one"] and not alone.forgetting
