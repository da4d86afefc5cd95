"""The log of events in the machine: pruned by what the log of entries says, and by nothing else."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from swarmd.domain.actors import Actor
from swarmd.state import commands as c
from swarmd.state.machine import Machine, dump_hash
from swarmd.state.schema import migrate

KEEP, LIMIT = 4, 5


def history() -> list[c.Entry]:
    """Twelve events, pruned in between and at the end."""
    commands: list[c.AnyCommand] = []
    for number in range(12):
        commands.append(c.PutSetting(f"k{number}", b"v"))
        if number in (5, 6, 11):
            commands.append(c.PruneEvents(KEEP, LIMIT, 1))
    actor = Actor("t", "test")
    return [c.Entry(i, 1, 1000 + i, actor, command) for i, command in enumerate(commands, 1)]


def pruned(batch: int) -> tuple[str, list[object]]:
    """The dump, and what each pruning answered, with the entries in batches of such a size."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        migrate(conn)
        machine = Machine(conn)
        entries, answers = history(), list[object]()
        for at in range(0, len(entries), batch):
            part = entries[at : at + batch]
            for entry, applied in zip(part, machine.apply(part), strict=True):
                if isinstance(entry.command, c.PruneEvents):
                    answers.append(applied.value)
        return dump_hash(conn), answers


@pytest.mark.parametrize("batch", [2, 3, 5, 7, 15])
def test_what_is_pruned_does_not_depend_on_how_entries_come_together(batch: int) -> None:
    """Replicas apply the same entries in batches of their own."""
    alone = pruned(1)
    assert alone[1] == [2, 1, LIMIT]
    assert pruned(batch) == alone
