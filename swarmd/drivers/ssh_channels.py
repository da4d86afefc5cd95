"""Connections and their channels: bytes both ways, within bounds. What asyncssh calls here only
wakes Trio tasks; whatever waits, waits in one of those."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import asyncssh
import trio

from swarmd.domain.errors import Unavailable
from swarmd.drivers.ssh_loop import LINGER_S, Loop
from swarmd.drivers.ssh_targets import Gone, Pty, Refused, SshSettings, SshTarget

PIECE_BYTES = 32 * 1024
"""Written at once: encrypting it holds the loop for some 50 µs."""


class Connection:
    """A connection that is logged in. Who uses it is counted by the pool."""

    def __init__(self, loop: Loop, target: SshTarget, settings: SshSettings) -> None:
        self.loop = loop
        self.target = target
        self.settings = settings
        self.raw: asyncssh.SSHClientConnection | None = None
        self.closed = trio.Event()
        self.users = 0
        self.channels_max = settings.channels_max
        self.idle_since = trio.current_time()
        self.retired = False
        self.sweeping = trio.Lock()
        """Ending a command takes a channel more; one at a time keeps within sshd's bound."""
        self.changed = trio.lowlevel.ParkingLot()
        self.writable = True
        self._stalled: asyncio.TimerHandle | None = None

    @property
    def usable(self) -> bool:
        return not self.retired and not self.closed.is_set()

    def retire(self) -> None:
        """Nobody new; those who use it may end."""
        self.retired = True
        if not self.users:
            self.abort()

    def abort(self) -> None:
        self.retired = True
        if self.raw is not None:
            with self.loop.inside():
                self.raw.abort()

    def guard(self, raw: asyncssh.SSHClientConnection) -> None:
        """Nothing is read for a peer that takes nothing: what it asks for would pile up here.
        asyncssh itself leaves these two empty."""
        transport: asyncio.Transport = raw._transport  # type: ignore[assignment]
        loop = asyncio.get_running_loop()

        def pause() -> None:
            self.writable = False
            with suppress(RuntimeError):  # it is closing
                transport.pause_reading()
            self._stalled = loop.call_later(self.settings.stall_timeout_s, raw.abort)

        def resume() -> None:
            self.writable = True
            if self._stalled is not None:
                self._stalled.cancel()
            with suppress(RuntimeError):
                transport.resume_reading()
            self.changed.unpark_all()

        raw.pause_writing = pause  # type: ignore[method-assign]
        raw.resume_writing = resume  # type: ignore[method-assign]

    def lost(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
        self.closed.set()
        self.changed.unpark_all()

    async def open(
        self,
        *,
        command: str | None = None,
        subsystem: str | None = None,
        pty: Pty | None = None,
        window_bytes: int = 1024 * 1024,
    ) -> Channel:
        """A channel on which the command, or the subsystem, has begun."""
        if self.raw is None or self.closed.is_set():
            raise Gone(self._words("was lost"))
        channel = Channel(self)
        open_s = self.settings.open_timeout_s
        try:
            with trio.fail_after(open_s):
                await self.loop.run(
                    self.raw.create_session(
                        lambda: channel, command, subsystem=subsystem,
                        request_pty="force" if pty else False,
                        term_type=pty.term if pty else None,
                        term_size=(pty.cols, pty.rows) if pty else None,
                        encoding=None, window=window_bytes, max_pktsize=PIECE_BYTES,
                    ),
                    linger_s=LINGER_S,
                )  # fmt: skip
        except BaseException as error:
            channel.close()
            raise self._not_opened(error, channel, open_s) from None
        return channel

    def _not_opened(self, error: BaseException, channel: Channel, open_s: float) -> BaseException:
        """Only where the peer never heard of the channel may the command go to another."""
        lost = self.closed.is_set() or self.raw is None or self.raw.is_closed()
        if isinstance(error, asyncssh.ChannelOpenError) and not lost:
            if channel.begun:
                return Unavailable(self._words("does not let this account run that"))
            return Refused(self._words("opens no further channel"))
        # Half open, and nobody knows how the peer sees it.
        self.retire()
        again = Unavailable if channel.begun else Gone
        if isinstance(error, trio.TooSlowError):
            return again(self._words(f"did not begin within {open_s:g} s"), timeout_s=open_s)
        if isinstance(error, asyncssh.Error | OSError):
            return again(self._words("was lost"))
        return error

    def _words(self, words: str) -> str:
        return f"ssh to {self.target.name} {words}"


class Channel(asyncssh.SSHClientSession[bytes]):
    """Bytes both ways: what arrives is held up to a bound, and what is sent waits for the peer."""

    def __init__(self, connection: Connection, held_bytes_max: int = 128 * 1024) -> None:
        self.begun = False
        """The peer knows of it; what it was to run may be running."""
        self.exit_code: int | None = None
        self.ended = False
        self.lost = False
        """It ended with the connection, not by itself."""
        self._connection = connection
        self._held_bytes_max = held_bytes_max
        self._chan: asyncssh.SSHClientChannel[bytes] | None = None
        self._held: deque[tuple[bool, bytes]] = deque()
        self._held_bytes = 0
        self._all_received = False
        self._paused = False
        self._changed = connection.changed

    async def receive(self) -> tuple[bool, bytes] | None:
        """What came next, and whether on stderr; None once nothing more will."""
        await trio.lowlevel.checkpoint()
        while not self._held:
            if self._all_received or self.ended:
                return None
            await self._changed.park()
        error, data = self._held.popleft()
        before, self._held_bytes = self._held_bytes, self._held_bytes - len(data)
        if self._held_bytes <= self._held_bytes_max // 2 < before and self._chan is not None:
            with self._connection.loop.inside():
                self._chan.resume_reading()
        return error, data

    async def send(self, data: bytes) -> None:
        """All of it, as the peer takes it. Unavailable: it has ended."""
        for at in range(0, len(data), PIECE_BYTES):
            await trio.lowlevel.checkpoint()
            while (self._paused or not self._connection.writable) and not self.ended:
                await self._changed.park()
            with self._sending() as chan:
                chan.write(data[at : at + PIECE_BYTES])

    def send_eof(self) -> None:
        with suppress(Unavailable), self._sending() as chan:
            chan.write_eof()

    def signal(self, name: str) -> None:
        with suppress(Unavailable), self._sending() as chan:
            chan.send_signal(name)

    def resize(self, cols: int, rows: int) -> None:
        with suppress(Unavailable), self._sending() as chan:
            chan.change_terminal_size(cols, rows)

    async def exited(self) -> None:
        """Wait until the command has ended, or the channel."""
        while self.exit_code is None and not self.ended:
            await self._changed.park()

    def close(self) -> None:
        """What was not sent yet, and what comes, is dropped."""
        if self._chan is not None:
            with suppress(asyncssh.Error, OSError), self._connection.loop.inside():
                self._chan.abort()

    @contextmanager
    def _sending(self) -> Iterator[asyncssh.SSHClientChannel[bytes]]:
        try:
            if self._chan is None or self.ended:
                raise BrokenPipeError
            with self._connection.loop.inside():
                yield self._chan
        except (OSError, asyncssh.Error):
            raise Unavailable(self._connection._words("takes no more input")) from None

    # -- what asyncssh calls ---------------------------------------------------------------------

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self.begun = True
        self._chan = chan
        chan.set_write_buffer_limits(high=2 * PIECE_BYTES)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._held.append((datatype is not None, data))
        self._held_bytes += len(data)
        if self._held_bytes > self._held_bytes_max and self._chan is not None:
            self._chan.pause_reading()
        self._changed.unpark_all()

    def eof_received(self) -> bool:
        self._all_received = True
        self._changed.unpark_all()
        return True  # its exit status is still to come

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._changed.unpark_all()

    def exit_status_received(self, status: int) -> None:
        self.exit_code = status
        self._changed.unpark_all()

    def exit_signal_received(self, name: str, core_dumped: bool, msg: str, lang: str) -> None:
        number = getattr(signal, f"SIG{name}", 127)
        self.exit_code = 128 + int(number)
        self._changed.unpark_all()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.lost = exc is not None or self._connection.closed.is_set()
        self._changed.unpark_all()
