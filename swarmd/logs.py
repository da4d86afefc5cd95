"""Logging: one line an event on stderr, for people or as JSON, facts beside a constant message.

Whatever is logged is bounded and cannot forge a line; a fact that is named like a secret is masked.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

FACT_CHARS_MAX = 500
FACTS_MAX = 24
TRACEBACK_CHARS_MAX = 16_000
KEPT_LINES_MAX = 2000
KEPT_CHARS_MAX = 2000
"""Of a line."""
QUIET = ("hypercorn.error", "hypercorn.access", "quart.app", "quart.serving", "trio_websocket")
"""Libraries that tell of every odd client; only what is broken on our side is of interest."""

_ORDINARY = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_SECRET = ("key", "token", "password", "secret", "authorization", "cookie")


def set_up(level: str, format: str, stream: TextIO | None = None) -> None:
    """Let the root logger tell on `stream` (stderr), keep the last lines of it, and nothing else
    tell anywhere."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    kept = Kept()
    kept.setFormatter(TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler, kept]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    # A full disk behind stderr must not turn every event into a second traceback.
    logging.raiseExceptions = False
    if level != "debug":
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.ERROR)


def tail(count: int) -> tuple[str | None, list[str]]:
    """The file that is told to, where it is one, and the last lines, oldest first."""
    kept = next((h for h in logging.getLogger().handlers if isinstance(h, Kept)), None)
    return _told_to(), [] if kept is None else [*kept.lines][-count:]


def _told_to() -> str | None:
    try:
        if stat.S_ISREG(os.fstat(sys.stderr.fileno()).st_mode):
            return str(Path(f"/proc/self/fd/{sys.stderr.fileno()}").readlink())
    except (OSError, ValueError):
        pass
    return None


class Kept(logging.Handler):
    """The last lines that were told, for those who ask from afar."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=KEPT_LINES_MAX)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.extend(line[:KEPT_CHARS_MAX] for line in self.format(record).split("\n"))


class TextLines(logging.Formatter):
    """`2024-01-01T12:00:00.000Z INFO swarmd.agent: job started job_id=j1`"""

    def format(self, record: logging.LogRecord) -> str:
        words = [f"{_at(record)} {record.levelname} {record.name}: {_one_line(record)}"]
        words += [f"{name}={_bare(value)}" for name, value in facts(record).items()]
        trace = _trace(record)
        return " ".join(words) + (f"\n{trace}" if trace else "")


class JsonLines(logging.Formatter):
    """`{"at": …, "level": …, "logger": …, "message": …, …facts}`, one object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": _at(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _one_line(record),
        }
        known = facts(record).items()
        line |= {name: value for name, value in known if name not in line}
        trace = _trace(record)
        return json.dumps(line | ({"trace": trace} if trace else {}), ensure_ascii=False)


def facts(record: logging.LogRecord) -> dict[str, object]:
    """What was given as `extra`, bounded, with secrets masked."""
    extra = [(n, v) for n, v in record.__dict__.items() if n not in _ORDINARY]
    return {name: _bounded(name, value) for name, value in extra[:FACTS_MAX]}


def _bounded(name: str, value: object) -> object:
    if name.lower().endswith(_SECRET):
        return "***"
    if value is None or isinstance(value, bool | int | float):
        return value
    words = str(value)
    return words if len(words) <= FACT_CHARS_MAX else words[:FACT_CHARS_MAX] + "…"


def _bare(value: object) -> str:
    words = str(value)
    plain = words and words.isprintable() and not any(c in words for c in ' "=')
    return words if plain else json.dumps(words, ensure_ascii=not words.isprintable())


def _one_line(record: logging.LogRecord) -> str:
    words = record.getMessage()[: 4 * FACT_CHARS_MAX]
    return words if words.isprintable() else json.dumps(words)


def _trace(record: logging.LogRecord) -> str:
    if not record.exc_info:
        return ""
    words = logging.Formatter().formatException(record.exc_info)
    # The end of a traceback is what says where it happened.
    return words[-TRACEBACK_CHARS_MAX:]


def _at(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
