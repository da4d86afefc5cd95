"""How data is shown: JSON where it was asked for, else columns; in colour only on a terminal.

What came from outside is made printable first: a job's name must not move the cursor.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

COLOURS = {
    "alive": "green", "completed": "green", "running": "cyan", "pending": "yellow",
    "suspect": "yellow", "dead": "red", "failed": "red", "cancelled": "magenta", "left": "magenta",
}  # fmt: skip


def emit_json(data: object) -> None:
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def emit_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns for a person; the same without lines and colour where nobody looks."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if not is_terminal():
        emit_columns(headings, cells)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    Console(soft_wrap=False).print(table)


def emit_columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [list(headings), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    for line in lines:
        click.echo(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def is_terminal() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def printable(value: object) -> str:
    if value is None or value == "":
        return "-"
    words = "yes" if value is True else "no" if value is False else str(value)
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)


def size(count: Any) -> str:
    """`1.5 GiB`"""
    if not isinstance(count, int | float):
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


def span(milliseconds: Any) -> str:
    """`850 ms`, `12.3 s`, `3 min 5 s`, `2 h 4 min`, `3 d 2 h`"""
    if not isinstance(milliseconds, int | float):
        return "-"
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def ago(at: Any) -> str:
    """How long ago an ISO time was."""
    from datetime import UTC, datetime

    try:
        then = datetime.fromisoformat(at)
    except (TypeError, ValueError):
        return "-"
    return span(max(0.0, (datetime.now(UTC) - then).total_seconds()) * 1000)
