"""SFTP, version 3, on a channel of ssh: a few requests, pipelined where bytes flow. What a server
answers is believed as far as its form and its bounds go, and no further."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from swarmd.domain.errors import Forbidden, NotFound, Unavailable

if TYPE_CHECKING:
    from swarmd.drivers.ssh_channels import Channel, Connection

PIECE_BYTES = 32 * 1024
PIECES_MAX = 64
"""On their way at once: 2 MiB, as much as sshd takes in."""
PACKET_BYTES_MAX = 256 * 1024
EXTENSIONS_MAX = 64
WINDOW_BYTES = 2 * 1024 * 1024

_INIT, _VERSION, _OPEN, _CLOSE, _READ, _WRITE, _FSETSTAT, _REMOVE = 1, 2, 3, 4, 5, 6, 10, 13
_STATUS, _HANDLE, _DATA, _EXTENDED = 101, 102, 103, 200
_OK, _EOF, _NO_SUCH_FILE, _PERMISSION_DENIED, _UNSUPPORTED = 0, 1, 2, 3, 8
_HAS_PERMISSIONS = 4
READ, WRITE_NEW = 0x01, 0x02 | 0x08 | 0x20
"""To open for: reading; writing a file that is not there yet."""
_POSIX_RENAME, _HARDLINK = b"posix-rename@openssh.com", b"hardlink@openssh.com"
_FSYNC = b"fsync@openssh.com"


class Files:
    """Files on the far side. One task uses it, one request after the other; left by a
    cancellation, it is of no more use. Refuses with NotFound, Forbidden or Unavailable."""

    def __init__(self, connection: Connection, channel: Channel) -> None:
        self.name = connection.target.name
        self.end_timeout_s = connection.settings.end_timeout_s
        self._stall_s = connection.settings.stall_timeout_s
        self._channel = channel
        self._received = bytearray()
        self._next_id = 0
        self._answers: dict[int, tuple[int, bytes]] = {}
        self._asked: set[int] = set()
        self._extensions: set[bytes] = set()

    async def greet(self) -> None:
        await self._channel.send(struct.pack(">IBI", 5, _INIT, 3))
        kind, body = await self._packet()
        if kind != _VERSION or len(body) < 4 or struct.unpack(">I", body[:4])[0] < 3:
            raise self._spoilt()
        rest = body[4:]
        while rest and len(self._extensions) < EXTENSIONS_MAX:
            name, rest = self._string(rest)
            _, rest = self._string(rest)
            self._extensions.add(name)

    async def open(self, path: str, flags: int, mode: int = 0o600) -> bytes:
        body = _text(path) + struct.pack(">III", flags, _HAS_PERMISSIONS, mode)
        kind, answer = await self._ask(_OPEN, body)
        if kind != _HANDLE:
            raise self._refusal(kind, answer, path)
        return self._string(answer)[0]

    async def write(self, handle: bytes, offset: int, data: bytes) -> None:
        """Sent, but not answered yet: `settle` tells."""
        while len(self._asked) >= PIECES_MAX:
            await self._settle_one()
        await self._send(_WRITE, _bytes(handle) + struct.pack(">Q", offset) + _bytes(data))

    async def settle(self) -> None:
        """Every write was taken."""
        while self._asked:
            await self._settle_one()

    async def read(self, handle: bytes) -> AsyncGenerator[bytes, None]:
        """From the start to the end, which the server tells."""
        waiting: deque[tuple[int, int, int]] = deque()
        offset = 0
        while True:
            while len(waiting) < PIECES_MAX:
                waiting.append(await self._ask_to_read(handle, offset, PIECE_BYTES))
                offset += PIECE_BYTES
            number, at, wanted_bytes = waiting.popleft()
            kind, answer = await self._answer(number)
            if kind == _STATUS and self._code(answer) == _EOF:
                break
            if kind != _DATA:
                raise self._refusal(kind, answer, "the file")
            data, _ = self._string(answer)
            if not 0 < len(data) <= wanted_bytes:
                raise self._spoilt()
            if len(data) < wanted_bytes:
                # Only this far; the rest is asked for before what follows it.
                rest = await self._ask_to_read(handle, at + len(data), wanted_bytes - len(data))
                waiting.appendleft(rest)
            yield data
        for number, _, _ in waiting:
            await self._answer(number)

    async def sync(self, handle: bytes) -> None:
        """On the disk there, where the server can do that."""
        if _FSYNC in self._extensions:
            await self._do(_EXTENDED, _bytes(_FSYNC) + _bytes(handle), "the file")

    async def set_mode(self, handle: bytes, mode: int) -> None:
        body = _bytes(handle) + struct.pack(">II", _HAS_PERMISSIONS, mode)
        await self._do(_FSETSTAT, body, "the file")

    async def close(self, handle: bytes) -> None:
        await self._do(_CLOSE, _bytes(handle), "the file")

    async def remove(self, path: str) -> None:
        await self._do(_REMOVE, _text(path), path)

    async def rename(self, path: str, to: str) -> None:
        """At once, in place of what has that name."""
        await self._extended(_POSIX_RENAME, path, to)

    async def link(self, path: str, to: str) -> None:
        """A second name for the file."""
        await self._extended(_HARDLINK, path, to)

    # -- requests and answers --------------------------------------------------------------------

    async def _extended(self, name: bytes, path: str, to: str) -> None:
        if name not in self._extensions:
            words = name.decode("ascii")
            raise Unavailable(f"the SFTP server of {self.name} has no {words}", host=self.name)
        await self._do(_EXTENDED, _bytes(name) + _text(path) + _text(to), path)

    async def _do(self, kind: int, body: bytes, what: str) -> None:
        answered, answer = await self._ask(kind, body)
        if answered != _STATUS or self._code(answer) != _OK:
            raise self._refusal(answered, answer, what)

    async def _ask(self, kind: int, body: bytes) -> tuple[int, bytes]:
        return await self._answer(await self._send(kind, body))

    async def _ask_to_read(self, handle: bytes, at: int, size: int) -> tuple[int, int, int]:
        return await self._send(_READ, _bytes(handle) + struct.pack(">QI", at, size)), at, size

    async def _send(self, kind: int, body: bytes) -> int:
        number = self._next_id = (self._next_id + 1) & 0xFFFFFFFF
        self._asked.add(number)
        data = struct.pack(">IBI", len(body) + 5, kind, number) + body
        await self._in_time(self._channel.send, data)
        return number

    async def _settle_one(self) -> None:
        if not self._answers:
            await self._take_answer()
        number = next(iter(self._answers))
        kind, answer = self._answers.pop(number)
        if kind != _STATUS or self._code(answer) != _OK:
            raise self._refusal(kind, answer, "the file")

    async def _answer(self, number: int) -> tuple[int, bytes]:
        while number not in self._answers:
            await self._take_answer()
        return self._answers.pop(number)

    async def _take_answer(self) -> None:
        kind, body = await self._packet()
        if len(body) < 4:
            raise self._spoilt()
        number = struct.unpack(">I", body[:4])[0]
        if number not in self._asked:
            raise self._spoilt()
        self._asked.discard(number)
        self._answers[number] = (kind, body[4:])

    async def _packet(self) -> tuple[int, bytes]:
        head = await self._exactly(5)
        size, kind = struct.unpack(">IB", head)
        if not 1 <= size <= PACKET_BYTES_MAX:
            raise self._spoilt()
        return kind, await self._exactly(size - 1)

    async def _exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            said = await self._in_time(self._channel.receive)
            if said is None:
                raise Unavailable(f"the SFTP server of {self.name} went away", host=self.name)
            if not said[0]:  # not of what it grumbles on stderr
                self._received += said[1]
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    async def _in_time(self, ask: Callable[..., Coroutine[Any, Any, Any]], *args: object) -> Any:
        try:
            with trio.fail_after(self._stall_s):
                return await ask(*args)
        except trio.TooSlowError:
            raise Unavailable(
                f"the SFTP server of {self.name} did not go on within {self._stall_s:g} s",
                host=self.name, timeout_s=self._stall_s,
            ) from None  # fmt: skip

    # -- what it says ----------------------------------------------------------------------------

    def _code(self, answer: bytes) -> int:
        if len(answer) < 4:
            raise self._spoilt()
        code: int = struct.unpack(">I", answer[:4])[0]
        return code

    def _string(self, data: bytes) -> tuple[bytes, bytes]:
        if len(data) < 4:
            raise self._spoilt()
        size = struct.unpack(">I", data[:4])[0]
        if len(data) < 4 + size:
            raise self._spoilt()
        return data[4 : 4 + size], data[4 + size :]

    def _refusal(self, kind: int, answer: bytes, what: str) -> Exception:
        if kind != _STATUS:
            return self._spoilt()
        code = self._code(answer)
        facts = {"host": self.name, "status": code}
        if code == _NO_SUCH_FILE:
            return NotFound(f"{self.name} has no {what}, or not the directory it is in", **facts)
        if code == _PERMISSION_DENIED:
            return Forbidden(f"this account may not do that to {what} on {self.name}", **facts)
        if code == _UNSUPPORTED:
            return Unavailable(f"{self.name} cannot do that to {what}", **facts)
        return Unavailable(
            f"{self.name} failed to do that to {what}; look at its disk: space, and quota", **facts
        )

    def _spoilt(self) -> Unavailable:
        return Unavailable(
            f"what answers on {self.name} does not speak SFTP; its start-up files may print"
            " something, or it has no sftp-server",
            host=self.name,
        )


@asynccontextmanager
async def open_files(connection: Connection) -> AsyncIterator[Files]:
    channel = await connection.open(subsystem="sftp", window_bytes=WINDOW_BYTES)
    try:
        files = Files(connection, channel)
        await files.greet()
        yield files
    finally:
        channel.close()


def _bytes(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _text(path: str) -> bytes:
    return _bytes(path.encode())
