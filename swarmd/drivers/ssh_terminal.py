"""A login shell at a terminal on the far side: bounded both ways, and gone once it is left."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from swarmd.domain.errors import Invalid, TooLarge
from swarmd.drivers.ssh_targets import Pty

if TYPE_CHECKING:
    from swarmd.drivers.ssh_sessions import Session

COLS_MAX = 1000
ROWS_MAX = 1000
INPUT_BYTES_MAX = 64 * 1024
_TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class Terminal:
    """Who sends waits until the host takes it; who does not receive has the host wait."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def exit_code(self) -> int | None:
        """None while the shell runs, and where the connection was lost before it ended."""
        return self._session.channel.exit_code

    async def send(self, data: bytes) -> None:
        """Type this. TooLarge: in pieces, please. Unavailable: the shell has ended."""
        if len(data) > INPUT_BYTES_MAX:
            raise TooLarge(
                f"a terminal takes up to {INPUT_BYTES_MAX} bytes at once", bytes_max=INPUT_BYTES_MAX
            )
        await self._session.channel.send(data)

    async def receive(self) -> bytes:
        """What came next on the screen, up to 32 KiB; empty once the shell has ended."""
        said = await self._session.receive()
        if said is None:
            await self._session.channel.exited()
            return b""
        return said[1]

    def resize(self, cols: int, rows: int) -> None:
        """Refused with Invalid. Of a shell that has ended it does nothing."""
        check_size(cols, rows)
        self._session.channel.resize(cols, rows)


def pty_of(term: str, cols: int, rows: int) -> Pty:
    if not _TERM.fullmatch(term):
        raise Invalid("term must be the name of a terminal, such as xterm-256color", field="term")
    check_size(cols, rows)
    return Pty(term, cols, rows)


def check_size(cols: int, rows: int) -> None:
    if not (0 < cols <= COLS_MAX and 0 < rows <= ROWS_MAX):
        raise Invalid(
            f"a terminal has 1 to {COLS_MAX} columns and 1 to {ROWS_MAX} rows", field="cols"
        )
