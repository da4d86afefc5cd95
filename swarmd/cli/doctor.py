"""The doctor from the command line: it asks the node, or looks at what lies there."""

from __future__ import annotations

import errno
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swarmd.cli import options, show
from swarmd.cli.client import NotRunning, find_daemon
from swarmd.cli.main import EXIT_REFUSED
from swarmd.cli.recover import reached

if TYPE_CHECKING:
    from swarmd.cluster.recovering import Survivor
    from swarmd.config import Config
    from swarmd.ops.doctor import Finding

ASK_TIMEOUT_S = 20.0
HEADINGS = {"wrong": "WRONG", "warning": "WARNING", "note": "note"}


@click.command("doctor")
@options.as_json
@options.data_dir
@options.config_file
def doctor(as_json: bool, data_dir: Path | None, config_file: Path | None) -> int:
    """What is wrong with this node and its swarm, in plain words, and what to do in which order.

    It needs no quorum, and no daemon: where none runs it looks at what lies in the data directory,
    and whom of the others it reaches. Exit status 1 where something is wrong.
    """
    daemon = find_daemon(data_dir)
    try:
        seen = daemon.get("/api/v1/doctor", timeout_s=ASK_TIMEOUT_S)
    except NotRunning:
        import msgspec

        seen = msgspec.to_builtins(_offline(daemon.data_dir, data_dir, config_file))
    if as_json:
        show.emit_json(seen)
    else:
        _show(seen)
    return 0 if seen["healthy"] else EXIT_REFUSED


def _show(seen: dict[str, Any]) -> None:
    running = "" if seen["running"] else " (no daemon runs here)"
    click.echo(f"node {show.printable(seen['node'])}{running}")
    if seen["cluster_id"]:
        click.echo(f"swarm {show.printable(seen['cluster_id'])}")
    for finding in seen["findings"]:
        click.echo(f"{HEADINGS[finding['level']]}: {show.printable(finding['what'])}")
        for number, step in enumerate(finding["todo"], 1):
            click.echo(f"    {number}. {show.printable(step)}")
    if seen["healthy"] and not any(f["level"] == "warning" for f in seen["findings"]):
        click.echo("nothing is wrong")


def _offline(data_dir: Path, asked: Path | None, config_file: Path | None) -> Any:
    from swarmd.domain.errors import SwarmError
    from swarmd.ops import doctor as ops

    findings: list[Finding] = []
    if not (data_dir / "node-id").exists():
        what = f"there is no node in {data_dir}"
        todo = ("name another with --data-dir", "`swarmd up` makes one here")
        findings.append(ops.Finding(ops.WRONG, what, todo))
        return ops.examined("-", "", False, findings)
    findings += ops.disk(data_dir)
    findings += _certificate(data_dir)
    name, cluster_id = "-", ""
    held = _held(data_dir)
    findings += _joining(data_dir, held)
    if held is None:
        findings.append(
            ops.Finding(ops.WRONG, "the daemon does not run", ("start it: `swarmd up`",))
        )
        try:
            found = _inspect(data_dir)
        except SwarmError as refusal:
            findings.append(ops.Finding(ops.WARNING, refusal.message))
        else:
            name, cluster_id = found.name, found.cluster_id
            findings += _quorum(found)
        try:
            config = _config(data_dir, asked, config_file)
            findings += _ports(config)
            findings += _builder(config)
        except SwarmError as refusal:
            findings.append(ops.Finding(ops.WRONG, refusal.message))
    return ops.examined(name, cluster_id, False, findings)


def _held(data_dir: Path) -> str | None:
    """Why nobody may open its files now; None: somebody may."""
    from swarmd.domain.errors import SwarmError
    from swarmd.paths import claimed

    try:
        with claimed(data_dir):
            return None
    except SwarmError as refusal:
        return refusal.message


def _joining(data_dir: Path, held: str | None) -> list[Finding]:
    from swarmd.cluster.recovering import joining
    from swarmd.domain.errors import SwarmError
    from swarmd.ops.doctor import WRONG, Finding

    try:
        asked = joining(data_dir)
    except SwarmError as refusal:
        return [Finding(WRONG, refusal.message)]
    if asked is None:
        if held is None:
            return []
        what = "a daemon has this directory and does not serve yet: it is starting, or stopping"
        return [Finding(WRONG, what, ("look at its log",))]
    there = reached({seed: (seed,) for seed in asked.seeds})
    listening = ", ".join(there) or "none of them"
    what = f"this node asks {', '.join(asked.seeds)} to take it in, and was not taken in yet"
    if asked.why:
        what += f". The last word was: {asked.why}"
    todo = [f"of these, {listening} can be connected from here"]
    if not there:
        todo.append("start a member there, or look at the network: the mesh's port, TCP and UDP")
    if "token" in asked.why:
        todo.append("`swarmd token` on a member prints a token; `swarmd up --join … --token …`")
    return [Finding(WRONG, what, tuple(todo))]


def _certificate(data_dir: Path) -> list[Finding]:
    from swarmd.cluster.recovering import certificate_ends_ms
    from swarmd.domain.errors import SwarmError
    from swarmd.ops.doctor import WRONG, Finding, certificate

    try:
        ends_ms = certificate_ends_ms(data_dir)
    except SwarmError as refusal:
        return [Finding(WRONG, refusal.message)]
    return certificate(ends_ms, time.time_ns() // 1_000_000)


def _inspect(data_dir: Path) -> Survivor:
    import trio

    from swarmd.cluster import recovering
    from swarmd.paths import claimed

    with claimed(data_dir):
        return trio.run(recovering.inspect, data_dir)


def _quorum(found: Survivor) -> list[Finding]:
    """What could be, were this node started."""
    from swarmd.ops.doctor import NOTE, Finding, Voter, quorum

    there = reached(found.addresses)
    voters = [
        Voter(
            name,
            name in there or name == found.name,
            "".join(found.addresses.get(name, ())[:1]),
            (found.term, found.last) if name == found.name else None,
        )
        for name in found.voters
    ]
    log = f"this node's log ends at entry {found.last}, its term is {found.term}"
    if not found.opens_keys:
        log += "; it never voted: another is the better one to recover the swarm with"
    return [*quorum(found.name, voters, None, False), Finding(NOTE, log)]


def _config(data_dir: Path, asked: Path | None, file: Path | None) -> Config:
    from swarmd.config_sources import load

    return load(os.environ, {"node.data_dir": asked and data_dir}, file=file)


def _ports(config: Config) -> list[Finding]:
    """Those that the daemon would bind, and somebody else has."""
    from swarmd.ops.doctor import WRONG, Finding

    findings = []
    sections: list[tuple[str, tuple[str, ...], int]] = [
        ("mesh", config.mesh.bind or config.node.bind, config.mesh.port)
    ]
    for name, section in config.surfaces.by_name().items():
        if section.enabled:
            sections.append((f"surfaces.{name}", section.bind or config.node.bind, section.port))
    for setting, addresses, port in sections:
        for address in addresses:
            if port and (why := _taken(address, port)):
                todo = (f"end what has it, or choose another port ({setting}.port)",)
                what = f"{address} port {port} ({setting}) cannot be had: {why}"
                findings.append(Finding(WRONG, what, todo))
    return findings


def _builder(config: Config) -> list[Finding]:
    from swarmd.building import portage_settings
    from swarmd.drivers.portage import Missing, find
    from swarmd.ops.doctor import builder

    settings = portage_settings(config.builder)
    if settings is None:
        return []
    import trio

    found = trio.run(find, replace(settings, query_timeout_s=ASK_TIMEOUT_S))
    return builder(found.why if isinstance(found, Missing) else None)


def _taken(address: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as problem:
        if problem.errno == errno.EADDRINUSE:
            return "another program listens there"
        return problem.strerror or str(problem)
    return ""
