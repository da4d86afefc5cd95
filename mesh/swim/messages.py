"""What members tell each other: msgpack arrays behind one byte with the version of the protocol.

Fields are only ever added at the end, a kind that is not known is passed over, and what is said is
said in the older of the versions that the program knows: so two adjacent versions understand each
other. Who passes words on leaves out the fields that it does not know. Whatever else is not as it
should be is dropped with its reason.
"""

from __future__ import annotations

from typing import Annotated, TypeVar, get_args

import msgspec
from msgspec import Meta

from mesh.swim.errors import Dropped, NotUsable

VERSION = 1
VERSION_OLDEST = max(1, VERSION - 1)
SPOKEN = VERSION_OLDEST
"""In which this program speaks: whoever may live beside it understands that one."""

ID_CHARS_MAX = 128
NAME_CHARS_MAX = 128
ADDRESSES_MAX = 4
ADDRESS_CHARS_MAX = 128
TAGS_BYTES_MAX = 512
ALIVE_BYTES_MAX = 1_050
"""Of one member's own words, so that they fit into a datagram."""
DATAGRAM_BYTES_MAX = 2_048
"""Of what is taken; what is sent is shorter by the settings."""
INCARNATION_MAX = 2**62
COORDINATE_BYTES = 44
ACCUSERS_MAX = 4

Id = Annotated[str, Meta(min_length=1, max_length=ID_CHARS_MAX)]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
Address = Annotated[str, Meta(min_length=1, max_length=ADDRESS_CHARS_MAX)]
Addresses = Annotated[tuple[Address, ...], Meta(min_length=1, max_length=ADDRESSES_MAX)]
Tag = Annotated[str, Meta(max_length=TAGS_BYTES_MAX)]
Tags = Annotated[dict[Tag, Tag], Meta(max_length=64)]
Number = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Incarnation = Annotated[int, Meta(ge=0, le=INCARNATION_MAX)]
Version = Annotated[int, Meta(ge=0, le=255)]
Accusers = Annotated[tuple[Id, ...], Meta(max_length=ACCUSERS_MAX)]
Coordinate = Annotated[bytes, Meta(max_length=COORDINATE_BYTES)]
Age = Annotated[float, Meta(ge=0, le=10_000_000)]


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    number: Number
    target: Id
    """Whoever gets it by mistake does not answer."""


class PingFor(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Ping another and pass its answer on, or say in time that there was none."""

    number: Number
    target: Id


class Ack(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    number: Number
    coordinate: Coordinate = b""
    """Empty where it was passed on."""


class Nack(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    number: Number


class Alive(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """A member's own words about itself."""

    id: Id
    incarnation: Incarnation
    name: Name
    addresses: Addresses
    tags: Tags
    born: Incarnation
    """Of two with one name the one with the smaller keeps it."""
    version_oldest: Version
    version: Version


class Suspect(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """All accusers that the sender has heard of travel together, so that none is lost to another's
    words about the same member."""

    id: Id
    incarnation: Incarnation
    by: Accusers
    refused_by: Accusers = ()
    """Those of them whom its host refused a connection: no process listens there."""
    held_by: Accusers = ()
    """Those of them whose connection its host took, and nobody answered: it is held up."""


class Dead(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    id: Id
    incarnation: Incarnation
    by: Id


class Left(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """A member's own last words; the tombstone that they leave outlives late words of its life."""

    id: Id
    incarnation: Incarnation


class Who(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """The receiver wrote, and is not known here: it should say who it is."""


Message = Ping | PingFor | Ack | Nack | Alive | Suspect | Dead | Left | Who

ALIVE, SUSPECT, DEAD, LEFT = range(4)


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A member as a sync has it. Of one that left, or is dead, no more than that may be known."""

    state: Annotated[int, Meta(ge=ALIVE, le=LEFT)]
    words: msgspec.Raw
    """As told: most are known to the letter, and need not be read."""
    age_s: Age = 0.0
    """Since it is in this state."""


class SyncAsk(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """All that the asking side knows; itself is the first entry."""

    version: Version
    entries: tuple[Entry, ...]


class SyncAnswer(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """What the asking side does not know, or not as well."""

    version: Version
    entries: tuple[Entry, ...]


S = TypeVar("S", SyncAsk, SyncAnswer)

_encoder = msgspec.msgpack.Encoder()
_messages = msgspec.msgpack.Decoder(list[Message])
_raws = msgspec.msgpack.Decoder(list[msgspec.Raw])
_message = msgspec.msgpack.Decoder(Message)
_alive = msgspec.msgpack.Decoder(Alive)
_ask = msgspec.msgpack.Decoder(SyncAsk)
_answer = msgspec.msgpack.Decoder(SyncAnswer)
_KINDS = len(get_args(Message))
_BAD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def pack(version: int, messages: list[bytes]) -> bytes:
    """A datagram of messages that are encoded already."""
    count = len(messages)
    head = bytes((version, 0x90 | count)) if count < 16 else bytes((version, 0xDC, 0, count))
    return head + b"".join(messages)


PACK_BYTES = 4
"""On top of the messages, at most."""
MESSAGES_MAX = 255


def unpack(payload: bytes) -> tuple[list[Message], int]:
    """The messages, and how many were passed over as unknown. Raises Dropped."""
    if not 2 <= len(payload) <= DATAGRAM_BYTES_MAX:
        raise Dropped("size", f"a datagram of {len(payload)} bytes")
    if not VERSION_OLDEST <= payload[0] <= VERSION:
        raise Dropped("version", f"version {payload[0]} of the protocol, not {VERSION}")
    with memoryview(payload) as view:
        try:
            return _messages.decode(view[1:]), 0
        except _BAD:
            return _known_ones(view[1:])


def _known_ones(view: memoryview) -> tuple[list[Message], int]:
    try:
        raws = _raws.decode(view)
        known: list[Message] = []
        for raw in raws:
            (kind, *_) = msgspec.msgpack.decode(raw)
            if not isinstance(kind, int) or kind < 0:
                raise Dropped("garbage", "a message without a kind")
            if kind < _KINDS:
                known.append(_message.decode(raw))
    except (*_BAD, TypeError, ValueError):
        raise Dropped("garbage", "bytes that are no messages of this protocol") from None
    return known, len(raws) - len(known)


def encode_sync(sync: SyncAsk | SyncAnswer) -> bytes:
    return _encoder.encode(sync)


ENTRY_BYTES = 11
"""On top of the words."""


def decode_words(entry: Entry) -> Alive:
    """Raises Dropped."""
    try:
        return _alive.decode(entry.words)
    except _BAD:
        raise Dropped("garbage", "a member's words that are none of this protocol") from None


def decode_ask(body: bytes, bytes_max: int) -> SyncAsk:
    """Raises Dropped."""
    return _decode_sync(body, bytes_max, _ask)


def decode_answer(body: bytes, bytes_max: int) -> SyncAnswer:
    """Raises Dropped."""
    return _decode_sync(body, bytes_max, _answer)


def _decode_sync(body: bytes, bytes_max: int, decoder: msgspec.msgpack.Decoder[S]) -> S:
    if len(body) > bytes_max:
        raise Dropped("size", f"a sync of {len(body)} bytes; {bytes_max} fit")
    try:
        sync = decoder.decode(body)
    except _BAD:
        raise Dropped("garbage", "bytes that are no sync of this protocol") from None
    if not VERSION_OLDEST <= sync.version <= VERSION:
        raise Dropped("version", f"version {sync.version} of the protocol, not {VERSION}")
    return sync


def passed_on(heard: Alive, said: Alive) -> bool:
    """Whether these are those words, less perhaps what a member of an older version left out."""
    fields = msgspec.structs.fields(Alive)
    return all(getattr(heard, f.name) in (getattr(said, f.name), f.default) for f in fields)


def check_alive(words: Alive) -> bytes:
    """A node's own words, encoded. Raises NotUsable."""
    try:
        encoded = encode(words)
        _message.decode(encoded)
    except (msgspec.ValidationError, TypeError, UnicodeEncodeError, OverflowError) as error:
        raise NotUsable(f"a member cannot say this of itself: {error}") from None
    if (tags_bytes := len(_encoder.encode(words.tags))) > TAGS_BYTES_MAX:
        raise NotUsable(f"tags take {tags_bytes} bytes, and {TAGS_BYTES_MAX} at most may be told")
    if len(encoded) > ALIVE_BYTES_MAX:
        raise NotUsable(
            f"id, name, addresses and tags take {len(encoded)} bytes together; {ALIVE_BYTES_MAX}"
            " are the most"
        )
    return encoded
