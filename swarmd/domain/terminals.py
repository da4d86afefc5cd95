"""Terminals: shells on builders' hosts that somebody had through a node. Each is told when it
begins and when it ends, and what was on its screen is kept as a recording, for a while."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from swarmd.domain.jobs import NodeId

KEPT_MAX = 1000
"""The oldest are forgotten, with their recordings."""
KEPT_BYTES_MAX = 4 * 1024 * 1024 * 1024
"""Of recordings in all; so are the oldest while there is more."""
KEPT_MS = 90 * 24 * 3600 * 1000
"""Counted from its beginning."""
TEXT_CHARS_MAX = 256


class TerminalEnd(StrEnum):
    EXITED = "exited"
    """Its shell ended."""
    LEFT = "left"
    """Whoever had it went, or no longer took what came."""
    LOST = "lost"
    """The connection to the host broke, or the host closed it."""
    IDLE = "idle"
    """Nothing was typed and nothing shown for too long."""
    OVERTIME = "overtime"
    STOPPED = "stopped"
    """The node that it went through stopped, or died and came back."""


class Terminal(msgspec.Struct, frozen=True, omit_defaults=True):
    id: str
    node_id: NodeId
    """The builder."""
    name: str
    """The builder's, as it was."""
    host: str
    user: str
    """The account there."""
    by: str
    address: str
    """Where whoever had it came from."""
    via: NodeId
    """The node that it went through."""
    via_name: str
    began_at: int = 0
    ended_at: int | None = None
    end: TerminalEnd | None = None
    exit_code: int | None = None
    """As a shell has it; None where it did not end by itself."""
    sha256: str | None = None
    """Of the recording, an asciicast; None where there is none."""
    size_bytes: int = 0
    cut: bool = False
    """The recording stops before the end."""
