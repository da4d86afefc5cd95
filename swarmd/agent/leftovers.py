"""Leftovers: what attempts of a state that is gone have left, ended and cleared away.

Attempts of a new state count from one again; none may meet a record, a log or a process of an
older one under its own number. Cleared before the new state is made: a crash in between repeats it.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import trio

from swarmd.domain.errors import Unavailable
from swarmd.drivers.process import RunnerSettings, open_runner

log = logging.getLogger(__name__)

GONE_S_MAX = 15.0
_STATE_FILES = ("state.db-wal", "state.db-shm")
_OF_A_NODE = ("node-id", "identity")
_RUNNER_FILES = ("exits.log", "exits.log.damaged")


async def clear_leftovers(data_dir: Path) -> None:
    """Called where the data directory holds no state. Jobs that still run there are ended: they
    are nobody's. Unavailable: the runner that holds them does not answer."""
    for name in _STATE_FILES:
        # Replayed into a new state they would be damage.
        (data_dir / name).unlink(missing_ok=True)
    attempts_dir = data_dir / "attempts"
    journals = [data_dir / name for name in _RUNNER_FILES]
    of_a_node = [data_dir / name for name in _OF_A_NODE]
    if not any(path.exists() for path in (attempts_dir, *of_a_node, *journals)):
        return
    log.warning("the state is gone; what its jobs left is cleared, and the node begins anew",
                extra={"data_dir": str(data_dir)})  # fmt: skip
    if any(journal.exists() for journal in journals):
        async with open_runner(data_dir, RunnerSettings()) as runner:
            await runner.quit(jobs=True, grace_s=0)
            with trio.move_on_after(GONE_S_MAX) as waited:
                await runner.gone()
            if waited.cancelled_caught:
                raise Unavailable(
                    "the runner does not end the jobs of a state that is gone; see runner.log in"
                    " the data directory, or choose another with --data-dir"
                )
    for journal in journals:
        journal.unlink(missing_ok=True)
    await trio.to_thread.run_sync(shutil.rmtree, attempts_dir, True)
    # An id is never reused: whoever lost its state is another node.
    of_a_node[0].unlink(missing_ok=True)
    await trio.to_thread.run_sync(shutil.rmtree, of_a_node[1], True)
