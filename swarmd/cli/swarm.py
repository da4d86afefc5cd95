"""The swarm as this node sees it: its standing, its nodes, its key."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from swarmd.cli import options, show
from swarmd.cli.client import Daemon, Refused, find_daemon
from swarmd.cli.main import EXIT_REFUSED, tell

POLL_S = 0.1
STATUS_TIMEOUT_S = 5.0


@click.command("status")
@options.as_json
@click.option("--wait", "wait_s", type=options.DURATION, metavar="SECONDS",
              help="Until a leader is known, every node is alive and the voters are enough; else 1."
              )  # fmt: skip
@options.data_dir
def status(as_json: bool, wait_s: float | None, data_dir: Path | None) -> int:
    """The swarm as this node sees it: it answers at once, leader or not."""
    daemon = find_daemon(data_dir)
    seen, lacking = _settle(daemon, wait_s)
    if as_json:
        show.emit_json(seen)
    else:
        click.echo(f"cluster  {show.printable(seen.get('cluster_id'))}")
        click.echo(f"leader   {show.printable(seen.get('leader') or 'none is known')}")
        click.echo(f"term     {show.printable(seen.get('term'))}")
        click.echo(f"standing {show.printable(seen.get('standing'))}")
        nodes = seen.get("nodes", [])
        rows = [[n.get(key) for key in ("name", "address", "status", "role")] for n in nodes]
        show.emit_table(["NODE", "ADDRESS", "STATUS", "ROLE"], rows)
    if wait_s is not None and lacking:
        tell(f"error: after {wait_s:g} s: {lacking}")
        return EXIT_REFUSED
    return 0


@click.command("nodes")
@options.as_json
@options.data_dir
def nodes(as_json: bool, data_dir: Path | None) -> None:
    """Every node with what it offers and what it is used for."""
    seen = find_daemon(data_dir).get("/api/v1/nodes")
    if as_json:
        show.emit_json(seen)
        return
    show.emit_table(
        ["NODE", "ADDRESS", "STATUS", "ROLE", "RTT", "SLOTS", "CPUS", "MEMORY", "GPUS", "VERSION"],
        [
            [n.get("name"), n.get("address"), n.get("status"), n.get("role"),
             "-" if n.get("rtt_ms") is None else f"{n['rtt_ms']:.2g} ms",
             f"{n.get('used_slots', 0)}/{n.get('slots', 0)}", f"{n.get('cpus') or 0:g}",
             show.size(n.get("memory_bytes")), n.get("gpus", 0), n.get("version")]
            for n in seen.get("nodes", [])
        ],
    )  # fmt: skip


@click.command("admin-key")
@options.as_json
@options.data_dir
def admin_key(as_json: bool, data_dir: Path | None) -> None:
    """The key that protected surfaces ask for (X-Admin-Key, or Authorization: Bearer)."""
    seen = find_daemon(data_dir).get("/api/v1/admin-key")
    if as_json:
        show.emit_json(seen)
    else:
        click.echo(seen["admin_key"])


def _settle(daemon: Daemon, wait_s: float | None) -> tuple[dict[str, Any], str]:
    """What was seen last, and in words what it lacks to be settled."""
    deadline = time.monotonic() + (wait_s or 0.0)
    while True:
        left_s = deadline - time.monotonic()
        try:
            # The last look gets its time too: a wait of 0 s still asks once.
            timeout_s = STATUS_TIMEOUT_S if wait_s is None else min(STATUS_TIMEOUT_S, left_s + 1.0)
            seen = daemon.get("/api/v1/status", timeout_s=timeout_s)
            lacking = _lacks(seen)
            if wait_s is None or not lacking or left_s <= 0:
                return seen, lacking
        except Refused:
            # Also a daemon that is only starting may be waited for.
            if left_s <= 0:
                raise
        time.sleep(min(POLL_S, max(0.0, left_s)))


def _lacks(seen: dict[str, Any]) -> str:
    if not seen.get("leader"):
        return "no leader is known"
    nodes = [n for n in seen.get("nodes", []) if n.get("status") != "left"]
    if unwell := [str(n.get("name")) for n in nodes if n.get("status") != "alive"]:
        return f"not alive: {', '.join(map(show.printable, unwell[:10]))}"
    voters = sum(n.get("role") == "voter" for n in nodes)
    wanted = int(seen.get("voters_wanted", 1))
    return "" if voters >= wanted else f"{voters} of {wanted} wanted voters"
