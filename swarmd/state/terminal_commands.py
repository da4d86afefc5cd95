"""Commands about terminals: see `swarmd.state.commands` for what holds of all."""

from __future__ import annotations

from swarmd.domain.terminals import Terminal, TerminalEnd
from swarmd.state.command import Command


class BeginTerminal(Command[Terminal], frozen=True):
    """Somebody has a shell on a builder; who, is the actor's name. The oldest that are kept make
    room. NotFound: no such node. Conflict: the id is taken. Invalid: a text that is too long."""

    terminal: Terminal


class EndTerminal(Command[Terminal], frozen=True):
    """It is over, and this is what was on the screen. Told again it changes nothing. NotFound: no
    such terminal, or nobody has the blob."""

    id: str
    end: TerminalEnd
    exit_code: int | None = None
    sha256: str | None = None
    cut: bool = False


class ForgetTerminals(Command[int], frozen=True):
    """Forget terminals that began before a time, oldest first, with their recordings. Answers how
    many. Fenced by term."""

    before: int
    limit: int
    term: int
