"""How two nodes meet: TLS where there is any, then a hello each way, all within one bound of time.

Nothing but hellos passes before both sides know whom they talk to, and that it is who they wanted.
Who shows no certificate is an applicant: let in to ask for one, known by nothing but its address.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import trio

from mesh.frames import (
    HELLO_BYTES_MAX,
    METHOD_CHARS_MAX,
    NODE_CHARS_MAX,
    VERSION,
    VERSION_OLDEST,
    WORDS_CHARS_MAX,
    Broken,
    Bye,
    Decoder,
    Frame,
    Hello,
    Purpose,
    agree,
    encode,
)
from mesh.identity.authority import check_chain
from mesh.identity.contexts import applicant_context
from mesh.identity.errors import IdentityError
from mesh.pipes import (
    UNPROVEN,
    Pipe,
    PlainPipe,
    Target,
    Tls,
    TlsPipe,
    Trust,
    connect,
    plain_pipe,
    resolve,
)
from mesh.wires import APPLICANT_MARK, NotAllowed

REFUSAL_GRACE_S = 1.0


class Dismissed(Broken):
    """The other side said goodbye instead of hello; its code says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__("refused", message)
        self.code = code[:METHOD_CHARS_MAX]


class Me(msgspec.Struct, frozen=True):
    id: str
    boot: int = 0
    """Grows with each start of this node."""
    cluster: str = ""
    """Empty until it is known: then any swarm's node may talk with this one."""
    capabilities: tuple[str, ...] = ()
    process: int = 0
    """Drawn with each start, so that two of one id are told apart."""


class Met(NamedTuple):
    """A connection on which both have said who they are."""

    pipe: Pipe
    hello: Hello
    version: int
    rest: list[Frame]
    """Frames that came right behind the hello; what came in part is still in the decoder."""
    decoder: Decoder
    address: str
    """The other end's."""
    applicant: bool = False

    @property
    def peer(self) -> str:
        """As handlers get it: an id, or what `applicant_of` reads."""
        if self.applicant:
            return f"{APPLICANT_MARK}{self.address} {self.hello.node}"
        return self.hello.node


class Manners(msgspec.Struct, frozen=True):
    """How this node meets others."""

    frame_bytes_max: int
    window_bytes: int
    applicant_bytes_max: int
    connect_timeout_s: float
    hello_timeout_s: float
    admit: Callable[[str], str | None] | None = None
    """Asked of each who has proved its id: None, or why it is not let in."""
    foreign: Callable[[str, str], None] | None = None
    """Told of each who has proved its id and is of another cluster: the id, and the cluster."""
    wall: Callable[[], float] | None = None
    """The time of day in seconds; needed to meet those of whom only a pin is known."""


class Greeter:
    def __init__(self, me: Me, trust: Trust, sources: list[Target], manners: Manners) -> None:
        self.trust = trust
        self._hello = Hello(
            VERSION_OLDEST, VERSION, me.cluster, me.id, me.boot, Purpose.LINK,
            manners.frame_bytes_max, manners.window_bytes, me.capabilities, me.process,
        )  # fmt: skip
        self._manners = manners
        self._sources = sources
        self._applying = applicant_context()

    def be_of(self, cluster: str) -> None:
        """From the next hello on."""
        self._hello = msgspec.structs.replace(self._hello, cluster=cluster)

    @property
    def loopback_only(self) -> bool:
        return self.trust is None

    def check_dial(self, pin: bytes | None) -> None:
        """Raises NotAllowed where nobody may be dialed in this way."""
        if pin is None and self.trust is UNPROVEN:
            raise NotAllowed("this node has no certificate yet: it may only ask for one")
        if pin is not None and (self.trust is None or self._manners.wall is None):
            raise NotAllowed("a pin is of no use on wires without TLS, or without a clock")

    async def dial(
        self, address: str, expected: str | None, purpose: Purpose, pin: bytes | None = None
    ) -> Met:
        """Raises Broken, and NotAllowed where the address must not be dialed."""
        self.check_dial(pin)
        timeout_s = self._manners.connect_timeout_s
        try:
            with trio.fail_after(timeout_s):
                targets = await resolve(address, loopback_only=self.loopback_only)
        except (OSError, trio.TooSlowError) as error:
            raise Broken("connect", f"{address} cannot be resolved: {_words(error)}") from None
        why = Broken("connect", f"{address} has no address of a known family")
        for target in targets:
            try:
                with trio.fail_after(timeout_s):
                    plain = await connect(target, self._source(target))
            except (OSError, trio.TooSlowError) as error:
                why = Broken("connect", f"{target} cannot be connected: {_words(error)}")
                continue
            try:
                with trio.fail_after(self._manners.hello_timeout_s):
                    return await self._introduce(plain, target, expected, purpose, pin)
            except (OSError, trio.TooSlowError) as error:
                reason = "hello_timeout" if isinstance(error, trio.TooSlowError) else "lost"
                why = Broken(reason, f"{target} does not answer: {_words(error)}")
                plain.close()
            except BaseException:
                plain.close()
                raise
        raise why

    async def welcome(self, sock: socket.socket, remote: str) -> Met:
        """The other side's hello, agreed with but not answered yet. The caller bounds the time,
        and closes the socket where this raises Broken, OSError."""
        trust = self.trust
        pipe: Pipe = plain_pipe(sock)
        known_id: str | None = None
        applicant = False
        if isinstance(trust, Tls):
            pipe = tls_pipe = TlsPipe(plain_pipe(sock), trust.server, server=True)
            certificate = await tls_pipe.handshake()
            applicant = certificate is None
            known_id = _named(trust, certificate) if certificate is not None else None
        decoder = Decoder(HELLO_BYTES_MAX)
        hello, *rest = await _first_frames(pipe, decoder)
        if not isinstance(hello, Hello) or rest:
            raise Broken("garbage", "the first frame is no hello, or more came with it")
        try:
            if applicant and hello.purpose != Purpose.ASK:
                raise Broken("applicant", "who shows no certificate may only ask for one")
            version = self._check(hello, known_id, None, applicant=applicant)
        except Broken as broken:
            await refuse(pipe, broken)
            raise
        return Met(pipe, hello, version, rest, decoder, remote, applicant)

    async def answer(self, met: Met) -> None:
        hello = self._hello
        if met.applicant:
            bytes_max = min(self._manners.applicant_bytes_max, hello.frame_bytes_max)
            hello = msgspec.structs.replace(hello, frame_bytes_max=bytes_max)
        await met.pipe.send(encode(hello))

    async def _introduce(
        self,
        plain: PlainPipe,
        target: Target,
        expected: str | None,
        purpose: Purpose,
        pin: bytes | None,
    ) -> Met:
        pipe: Pipe = plain
        known_id: str | None = None
        trust = self.trust
        if pin is not None:
            pipe, known_id = await self._apply(plain, target, pin)
        elif isinstance(trust, Tls):
            pipe = tls_pipe = TlsPipe(plain, trust.client, server=False)
            certificate = await tls_pipe.handshake()
            if certificate is None:
                raise Broken("tls", f"{target} showed no certificate")
            known_id = _named(trust, certificate)
        if expected is not None and known_id is not None and known_id != expected:
            raise Broken("identity", f"{known_id} answers at {target}, not {expected}")
        await pipe.send(encode(msgspec.structs.replace(self._hello, purpose=purpose)))
        decoder = Decoder(HELLO_BYTES_MAX)
        hello, *rest = await _first_frames(pipe, decoder)
        if isinstance(hello, Bye):
            words = f"{target} refuses: {hello.message[:WORDS_CHARS_MAX]}"
            raise Dismissed(hello.reason, words)
        if not isinstance(hello, Hello):
            raise Broken("garbage", f"{target} answers with something else than a hello")
        version = self._check(hello, known_id, expected)
        return Met(pipe, hello, version, rest, decoder, str(target))

    async def _apply(self, plain: PlainPipe, target: Target, pin: bytes) -> tuple[Pipe, str]:
        """Show nothing; the other side is a node that the authority with the pin vouches for. Not
        a byte of ours has gone out before that is proved, but those of the handshake."""
        assert self._manners.wall is not None, "check_dial was not asked"
        pipe = TlsPipe(plain, self._applying, server=False)
        await pipe.handshake()
        try:
            return pipe, check_chain(pipe.chain(), pin, self._manners.wall()).node_id
        except IdentityError as error:
            raise Broken(error.reason, f"{target} is not to be trusted: {error.message}") from None

    def _check(
        self,
        hello: Hello,
        known_id: str | None,
        expected: str | None,
        *,
        applicant: bool = False,
    ) -> int:
        mine, theirs, foreign = self._hello.cluster, hello.cluster, self._manners.foreign
        if foreign is not None and known_id == hello.node and mine and theirs not in ("", mine):
            foreign(hello.node, theirs)
        version = agree(self._hello, hello)
        if hello.node.startswith(APPLICANT_MARK):
            raise Broken("identity", f"no node's id begins with {APPLICANT_MARK}")
        if known_id is not None and hello.node != known_id:
            raise Broken("identity", f"{hello.node} shows the certificate of {known_id}")
        if hello.node == self._hello.node:
            raise Broken("identity", f"{hello.node} is this node itself, or another of its name")
        if expected is not None and hello.node != expected:
            raise Broken("identity", f"{hello.node} answers, not {expected}")
        admit = self._manners.admit
        why = admit(hello.node) if admit is not None and not applicant else None
        if why is not None:
            raise Broken("shut_out", why)
        return version

    def _source(self, target: Target) -> Target | None:
        """The address that this node binds, so that others see it where they know it."""
        for source in self._sources:
            if source.family == target.family:
                return None if source.wildcard else source
        return None


def _named(tls: Tls, certificate: bytes) -> str:
    try:
        return tls.peer_id_of(certificate)
    except Exception:
        raise Broken("identity", "the certificate names no node") from None


async def refuse(pipe: Pipe, why: Broken) -> None:
    """Tell a stranger why the connection ends, if it takes it at once. Raises OSError."""
    with trio.move_on_after(REFUSAL_GRACE_S):
        await pipe.send(encode(Bye(why.reason, why.message)))


async def _first_frames(pipe: Pipe, decoder: Decoder) -> list[Frame]:
    while True:
        data = await pipe.receive()
        if not data:
            raise Broken("garbage", "the connection ended before a hello")
        if frames := decoder.feed(data):
            return frames


def check_me(me: Me) -> None:
    if not 0 < len(me.id) <= NODE_CHARS_MAX or me.id.startswith(APPLICANT_MARK):
        raise NotAllowed(
            f"a node id has 1 to {NODE_CHARS_MAX} characters, the first not {APPLICANT_MARK}"
        )
    if len(msgspec.msgpack.encode(me)) > HELLO_BYTES_MAX - 256 or len(me.capabilities) > 100:
        raise NotAllowed("too many or too long capabilities for one hello")


def _words(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason}"
    return str(error.args[-1] if error.args else error)
