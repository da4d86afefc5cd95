"""Terminals that there were: who had which, and their recordings, to keep or to play again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from swarmd.cli import options, show
from swarmd.cli.client import Daemon, Refused, find_daemon
from swarmd.cli.main import tell

LINE_BYTES_MAX = 1024 * 1024
CLEAR = "\x1b[0m\x1b[?25h"
"""Colours and the cursor as they should be, whatever a recording left."""


@click.group("terminals")
def terminals() -> None:
    """Terminals that somebody had on builders, through any node of the swarm."""


@terminals.command("list")
@options.as_json
@options.data_dir
def list_terminals(as_json: bool, data_dir: Path | None) -> None:
    """All that are kept, the newest first."""
    rows = find_daemon(data_dir).get("/api/v1/terminals")["terminals"]
    if as_json:
        show.emit_json({"terminals": rows})
        return
    show.emit_table(
        ["ID", "DRONE", "BY", "FROM", "BEGAN", "TOOK", "END", "RECORDED"],
        [
            [t["id"], t["drone"], t["by"], t["address"], f"{show.ago(t['began_at'])} ago",
             show.span(t["duration_ms"]), _end(t), t["sha256"] and show.size(t["size_bytes"])]
            for t in rows
        ],
    )  # fmt: skip


@terminals.command("show")
@click.argument("id")
@options.as_json
@options.data_dir
def show_one(id: str, as_json: bool, data_dir: Path | None) -> None:
    """What is known of the terminal ID."""
    found = find_daemon(data_dir).get(_path(id))
    if as_json:
        show.emit_json(found)
        return
    for name, value in found.items():
        click.echo(f"{name:<12} {show.printable(value)}")


@terminals.command("recording")
@click.argument("id")
@options.data_dir
def recording(id: str, data_dir: Path | None) -> None:
    """The recording of the terminal ID, an asciicast v2, to stdout."""
    for chunk in _recording(find_daemon(data_dir), id):
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


@terminals.command("replay")
@click.argument("id")
@click.option("--speed", type=click.FloatRange(0.01, 1000), default=1.0, show_default=True,
              metavar="X", help="So many times as fast.")  # fmt: skip
@click.option("--pause", type=options.DURATION, default="2s", show_default=True, metavar="T",
              help="No pause is longer than this.")  # fmt: skip
@options.data_dir
def replay(id: str, speed: float, pause: float, data_dir: Path | None) -> None:
    """Play the terminal ID again, as it was. Where stdout is no terminal, without its pauses.

    Your terminal does what the host had it do: make it as large as the recording's.
    """
    lines = _lines(_recording(find_daemon(data_dir), id))
    head = _read(next(lines, b""))
    if not isinstance(head, dict) or head.get("version") != 2:
        raise Refused("this is no asciicast of version 2; is the daemon of another version?")
    plays = sys.stdout.isatty()
    tell(f"{show.printable(head.get('title'))}, {head.get('width')}x{head.get('height')}")
    at = 0.0
    try:
        for line in lines:
            moment, kind, text = _event(_read(line))
            if plays:
                time.sleep(max(0.0, min(moment - at, pause) / speed))
            at = moment
            if kind == "o":
                click.echo(text, nl=False)
            elif kind == "m":
                tell(f"\n{show.printable(text)}")
    finally:
        if plays:
            click.echo(CLEAR)


def _end(terminal: dict[str, Any]) -> str:
    code = terminal["exit_code"]
    return str(terminal["end"]) if code is None else f"{terminal['end']} {code}"


def _path(id: str) -> str:
    return f"/api/v1/terminals/{quote(id, safe='')}"


def _recording(daemon: Daemon, id: str) -> Iterator[bytes]:
    return daemon.stream(f"{_path(id)}/recording")


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    held = b""
    for chunk in chunks:
        *whole, held = (held + chunk).split(b"\n")
        if len(held) > LINE_BYTES_MAX:
            raise Refused("a line of the recording is longer than any that swarmd writes")
        yield from whole
    if held:
        yield held


def _read(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise Refused("the recording is damaged: a line of it is no JSON") from None


def _event(said: object) -> tuple[float, str, str]:
    match said:
        case [int() | float() as moment, str() as kind, str() as text]:
            return float(moment), kind, text
    raise Refused("the recording is damaged: a line of it is no event")
