"""A node's beginning and end: `up` runs it in the foreground, `down` ends it."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from swarmd.cli import options
from swarmd.cli.client import Daemon, NotRunning, Refused, find_daemon
from swarmd.cli.main import tell

STOP_TIMEOUT_S = 10.0


@click.command("up")
@click.option("--name", metavar="N", help="The node's name. The host's, where none is given.")
@click.option("--bind", multiple=True, metavar="IP", help="Listen here: 127.0.0.1. Repeatable.")
@click.option("--advertise", metavar="HOST[:PORT]", help="Where others reach this node.")
@options.data_dir
@click.option("--join", multiple=True, metavar="HOST[:8473]", help="Join the swarm of that node.")
@click.option("--token", metavar="T", help="The join token of that swarm.")
@click.option("--discover", is_flag=True, help="Find the others of the swarm by multicast.")
@options.config_file
def up(
    name: str | None,
    bind: tuple[str, ...],
    advertise: str | None,
    data_dir: Path | None,
    join: tuple[str, ...],
    token: str | None,
    discover: bool,
    config_file: Path | None,
) -> int:
    """Run one node in the foreground.

    It is ready with a line on stderr that has every URL. With --join and --token a new node becomes
    part of that swarm (`swarmd token` there prints one); one that is part of a swarm already needs
    neither any more. With --discover in place of --join it asks the local network where that swarm
    is; members that have it too answer.

    SIGTERM and Ctrl-C stop it within 5 s and leave its jobs running; the next `swarmd up` takes
    them back.
    """
    from swarmd import logs
    from swarmd.config_sources import load
    from swarmd.paths import make_data_dir

    flags = {"node.name": name, "node.bind": bind, "node.advertise": advertise,
             "node.data_dir": data_dir, "mesh.join": join, "mesh.token": token,
             "mesh.discover": discover or None}  # fmt: skip
    config = load(os.environ, flags, file=config_file)
    make_data_dir(config.node.data_dir)
    logs.set_up(config.log.level, config.log.format)
    from swarmd import daemon

    return daemon.run(config)


@click.command("down")
@click.option("--jobs", is_flag=True, help="End the jobs that run on this node as well.")
@options.data_dir
@options.as_json
def down(jobs: bool, data_dir: Path | None, as_json: bool) -> int:
    """Stop the node.

    Its jobs go on, and the next `swarmd up` takes them back; --jobs ends them too.
    """
    from swarmd.cli import show

    daemon = find_daemon(data_dir)
    stop(daemon, jobs=jobs)
    if as_json:
        show.emit_json({"stopped": True, "jobs_ended": jobs})
    else:
        tell("stopped, its jobs are ended" if jobs else "stopped; jobs that run go on")
    return 0


def stop(daemon: Daemon, *, jobs: bool) -> None:
    """Ask it to stop and wait until its process is gone, for 10 s at most."""
    with wait_for_end(daemon):
        daemon.post("/api/v1/stop", {"jobs": jobs}, timeout_s=STOP_TIMEOUT_S)


@contextmanager
def wait_for_end(daemon: Daemon) -> Iterator[None]:
    """Tell it to stop in the block; afterwards it is gone, or 10 s have passed and this refuses."""
    pid = daemon.pid()
    gone = _open_process(pid)
    try:
        yield
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            if gone is not None:
                # Woken the moment it ends.
                if select.select([gone], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    return
            elif daemon.pid() is None and not _listens(daemon):
                return
            else:
                time.sleep(0.05)
    finally:
        if gone is not None:
            os.close(gone)
    raise Refused(
        f"the daemon has not stopped within {STOP_TIMEOUT_S:g} s; look at its log"
        + (f", or end it with `kill -9 {pid}`" if pid else "")
    )


def _open_process(pid: int | None) -> int | None:
    """A descriptor that becomes readable when the process ends; None where there is none."""
    if pid is None:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _listens(daemon: Daemon) -> bool:
    try:
        daemon.get("/api/v1/health", timeout_s=1.0)
    except NotRunning:
        return False
    except Refused:
        pass
    return True
