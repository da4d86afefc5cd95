"""What a node may ask of its wires to the others; sockets and a simulated network both honour it.

Nothing here waits without a bound, and nobody who is handed a failure has to guess: it says whether
the other side may have seen the request.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import msgspec


class WireError(Exception):
    """Something between two nodes did not work; message says what, facts beside it."""

    handed_over: bool = False
    """The other side may have seen the request, and may have done what it asks for."""

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.facts: dict[str, object] = facts


class Unreachable(WireError):
    """No connection to the peer, or it was lost before the answer came.

    Where the other side said no to a connection, its code is among the facts as `refused`:
    `shut_out` (this node is admitted no more), `double` (another process runs under this node's id,
    is connected there and answers), `busy`."""

    def __init__(self, message: str, *, handed_over: bool = False, **facts: object) -> None:
        super().__init__(message, **facts)
        self.handed_over = handed_over


class TimedOut(WireError):
    """No answer within the caller's bound; the other side was told to stop."""

    def __init__(self, message: str, *, handed_over: bool = True, **facts: object) -> None:
        super().__init__(message, **facts)
        self.handed_over = handed_over


class Refused(WireError):
    """A no with a code. Handlers raise it, and the caller gets it with the same code and facts.

    Codes of the wires' own: `unknown_method`, `busy` (a bound was reached, here or there: nothing
    was done, the same request may pass later), `too_large` (the answer was), `failed` (the handler
    broke: its node's log says how), `no_member` (it takes a certificate to ask this)."""

    def __init__(self, code: str, message: str, **facts: object) -> None:
        super().__init__(message, **facts)
        self.code = code


class Aborted(WireError):
    """The other side gave up a stream, or does not read it any further."""


class TooLarge(WireError):
    """A body is over the bound of a frame; nothing was sent."""


class NotAllowed(WireError):
    """These settings would put unprotected bytes on a network, or are no settings that can work."""


class Applicant(NamedTuple):
    """Who asks without a certificate. Of this, nothing but the address is proved."""

    address: str
    claimed_id: str


APPLICANT_MARK = "?"
"""No node's id begins with it."""


def applicant_of(peer: str) -> Applicant | None:
    """Who a call handler's `peer` is where it is no peer; None where it is."""
    if not peer.startswith(APPLICANT_MARK):
        return None
    address, _, claimed_id = peer.removeprefix(APPLICANT_MARK).partition(" ")
    return Applicant(address, claimed_id)


class PeerFacts(msgspec.Struct, frozen=True):
    """What is known of a peer from the stream that this node holds to it."""

    address: str
    boot: int
    version: int
    """The version of the protocol that both speak."""
    capabilities: tuple[str, ...]
    rtt_last_s: float | None = None
    rtt_smoothed_s: float | None = None


class ByteStream(Protocol):
    """Bytes in both directions, each with its own end. Leave the `async with` and it is over."""

    @property
    def peer(self) -> str: ...

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Returns when all of it has been given to the connection. Raises Aborted, Unreachable."""

    async def send_eof(self) -> None:
        """Nothing further will be sent; receiving goes on."""

    async def receive_some(self, size_max: int | None = None) -> bytes:
        """At least one byte; b"" at the end. Raises Refused, Aborted, Unreachable."""

    def abort(self, reason: str) -> None:
        """Throw away both directions; the other side gets Aborted with the reason."""

    async def aclose(self) -> None:
        """Send the end if it was not sent, and read no further."""

    async def __aenter__(self) -> ByteStream: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


CallHandler = Callable[[str, bytes], bytes | Coroutine[Any, Any, bytes]]
"""(peer, body) -> answer. The peer is who it says, unless `applicant_of` says otherwise, where the
handler takes calls of applicants. A plain function runs at once, between two frames: keep it short.
An async one runs in a task; it is cancelled when the caller gives up or its connection is lost."""
MessageHandler = Callable[[str, bytes], None]
"""(peer, body), in the order of sending per stream; never waits. Raising ends the connection: a
WireError where the peer is to blame, which is counted and named in a warning once a minute."""
StreamHandler = Callable[[str, bytes, ByteStream], Coroutine[Any, Any, None]]
"""(peer, body, stream). Returning closes the stream; raising Refused tells the other side. It is
cancelled when the opener aborts or its connection is lost; an opener that only stops reading is
noticed by the next `send_all`, or by the end of what it sends."""
LinkWatcher = Callable[[str, bool, str], None]
"""(peer, up, reason): a stream to or from the peer is there (True), or broke (False)."""


class Wires(Protocol):
    """One node's wires to all others. Peers are node ids; where they live is told by set_peers.

    Under an id one process is connected at a time. Where another comes that proves the same one,
    the first is asked: where it answers the other is refused, as `double`, else it gives way."""

    @property
    def me(self) -> str: ...

    def set_peers(self, peers: Mapping[str, Sequence[str]]) -> None:
        """Who can be reached and where: `host:port` or `[v6]:port`, the best first. The whole list,
        each time; wires to whom it leaves out are cut. This node itself is passed over. Raises
        NotAllowed for what is no address, or none that may be dialed."""

    def also_at(self, peer: str, addresses: Sequence[str]) -> None:
        """Where a peer itself says that it is: tried behind what set_peers told. Of one that is no
        peer nothing is kept. Raises NotAllowed as set_peers."""

    def send(self, peer: str, body: bytes) -> bool:
        """One way, never waits. False: there is no stream (one is dialed now) or its queue is full.
        True means no more than queued. Messages of one stream arrive in order, none twice."""

    async def call(self, peer: str, method: str, body: bytes, timeout_s: float) -> bytes:
        """Raises Unreachable, TimedOut, Refused, TooLarge. Cancelled: the other side stops too."""

    async def call_address(
        self,
        address: str,
        method: str,
        body: bytes,
        timeout_s: float,
        *,
        pin: bytes | None = None,
    ) -> tuple[str, bytes]:
        """Call whoever answers there, on a connection of its own: (id of who answered, answer).
        With a pin this node shows no certificate, and is an applicant there; whoever answers must
        be a node that the authority with this pin vouches for. Raises as `call`, and NotAllowed."""

    async def open_stream(
        self, peer: str, method: str, body: bytes, timeout_s: float
    ) -> ByteStream:
        """Returns when the request has been queued; a refusal comes with the first receive. The
        timeout bounds only the wait for a connection. Raises Unreachable, TimedOut, Refused."""

    def handle_call(self, method: str, handler: CallHandler, *, applicants: bool = False) -> None:
        """With `applicants`, strangers without a certificate may call it too; nothing else is
        open to them."""

    def handle_message(
        self, handler: MessageHandler, settle: Callable[[], None] | None = None
    ) -> None:
        """There is one; who sends different things says so in the body. `settle` is called behind
        the last of those that came together."""

    def handle_stream(self, method: str, handler: StreamHandler) -> None: ...

    def on_link(self, watcher: LinkWatcher) -> None: ...

    async def probe(self, peer: str, timeout_s: float) -> bool:
        """Does a fresh connection to it succeed now, with its own id answering? Within the bound a
        silence is a no; a refused connection is one at once. Streams that stand say nothing."""

    def linked(self, peer: str) -> bool:
        """A stream to the peer is there: `send` would take a message if there is room."""

    def about(self, peer: str) -> PeerFacts | None:
        """None while there is no stream to it."""
