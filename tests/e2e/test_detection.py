"""Twenty nodes on a host whose processors are all taken: nobody is called dead who lives, and who
is killed is known dead to all. `make soak` looks on for ten minutes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.swarms import Node, running_swarm, until

# One at a time: they would only measure each other.
pytestmark = pytest.mark.xdist_group("swarm")
COUNT = 20
LOAD = 6
"""Processes that take what they get, beside the nodes."""
CALM_S = float(os.environ.get("SWARMD_SOAK_CALM_S", "60"))
LOOK_S = 5.0
DEAD_S_MAX = 120.0


@contextmanager
def load(count: int) -> Iterator[None]:
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def deaths(node: Node) -> list[str]:
    """What its log says of them, from its beginning."""
    lines = (node.folder / "swarmd.stderr").read_text(errors="replace").splitlines()
    return [line for line in lines if "a member is dead" in line]


def test_nobody_is_called_dead_who_lives(tmp_path: Path) -> None:
    with running_swarm(tmp_path, COUNT, first=131, mesh={"profile": "lan"}) as swarm:
        with load(LOAD):
            ends = time.monotonic() + CALM_S
            while (left_s := ends - time.monotonic()) > 0:
                time.sleep(min(LOOK_S, left_s))  # the length of the calm is what is tried
                assert not {n.name: said for n in swarm.nodes if (said := deaths(n))}
            killed = swarm.followers()[-1]
            killed.kill()
            others = [n for n in swarm.nodes if n is not killed]
            until(
                lambda: all(any(killed.name in said for said in deaths(n)) for n in others),
                f"{killed.name} is not dead to all", DEAD_S_MAX,
            )  # fmt: skip
            # Of whom the log speaks, and nobody else.
            assert all(killed.name in said for n in others for said in deaths(n))
