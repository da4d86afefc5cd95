"""Copies of the state for nodes that are too far behind for the log: made, brought over, taken in.

A copy is a file of its own from the first moment: whoever fetches it, however slowly, holds up
nothing. A transfer that broke goes on where it ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import trio

from mesh.garbage import GARBAGE
from mesh.raft import ConfState, Message, Snapshot, SnapshotMeta, SnapshotTemporarilyUnavailable
from mesh.wires import ByteStream, Refused, WireError, Wires
from swarmd.domain.errors import SwarmError
from swarmd.state.store import SnapshotFile, StateStore
from swarmd.state.versions import Outdated

log = logging.getLogger(__name__)

T = TypeVar("T")

METHOD = "snapshot"
CHUNK_BYTES = 64 * 1024
CONNECT_TIMEOUT_S = 5.0
VERIFY_S_MAX = 600.0
STALL_S_MAX = 30.0
UNWANTED_S_MAX = 600.0


class InThread(Protocol):
    """Runs what may wait for a disk, off the loop."""

    async def __call__(self, work: Callable[..., T], /, *args: Any) -> T: ...


class Content(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot's `data` says of its file."""

    size_bytes: int
    sha256: str


class Offer(msgspec.Struct, frozen=True, array_like=True):
    message: Message
    content: Content


class Snapshots:
    """One copy at a time is kept to be sent, and one is being received."""

    def __init__(
        self, place: Path, store: StateStore, wires: Wires, bytes_per_s_max: int,
        in_thread: InThread,
    ) -> None:  # fmt: skip
        self._place = place
        self._store = store
        self._wires = wires
        self._in_thread = in_thread
        self._bytes_per_s_max = bytes_per_s_max
        self._made: tuple[Snapshot, Path] | None = None
        self._wanted_at = 0.0
        for old in self._place.glob("copy*"):  # of an earlier life
            old.unlink()
        self._making = False
        self._receiving = False
        self._received: dict[str, SnapshotFile] = {}
        self._taken: Path | None = None
        """What is being put in the state's place: nobody may tidy it away."""
        self._nursery: trio.Nursery
        self._step: Callable[[Message], None]

    def begin(self, nursery: trio.Nursery, step: Callable[[Message], None]) -> None:
        """Take offers from now on; `step` is given the message of a copy that arrived whole."""
        self._nursery = nursery
        self._step = step
        self._wires.handle_stream(METHOD, self._receive)
        nursery.start_soon(self._let_go)

    def latest(self, needed_index: int) -> Snapshot:
        """A copy from which the log goes on at `needed_index`. Where there is none it is made, and
        the core asks again. One from before a node was a member is of no use to that node."""
        self._wanted_at = trio.current_time()
        if self._made is not None:
            made, conf = self._made[0].meta, self._store.place.conf
            if made.index + 1 >= needed_index and conf == encode_conf(made.conf_state):
                return self._made[0]
        if not self._making:
            self._making = True
            self._nursery.start_soon(self._make)
        raise SnapshotTemporarilyUnavailable("a copy of the state is being made")

    async def _make(self) -> None:
        try:
            file = await self._store.copy_to(self._place / "copy.new")
            path = self._place / f"copy-{file.place.index}.db"
            file.path.replace(path)
            if self._made is not None and self._made[1] != path:
                self._made[1].unlink(missing_ok=True)  # who is sending it has it open
            self._made = (snapshot_of(file), path)
            log.info(
                "a copy of the state was made",
                extra={"index": file.place.index, "size_bytes": file.size_bytes},
            )
        finally:
            self._making = False

    async def _let_go(self) -> None:
        """A copy is as large as the state: it stays no longer than somebody wants it."""
        while True:
            await trio.sleep(UNWANTED_S_MAX / 10)
            unwanted_s = trio.current_time() - self._wanted_at
            if self._made is not None and unwanted_s > UNWANTED_S_MAX:
                made, self._made = self._made, None
                made[1].unlink(missing_ok=True)  # who is sending it has it open

    def send(self, peer: str, message: Message, sent: Callable[[bool], None]) -> None:
        self._nursery.start_soon(self._send, peer, message, sent)

    async def _send(self, peer: str, message: Message, sent: Callable[[bool], None]) -> None:
        ok = False
        try:
            made = self._made
            if made is not None and made[0] == message.snapshot:
                with made[1].open("rb") as file:
                    ok = await self._bring(peer, message, file)
        except (WireError, OSError, trio.TooSlowError) as error:
            log.warning(
                "a copy of the state did not reach a node",
                extra={"peer": peer, "reason": str(error)},
            )
        finally:
            sent(ok)

    async def _bring(self, peer: str, message: Message, file: BufferedReader) -> bool:
        assert message.snapshot is not None
        content = msgspec.msgpack.decode(message.snapshot.data, type=Content)
        body = msgspec.msgpack.encode(Offer(message, content))
        async with await self._wires.open_stream(peer, METHOD, body, CONNECT_TIMEOUT_S) as stream:
            with trio.fail_after(STALL_S_MAX):
                start = int.from_bytes(await _exactly(stream, 8), "big")
            file.seek(start)
            began, given = trio.current_time(), 0
            while chunk := await self._in_thread(file.read, CHUNK_BYTES):
                with trio.fail_after(STALL_S_MAX):
                    await stream.send_all(chunk)
                given += len(chunk)
                await trio.sleep_until(began + given / self._bytes_per_s_max)
            # The other side knows the size, and closes once it has said how it went.
            with trio.fail_after(VERIFY_S_MAX):
                return await _exactly(stream, 2) == b"ok"

    async def _receive(self, peer: str, body: bytes, stream: ByteStream) -> None:
        try:
            offer = msgspec.msgpack.decode(body, type=Offer)
        except GARBAGE as error:
            raise Refused("invalid", f"this is no offer of a snapshot: {error}") from None
        if self._receiving:
            raise Refused("busy", "another copy of the state is on its way to this node")
        self._receiving = True
        try:
            await self._take(offer, stream)
        except Outdated as error:
            # It is what this node lacks, and there is no other: it is not to go on.
            self._nursery.start_soon(_end_with, error)
            raise Refused("failed", str(error)) from error
        except (SwarmError, OSError, trio.TooSlowError) as error:
            raise Refused("failed", str(error)) from error
        finally:
            self._receiving = False

    async def _take(self, offer: Offer, stream: ByteStream) -> None:
        content = offer.content
        path = self._place / f"incoming-{content.sha256[:32]}.part"
        needed = {path, self._taken, *(file.path for file in self._received.values())}
        for other in self._place.glob("incoming-*"):
            if other not in needed:
                other.unlink()
        with path.open("ab") as file:
            have = file.tell()
            if have > content.size_bytes:
                file.truncate(0)
                have = 0
            await stream.send_all(have.to_bytes(8, "big"))
            while have < content.size_bytes:
                with trio.fail_after(STALL_S_MAX):
                    chunk = await stream.receive_some()
                if not chunk:
                    raise Refused("invalid", "the copy ended before its size")
                have += len(chunk)
                if have > content.size_bytes:
                    raise Refused("invalid", "the copy is larger than it was said to be")
                await self._in_thread(file.write, chunk)
        try:
            found = await self._store.check_copy(path)
        except SwarmError:
            path.unlink()  # whole as it is, nothing of it would ever be fetched again
            raise
        if found.sha256 != content.sha256 or found.size_bytes != content.size_bytes:
            path.unlink()
            raise Refused("invalid", "the copy was damaged on its way")
        self._received = {content.sha256: found}
        self._step(offer.message)
        await stream.send_all(b"ok")

    def received(self, snapshot: Snapshot) -> SnapshotFile:
        """The file of a snapshot that the core has accepted."""
        content = msgspec.msgpack.decode(snapshot.data, type=Content)
        file = self._received.pop(content.sha256)
        self._taken = file.path
        return file


async def _end_with(error: SwarmError) -> None:
    raise error


async def _exactly(stream: ByteStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = await stream.receive_some(size - len(data))
        if not chunk:
            raise Refused("failed", "the other side ended the transfer")
        data += chunk
    return data


def snapshot_of(file: SnapshotFile) -> Snapshot:
    place = file.place
    assert place.conf is not None
    meta = SnapshotMeta(place.index, place.term, decode_conf(place.conf))
    return Snapshot(meta, msgspec.msgpack.encode(Content(file.size_bytes, file.sha256)))


def decode_conf(data: bytes) -> ConfState:
    return msgspec.msgpack.decode(data, type=ConfState)


def encode_conf(conf: ConfState) -> bytes:
    return msgspec.msgpack.encode(conf)
