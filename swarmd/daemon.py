"""The process around a node: started, told to be ready, stopped by a signal, ended by a refusal."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence

import trio

from mesh.raft import RaftError
from mesh.wal_errors import LogError
from mesh.wires import WireError
from swarmd.belonging import StartAgain
from swarmd.config import Config
from swarmd.domain.errors import SwarmError, leaves
from swarmd.node import RunningNode, open_node
from swarmd.notify import READY, STOPPING, WATCHDOG, Notifier, take_notifier

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""The writer's thread must not keep the loop from the interpreter for longer than a request may."""
LIVES_MAX = 3
"""So often a process begins anew as another node; after that somebody has to look at it."""


def run(config: Config) -> int:
    """Run a node until it is told to stop. The exit status: 0, or 1 with the reason on stderr."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    manager = take_notifier(os.environ, os.getpid())
    for _ in range(LIVES_MAX):
        refused = _live(config, manager)
        gc.unfreeze()
        if not any(isinstance(refusal, StartAgain) for refusal in refused):
            break
        log.warning("this node starts anew", extra={"reason": str(refused[0])})
    for refusal in refused:
        line = f"swarmd: {refusal}"
        if config.log.format == "json":
            line = json.dumps({"level": "error", "message": str(refusal)})
        sys.stderr.write(line + "\n")
    return 1 if refused else 0


def _live(config: Config, manager: Notifier) -> list[BaseException]:
    refused: list[BaseException] = []
    try:
        trio.run(_main, config, manager)
    except* (SwarmError, LogError, WireError, RaftError) as refusals:
        refused += leaves(refusals)
    return refused


def _tell_ready(urls: Mapping[str, tuple[str, ...]], config: Config) -> None:
    """The one line that says the node serves, whatever the level of the log."""
    if config.log.format == "json":
        facts = {"level": "info", "message": "ready", "node": config.node.name, "urls": urls}
        line = json.dumps(facts)
    else:
        places = [f"{surface} {url}" for surface, found in urls.items() for url in found]
        line = f"ready: node {config.node.name}, {', '.join(places)}"
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


async def _main(config: Config, manager: Notifier) -> None:
    opening, opened = trio.CancelScope(), list[RunningNode]()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as around:
            around.start_soon(_stop_on_signal, signals, opening, opened)
            with opening:
                async with open_node(config) as node:
                    opened.append(node)
                    await _run(node, manager, config)
            around.cancel_scope.cancel()


async def _run(node: RunningNode, manager: Notifier, config: Config) -> None:
    """Until it is told to stop."""
    async with trio.open_nursery() as nursery:
        if manager.watchdog_s is not None:
            nursery.start_soon(_watchdog, manager, manager.watchdog_s / 2)
        nursery.start_soon(_announce, manager, node, config)
        await node.stopping.wait()
        nursery.cancel_scope.cancel()
    manager.tell(STOPPING)
    log.info("stopping", extra={"jobs": "ended too" if node.end_jobs else "left running"})


async def _announce(manager: Notifier, node: RunningNode, config: Config) -> None:
    """It serves from before; ready it is when the swarm has it and has a leader."""
    await node.ready.wait()
    _tell_ready(node.urls, config)
    manager.tell(READY)
    # What the start made stays: no collection is to walk through it and hold the loop.
    gc.collect()
    gc.freeze()


async def _stop_on_signal(
    signals: AsyncIterator[int], opening: trio.CancelScope, opened: Sequence[RunningNode]
) -> None:
    async for number in signals:
        log.info("told to stop", extra={"signal": signal.Signals(number).name})
        if opened:
            opened[0].stop(False)
        else:
            opening.cancel()  # it may wait for somebody who takes it in, for as long as it takes


async def _watchdog(manager: Notifier, every_s: float) -> None:
    """A loop that stands still tells nothing, and the manager starts us again."""
    while True:
        manager.tell(WATCHDOG)
        await trio.sleep(every_s)
