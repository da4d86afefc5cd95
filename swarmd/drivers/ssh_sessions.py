"""A command on the far side, in a session of its own: whoever leaves early leaves nothing of it.

Closing a channel ends no process, and sshd passes no signals on for root. So each command is
started by a shell that first says which session it leads, and a session that is left before its
end is ended by a second command: every process in it, whatever it ignores. At a terminal that is
done after the end too: what runs in the background outlives its shell.
"""

from __future__ import annotations

import logging
import re
import secrets
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from swarmd.domain.errors import Invalid, SwarmError, TooLarge
from swarmd.drivers.ssh_targets import Pty

if TYPE_CHECKING:
    from swarmd.drivers.ssh_channels import Channel, Connection

log = logging.getLogger(__name__)

COMMAND_BYTES_MAX = 96 * 1024
"""Linux takes 128 KiB for one argument, and quoting adds to it."""
NOISE_BYTES_MAX = 64 * 1024
"""What a host's own start-up files may say before the command begins."""
TERMINAL_WINDOW_BYTES = 256 * 1024

_SHELL = 'exec "${SHELL:-/bin/sh}" -l'
_SWEEP = """exec 2>/dev/null; s=%d; %s; \
each() { k=$1; f=; kill -"$k" -- "-$s"; for p in /proc/[0-9]*; \
do l=; read -r l <"$p/stat"; set -- ${l##*) }; [ "$3" = "$s" ] || [ "$4" = "$s" ] || continue; \
[ "$1" = Z ] || { f=1; kill -"$k" "${p#/proc/}"; }; done; }; nap() { sleep 0.05 || sleep 1; }; \
if [ -n "%s" ]; then each HUP; n=0; while [ -n "$f" ] && [ $n -lt 10 ]; do nap; n=$((n+1)); \
each 0; done; fi; n=0; while [ $n -lt 20 ]; do each KILL; [ -n "$f" ] || exit 0; n=$((n+1)); nap; \
done; exit 1"""
_STALE = '[ ! -d "/proc/$s" ] || exit 0'
"""The kernel gives nobody the number of a session that still has a process: where it is taken after
the leader's end, nothing was left, and those who have it now are others."""


class Session:
    """A command that has begun. What it says comes without the line that we had it say."""

    def __init__(self, channel: Channel, nonce: str) -> None:
        self.channel = channel
        self.leader: int | None = None
        """The process that leads its session; None until it has said so."""
        self._line = re.compile(rf"swarmd-session {nonce} (\d{{1,10}})\r?\n".encode())
        self._noise: list[tuple[bool, bytes]] | None = []
        self._noise_bytes = 0
        self._ready: list[tuple[bool, bytes]] = []

    async def receive(self) -> tuple[bool, bytes] | None:
        """As of a channel: what it said, and whether on stderr; None once nothing more comes."""
        await self.begun()
        return self._ready.pop(0) if self._ready else await self.channel.receive()

    async def begun(self) -> None:
        """Wait until it has said who leads it; or that it will not, as after its end."""
        while self._noise is not None:
            said = await self.channel.receive()
            if said is None:
                self._ready, self._noise = self._noise, None
            else:
                self._take_in(*said)

    def _take_in(self, error: bool, data: bytes) -> None:
        """Until the line has come, all is held: it may come in pieces, after a host's noise."""
        assert self._noise is not None
        self._noise.append((error, data))
        self._noise_bytes += len(data)
        for way in (True, False):
            found = self._line.search(b"".join(part for of, part in self._noise if of is way))
            if found is None:
                continue
            self.leader = int(found[1])
            whole = found.string
            rest = (way, whole[: found.start()] + whole[found.end() :])
            others = [said for said in self._noise if said[0] is not way]
            self._ready = [said for said in (*others, rest) if said[1]]
            self._noise = None
            return
        if self._noise_bytes > NOISE_BYTES_MAX:
            self._ready, self._noise = self._noise, None


@asynccontextmanager
async def open_session(
    connection: Connection, command: Sequence[str] | str | None, pty: Pty | None = None
) -> AsyncIterator[Session]:
    """Run the command, or for None a login shell. Left before its end, and at a terminal after it
    as well, its processes are ended: at a terminal they are told to first, as when the line is cut.
    What is to stay on purpose has a session of its own, by `setsid` or a service manager."""
    nonce = secrets.token_hex(8)
    wrapped = _wrapped(_text(command), nonce, to_stderr=pty is None)
    window_bytes = TERMINAL_WINDOW_BYTES if pty else 1024 * 1024
    channel = await connection.open(command=wrapped, pty=pty, window_bytes=window_bytes)
    session = Session(channel, nonce)
    try:
        yield session
    finally:
        runs = channel.exit_code is None and not channel.ended
        if runs or (pty is not None and not connection.closed.is_set()):
            with trio.CancelScope(shield=True):
                await _end(connection, session, told_first=pty is not None)
        channel.close()


async def _end(connection: Connection, session: Session, *, told_first: bool) -> None:
    end_s = connection.settings.end_timeout_s
    with trio.move_on_after(end_s) as scope:
        if not told_first:
            session.channel.signal("KILL")
        with trio.move_on_after(end_s / 3):
            await session.begun()
        if session.leader is not None:
            try:
                async with connection.sweeping:
                    ended = session.channel.exit_code is not None
                    await _sweep(connection, session.leader, ended=ended, told_first=told_first)
            except SwarmError as error:
                log.warning(
                    "what a command left could not be ended",
                    extra={"host": connection.target.host, "error": error.message},
                )
    if scope.cancelled_caught:
        # A peer that does not answer: nobody else shall wait for it.
        connection.retire()


async def _sweep(connection: Connection, leader: int, *, ended: bool, told_first: bool) -> None:
    text = _SWEEP % (leader, _STALE if ended else ":", "y" if told_first else "")
    channel = await connection.open(command=f"exec /bin/sh -c {shlex.quote(text)}")
    try:
        while await channel.receive() is not None:
            pass
        await channel.exited()
    finally:
        channel.close()


def _text(command: Sequence[str] | str | None) -> str:
    if command is None:
        return _SHELL
    text = command if isinstance(command, str) else shlex.join(command)
    if not text.strip() or "\0" in text:
        raise Invalid("the command is empty or has a NUL in it", field="command")
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise Invalid("the command is no valid text", field="command") from None
    if size_bytes > COMMAND_BYTES_MAX:
        raise TooLarge(
            f"the command is over {COMMAND_BYTES_MAX} bytes; give the rest as its input",
            bytes_max=COMMAND_BYTES_MAX,
        )
    return text


def _wrapped(text: str, nonce: str, *, to_stderr: bool) -> str:
    """For whatever shell the account has: each takes `exec` and single quotes."""
    way = " >&2" if to_stderr else ""
    first = f'printf "swarmd-session %s %s\\n" {nonce} $${way}; eval "$1"'
    return f"exec /bin/sh -c {shlex.quote(first)} swarmd {shlex.quote(text)}"
