"""The words between a node without a replica and the replica that serves it.

One stream, the session, says how the swarm stands, what became of the node's requests and which
events it wants; calls beside it read and propose. A field is only ever added at the end.
"""

from __future__ import annotations

import struct
import sys
from types import SimpleNamespace
from typing import Any, Union, get_args, get_type_hints

import msgspec

from mesh.garbage import GARBAGE
from mesh.wires import ByteStream, Refused
from swarmd.cluster.feed import Wanted
from swarmd.domain.events import Event
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.state import queries
from swarmd.state.machine import Applied

SESSION = "remote.session"
READ = "remote.read"
"""As a call; and as a stream, for an answer that is too large for one."""
PROPOSE = "remote.propose"
PAST = "remote.past"
KNOCK = "remote.knock"
WHERE = "remote.where"

WORDS_VERSION = 1
BEAT_S = 0.2
"""So often a replica says how it stands, when nothing else is to be said."""
MESSAGE_BYTES_MAX = 8 * 1024 * 1024
MEMBERS_PER_MESSAGE = 200
EVENTS_PER_MESSAGE = 256
OUTCOMES_PER_MESSAGE = 64
OUTCOME_BYTES_MAX = 4 * 1024 * 1024
BATCH_BYTES_MAX = 512 * 1024
WAITING_MAX = 4096
"""As many requests are remembered of a node."""
WANTED_MAX = 2048
PAST_EVENTS_MAX = 500

CALL_ANSWER_BYTES_MAX = 512 * 1024
ANSWER_BYTES_MAX = 64 * 1024 * 1024
TOO_LONG = "remote_too_long"
"""The answer does not fit into a call: ask by a stream."""
LOST = "remote_lost"
"""Whether a request reached the log is not known."""
ELSEWHERE = "remote_elsewhere"
"""Not this replica: it is full, or no replica, or of another swarm, or stopping."""

_LENGTH = struct.Struct(">I")


class Opening(msgspec.Struct, frozen=True, array_like=True):
    """A node begins a session. `waiting`: its requests whose outcome it does not know."""

    version: int
    cluster_id: str
    boot: int
    waiting: tuple[int, ...]
    wanted: tuple[Wanted, ...]


class Follow(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Which events are wanted too, and which no more; answered with Followed of that number."""

    number: int
    more: tuple[Wanted, ...] = ()
    less: tuple[Wanted, ...] = ()


class Place(msgspec.Struct, frozen=True, array_like=True):
    """A member of the swarm, or one that is none any more."""

    id: NodeId
    node: Node | None


class Members(msgspec.Struct, frozen=True, array_like=True, tag=2):
    changed: tuple[Place, ...]
    whole: bool = False
    """The first of a list that is sent anew."""


class Voters(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Who holds a replica."""

    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...]
    joint: bool


class Beat(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """How the replica stands. All events up to `event_seq` that were wanted came before it."""

    leader: NodeId | None
    term: int
    cluster_version: int
    entry_at: int
    """The newest time of the log, in milliseconds since 1970."""
    event_seq: int
    committed: int
    applied: int
    first: int
    last: int
    staleness_ms: int | None


class Outcomes(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """What became of requests, by their sequences, as the state keeps it."""

    of: tuple[tuple[int, bytes], ...]
    applied: int
    """The place in the log where they are applied."""
    event_seq: int
    """All events up to here that were wanted came before."""


class Events(msgspec.Struct, frozen=True, array_like=True, tag=6):
    events: tuple[Event, ...]


class Followed(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """From the event after `event_seq` on, what was asked for with that number is heeded."""

    number: int
    event_seq: int


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Everything before this is how it stood; from the event after `event_seq` on all that is
    wanted follows."""

    cluster_id: str
    event_seq: int


FromReplica = Members | Voters | Beat | Outcomes | Events | Followed | Welcome


class ReadAsk(msgspec.Struct, frozen=True, array_like=True):
    query: msgspec.Raw
    local: bool
    at_least: int
    """The node has seen the state of this place in the log, and must not see an older one."""
    wait_s: float


class ReadAnswer(msgspec.Struct, frozen=True, array_like=True):
    at_least: int
    value: msgspec.Raw


class PastAsk(msgspec.Struct, frozen=True, array_like=True):
    """Events after one, up to one, of those that are wanted."""

    after: int
    upto: int
    wanted: tuple[Wanted, ...]
    at_least: int = 0


class PastAnswer(msgspec.Struct, frozen=True, array_like=True):
    events: tuple[Event, ...]
    upto: int
    """All that is wanted up to here is among them."""


class Standing(msgspec.Struct, frozen=True, array_like=True):
    """What a replica says of itself before anyone chooses it."""

    cluster_id: str
    sessions: int
    leader: NodeId | None
    staleness_ms: int | None


class Whereabouts(msgspec.Struct, frozen=True, array_like=True):
    """Where replicas are, as a node without one keeps it too."""

    cluster_id: str
    replicas: tuple[tuple[NodeId, tuple[str, ...]], ...]


encode = msgspec.msgpack.Encoder().encode
_encode_outcome = msgspec.msgpack.Encoder(enc_hook=str).encode


def framed(message: FromReplica | Follow) -> bytes:
    body = encode(message)
    assert len(body) <= MESSAGE_BYTES_MAX, type(message)
    return _LENGTH.pack(len(body)) + body


class Reader:
    """What the other side of a session says."""

    def __init__(self, stream: ByteStream, decoder: msgspec.msgpack.Decoder[Any]) -> None:
        self._stream = stream
        self._decoder = decoder
        self._buffer = bytearray()

    async def some(self) -> list[Any]:
        """What came, at least one; nothing when the other side has ended. Refused: it is no
        message; and what the stream raises."""
        buffer = self._buffer
        found: list[Any] = []
        while not found:
            data = await self._stream.receive_some()
            if not data:
                return []
            buffer += data
            start = 0
            while len(buffer) - start >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(buffer, start)
                if size > MESSAGE_BYTES_MAX:
                    raise Refused("invalid", f"a message of {size} bytes")
                end = start + _LENGTH.size + size
                if len(buffer) < end:
                    break
                found.append(decoded(self._decoder, bytes(buffer[start + _LENGTH.size : end])))
                start = end
            del buffer[:start]
        return found


def decoded(decoder: msgspec.msgpack.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except GARBAGE as error:
        raise Refused("invalid", f"this version knows no such words: {error}") from None


def outcome_kept(applied: Applied) -> bytes:
    """An outcome in the form in which the state keeps it, of almost any size; see
    `swarmd.state.requests.outcome_of`."""
    refusal = applied.refusal
    if refusal is not None:
        kept = _encode_outcome(("refused:" + refusal.code, refusal.message, refusal.facts))
    else:
        kept = _encode_outcome(("", "", {}, applied.value))
    return kept if len(kept) <= OUTCOME_BYTES_MAX else _encode_outcome(("large", "", {}))


def _answer_of(query: type[Any]) -> Any:
    """What a query says of itself: `class FindJob(Query["Job | None"])`."""
    (found,) = get_args(query.__orig_bases__[0])
    said = SimpleNamespace(__annotations__={"answer": found})
    return get_type_hints(said, vars(sys.modules[query.__module__]))["answer"]


ANSWERS: dict[type[Any], Any] = {query: _answer_of(query) for query in queries.QUERIES}
"""What each query is answered with, on the wires."""

AnyQuery: Any = Union[tuple(queries.QUERIES)]  # noqa: UP007  # a table's keys have no | between them

decode_query = msgspec.msgpack.Decoder(AnyQuery)
decode_from_replica = msgspec.msgpack.Decoder(FromReplica)
decode_follow = msgspec.msgpack.Decoder(Follow)
