"""Frames between nodes: four bytes of length, then a msgpack array whose first element is the kind.

Whatever is too long, no frame or of a kind unknown is Broken and ends its connection. A frame that
has gone out keeps its meaning: a new kind, or a new meaning, is a new version of the protocol, and
two adjacent versions talk in the older one. Fields are only ever added at the end of a frame.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import get_args

import msgspec

from mesh.garbage import GARBAGE

VERSION = 1
VERSION_OLDEST = max(1, VERSION - 1)

CHUNK_BYTES_MAX = 64 * 1024
HELLO_BYTES_MAX = 8 * 1024
ENVELOPE_BYTES_MAX = 32 * 1024
"""What a frame may have on top of its body: ids, the name of a method, a refusal and its facts."""
METHOD_CHARS_MAX = 200
NODE_CHARS_MAX = 200
WORDS_CHARS_MAX = 2000
FACTS_MAX = 32
WINDOW_BYTES_MAX = 2**31

Fact = str | int | float | bool | None


class Broken(Exception):
    """Why a connection ends, or was never one: a short reason to count by, and words."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Purpose(IntEnum):
    LINK = 0
    """Kept: messages, calls and streams of the node that dialed."""
    ASK = 1
    """One call to whoever answers."""
    PROBE = 2
    """Only to see whether there is an answer."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The first frame each way. The dialing side speaks first, and says nothing more until the
    other's hello has come."""

    version_oldest: int
    version: int
    cluster: str
    """Empty where it is not known yet."""
    node: str
    boot: int
    purpose: int
    frame_bytes_max: int
    """The largest body that this side takes."""
    window_bytes: int
    """So much of a stream may come before this side has given credit."""
    capabilities: tuple[str, ...] = ()
    process: int = 0
    """Drawn with each start; 0 where it was not: then the boot has to do."""


class Bye(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Nothing follows; why."""

    reason: str
    message: str


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    nonce: int


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    nonce: int


class Note(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """A message, one way."""

    body: bytes


class Call(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    id: int
    method: str
    body: bytes


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    id: int


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    id: int
    body: bytes


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag=8):
    id: int
    code: str
    message: str
    facts: dict[str, Fact] = {}


class Open(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """A stream begins. Ids of calls and streams are one sequence of the dialing side."""

    id: int
    method: str
    body: bytes


class Data(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    id: int
    body: bytes


class End(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """This side sends no more on the stream."""

    id: int


class Stop(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """This side reads no more of the stream."""

    id: int
    reason: str


class Reset(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Both directions are void. Without a code it is an abort, with one a refusal."""

    id: int
    code: str
    message: str
    facts: dict[str, Fact] = {}


class Credit(msgspec.Struct, frozen=True, array_like=True, tag=14, gc=False):
    """So many bytes more of the stream may come."""

    id: int
    size: int


Frame = (
    Hello | Bye | Ping | Pong | Note | Call | Cancel | Answer | Refusal
    | Open | Data | End | Stop | Reset | Credit
)  # fmt: skip

KINDS: tuple[type[Frame], ...] = get_args(Frame)

_LENGTH = struct.Struct(">I")
_pack_into, _unpack_from = _LENGTH.pack_into, _LENGTH.unpack_from
_encode_into = msgspec.msgpack.Encoder().encode_into
_decode = msgspec.msgpack.Decoder(Frame).decode


def append(buffer: bytearray, frame: Frame) -> None:
    start = len(buffer)
    _encode_into(frame, buffer, start + 4)
    _pack_into(buffer, start, len(buffer) - start - 4)


def encode(frame: Frame) -> bytearray:
    buffer = bytearray()
    append(buffer, frame)
    return buffer


class Decoder:
    """Bytes in, frames out. What it holds is at most one frame that has not come whole."""

    def __init__(self, frame_bytes_max: int) -> None:
        self.frame_bytes_max = frame_bytes_max
        self._tail = bytearray()
        self._wanted = 4

    def feed(self, data: bytes) -> list[Frame]:
        source: bytes | bytearray = data
        if self._tail:
            self._tail += data
            if len(self._tail) < self._wanted:
                return []
            source = self._tail
        frames: list[Frame] = []
        at, end, wanted = 0, len(source), 4
        with memoryview(source) as view:
            while end - at >= 4:
                size = _unpack_from(source, at)[0]
                if size > self.frame_bytes_max:
                    raise Broken("oversize", f"a frame of {size} bytes; {self.frame_bytes_max} fit")
                if end - at - 4 < size:
                    wanted = size + 4
                    break
                try:
                    frames.append(_decode(view[at + 4 : at + 4 + size]))
                except GARBAGE:
                    raise Broken("garbage", "bytes that are no frame of this protocol") from None
                at += size + 4
            rest = bytearray(view[at:])
        self._tail, self._wanted = rest, wanted
        return frames


def agree(mine: Hello, theirs: Hello) -> int:
    """The version that both speak. Raises Broken."""
    if not (0 < len(theirs.node) <= NODE_CHARS_MAX) or len(theirs.capabilities) > 100:
        raise Broken("garbage", "a hello without a usable node id")
    if not (0 < theirs.window_bytes <= WINDOW_BYTES_MAX and theirs.frame_bytes_max > 0):
        raise Broken("garbage", "a hello with bounds that cannot be")
    version = min(mine.version, theirs.version)
    if version < max(mine.version_oldest, theirs.version_oldest):
        raise Broken(
            "version",
            f"{theirs.node} speaks versions {theirs.version_oldest} to {theirs.version} of the"
            f" protocol, {mine.node} {mine.version_oldest} to {mine.version}",
        )
    if mine.cluster and theirs.cluster and mine.cluster != theirs.cluster:
        raise Broken("cluster", f"{theirs.node} and {mine.node} belong to different swarms")
    return version


def same_process(one: Hello, other: Hello) -> bool:
    """Of two that said the same id. A copy of a node's files counts its boots as the node does."""
    if one.process and other.process:
        return one.process == other.process
    return one.boot == other.boot


def plain_facts(facts: Mapping[str, object]) -> dict[str, Fact]:
    """Facts as they may travel: flat, few and short."""
    return {
        str(name)[:METHOD_CHARS_MAX]: _plain(value)
        for name, value in list(facts.items())[:FACTS_MAX]
    }


def _plain(value: object) -> Fact:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    return str(value)[: WORDS_CHARS_MAX // 4]
