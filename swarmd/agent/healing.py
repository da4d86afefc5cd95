"""Healing: a node tells how its host is, and does to it what the swarm has agreed to do; nothing
else, whoever asks."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from functools import partial

import trio

from swarmd.cluster.asks import ActOnHost, ProbeHost
from swarmd.cluster.handle import Cluster
from swarmd.domain.care import CareAction, action_text
from swarmd.domain.errors import Conflict, Unavailable
from swarmd.domain.probes import Probed, probe_command, read_probe
from swarmd.state.care_queries import ListCare

PROBE_S_MAX = 20.0
"""Longer than anybody waits for it."""
ACT_S_MAX = 30.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def answer_care(cluster: Cluster, service: str, paths: tuple[str, ...]) -> None:
    """Have this node answer for its host. `service` is what it runs as itself."""
    cluster.answers(ProbeHost, partial(_probe, paths))
    cluster.answers(ActOnHost, partial(_act, cluster, service))


async def _probe(paths: tuple[str, ...], ask: ProbeHost) -> Probed:
    # Who answers runs.
    _, said = await _run(probe_command(None, paths=paths), PROBE_S_MAX)
    return read_probe(said)


async def _act(cluster: Cluster, service: str, ask: ActOnHost) -> None:
    await _check(cluster, ask.action)
    text = action_text(ask.action, service, from_within=True)
    code, said = await _run(text, ACT_S_MAX)
    if code != 0:
        words = said.decode("utf-8", "replace").strip()[-500:]
        raise Unavailable(f"it ended with exit code {code}: {words}")


async def _check(cluster: Cluster, action: CareAction) -> None:
    """That it is to be done here and now is in the log, or it is not done."""
    for each in await cluster.read(ListCare()):
        if each.node.id == cluster.node.id and each.care.under_way and each.care.action is action:
            return
    raise Conflict(f"nobody has agreed on this: {action.value}")


async def _run(text: str, limit_s: float) -> tuple[int, bytes]:
    with trio.move_on_after(limit_s):
        try:
            ran = await trio.run_process(
                ["/bin/sh", "-c", text], capture_stdout=True, stderr=subprocess.STDOUT,
                env={"PATH": os.environ.get("PATH", PATH), "LC_ALL": "C"}, check=False,
                start_new_session=True, deliver_cancel=_end,
            )  # fmt: skip
        except OSError as error:
            raise Unavailable(f"this host runs no shell: {error.strerror}") from None
        return ran.returncode, ran.stdout
    raise Unavailable(f"this host did not come to say or do it within {limit_s:g} s")


async def _end(process: trio.Process) -> None:
    """With what it has started, which may wait for a disk that is gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
