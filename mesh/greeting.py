"""How two nodes meet: TLS where there is any, then a hello each way, all within one bound of time.

Nothing but hellos passes before both sides know whom they talk to, and that it is who they wanted.
"""

from __future__ import annotations

import socket
import ssl
from typing import NamedTuple

import msgspec
import trio

from mesh.frames import (
    HELLO_BYTES_MAX,
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
from mesh.pipes import Pipe, PlainPipe, Target, Tls, TlsPipe, connect, plain_pipe, resolve
from mesh.wires import NotAllowed

REFUSAL_GRACE_S = 1.0


class Me(msgspec.Struct, frozen=True):
    id: str
    boot: int = 0
    """Grows with each start of this node."""
    cluster: str = ""
    """Empty until it is known: then any swarm's node may talk with this one."""
    capabilities: tuple[str, ...] = ()


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


class Greeter:
    def __init__(
        self,
        me: Me,
        tls: Tls | None,
        sources: list[Target],
        *,
        frame_bytes_max: int,
        window_bytes: int,
        connect_timeout_s: float,
        hello_timeout_s: float,
    ) -> None:
        self._hello = Hello(
            VERSION_OLDEST, VERSION, me.cluster, me.id, me.boot, Purpose.LINK, frame_bytes_max,
            window_bytes, me.capabilities,
        )  # fmt: skip
        self._tls = tls
        self._sources = sources
        self._connect_timeout_s = connect_timeout_s
        self._hello_timeout_s = hello_timeout_s

    @property
    def loopback_only(self) -> bool:
        return self._tls is None

    async def dial(self, address: str, expected: str | None, purpose: Purpose) -> Met:
        """Raises Broken, and NotAllowed where the address must not be dialed."""
        try:
            with trio.fail_after(self._connect_timeout_s):
                targets = await resolve(address, loopback_only=self.loopback_only)
        except (OSError, trio.TooSlowError) as error:
            raise Broken("connect", f"{address} cannot be resolved: {_words(error)}") from None
        why = Broken("connect", f"{address} has no address of a known family")
        for target in targets:
            try:
                with trio.fail_after(self._connect_timeout_s):
                    plain = await connect(target, self._source(target))
            except (OSError, trio.TooSlowError) as error:
                why = Broken("connect", f"{target} cannot be connected: {_words(error)}")
                continue
            try:
                with trio.fail_after(self._hello_timeout_s):
                    return await self._introduce(plain, target, expected, purpose)
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
        pipe, known_id = await self._secure(plain_pipe(sock), server=True)
        decoder = Decoder(HELLO_BYTES_MAX)
        hello, *rest = await _first_frames(pipe, decoder)
        if not isinstance(hello, Hello) or rest:
            raise Broken("garbage", "the first frame is no hello, or more came with it")
        try:
            version = self._check(hello, known_id, None)
        except Broken as broken:
            await refuse(pipe, broken)
            raise
        return Met(pipe, hello, version, rest, decoder, remote)

    async def answer(self, met: Met) -> None:
        await met.pipe.send(encode(self._hello))

    async def _introduce(
        self, plain: PlainPipe, target: Target, expected: str | None, purpose: Purpose
    ) -> Met:
        pipe, known_id = await self._secure(plain, server=False)
        if expected is not None and known_id is not None and known_id != expected:
            raise Broken("identity", f"{known_id} answers at {target}, not {expected}")
        await pipe.send(encode(msgspec.structs.replace(self._hello, purpose=purpose)))
        decoder = Decoder(HELLO_BYTES_MAX)
        hello, *rest = await _first_frames(pipe, decoder)
        if isinstance(hello, Bye):
            raise Broken("refused", f"{target} refuses: {hello.message[:WORDS_CHARS_MAX]}")
        if not isinstance(hello, Hello):
            raise Broken("garbage", f"{target} answers with something else than a hello")
        version = self._check(hello, known_id, expected)
        return Met(pipe, hello, version, rest, decoder, str(target))

    async def _secure(self, plain: PlainPipe, *, server: bool) -> tuple[Pipe, str | None]:
        """With TLS, the id that the other side's certificate has."""
        if self._tls is None:
            return plain, None
        pipe = TlsPipe(plain, self._tls.server if server else self._tls.client, server=server)
        certificate = await pipe.handshake()
        try:
            known_id = self._tls.peer_id_of(certificate)
        except Exception:
            raise Broken("identity", "the certificate names no node") from None
        return pipe, known_id

    def _check(self, hello: Hello, known_id: str | None, expected: str | None) -> int:
        version = agree(self._hello, hello)
        if known_id is not None and hello.node != known_id:
            raise Broken("identity", f"{hello.node} shows the certificate of {known_id}")
        if hello.node == self._hello.node:
            raise Broken("identity", f"{hello.node} is this node itself, or another of its name")
        if expected is not None and hello.node != expected:
            raise Broken("identity", f"{hello.node} answers, not {expected}")
        return version

    def _source(self, target: Target) -> Target | None:
        """The address that this node binds, so that others see it where they know it."""
        for source in self._sources:
            if source.family == target.family:
                return None if source.wildcard else source
        return None


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
    if not 0 < len(me.id) <= NODE_CHARS_MAX:
        raise NotAllowed(f"a node id has 1 to {NODE_CHARS_MAX} characters")
    if len(msgspec.msgpack.encode(me)) > HELLO_BYTES_MAX - 256 or len(me.capabilities) > 100:
        raise NotAllowed("too many or too long capabilities for one hello")


def _words(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason}"
    return str(error.args[-1] if error.args else error)
