"""One HTTP request of a drone's to one node, on a connection of its own, and the whole answer.

Every wait and every size has a bound. Whatever the network or the node did is Unavailable; what an
answer says, and whether that is a refusal, is for those who asked.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import h11
import trio

from swarmd.domain.errors import Invalid, SwarmError, Unavailable

CONNECT_TIMEOUT_S = 5.0
STALL_TIMEOUT_S = 60.0
"""For each slice of a body to be taken."""
SLICE_BYTES = 256 * 1024
READ_BYTES = 64 * 1024
INFORMATIONAL_MAX = 8
ANSWER_BYTES_MAX = 4 * 1024 * 1024
PORTS = {"http": 80, "https": 443}

Body = AsyncGenerator[bytes, None]


@dataclass(frozen=True, slots=True)
class Place:
    """One node's build swarm, below a path where a proxy puts it there."""

    url: str
    host: str
    port: int
    tls: bool
    prefix: str

    @classmethod
    def of(cls, url: str) -> Place:
        """Invalid: it is no such URL."""
        wrong = Invalid(
            f"{url[:120]!r} is no URL of a build swarm; write for example http://10.0.0.1:8100"
        )
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise wrong from None
        odd = parts.username or parts.password or parts.query or parts.fragment
        plain = url.isascii() and url.isprintable() and " " not in url
        if parts.scheme not in PORTS or not host or odd or not plain:
            raise wrong
        port, prefix = port or PORTS[parts.scheme], parts.path.rstrip("/")
        netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        url = f"{parts.scheme}://{netloc}{prefix}"
        return cls(url, host, port, parts.scheme == "https", prefix)

    @property
    def netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes


async def exchange(
    place: Place, method: str, target: str, headers: Sequence[tuple[str, str]], body: Body,
    timeout_s: float,
) -> Answer:  # fmt: skip
    """`timeout_s` is from the last byte sent to the answer's end. Invalid: a header cannot be
    sent, or the body is not what its Content-Length says."""
    sent = [("Host", place.netloc), ("Connection", "close"), *headers]
    try:
        request = h11.Request(method=method, target=f"{place.prefix}{target}", headers=sent)
    except h11.LocalProtocolError as error:
        raise Invalid(f"this cannot be sent in a header: {error}") from None
    stream = await _connect(place)
    try:
        async with aclosing(body):
            return await _converse(place, stream, request, body, timeout_s)
    finally:
        await trio.aclose_forcefully(stream)


async def bytes_of(data: bytes) -> Body:
    if data:
        yield data


async def file_of(path: Path, size_bytes: int) -> Body:
    """As much of it as was promised."""
    left = size_bytes
    try:
        async with await trio.open_file(path, "rb") as file:
            while left and (data := await file.read(min(SLICE_BYTES, left))):
                left -= len(data)
                yield data
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from None


@contextmanager
def within(timeout_s: float, place: Place) -> Iterator[None]:
    try:
        with trio.fail_after(timeout_s):
            yield
    except trio.TooSlowError:
        raise Unavailable(f"{place.url} did not answer within {timeout_s:.0f} s") from None


async def _connect(place: Place) -> trio.abc.Stream:
    try:
        with within(CONNECT_TIMEOUT_S, place):
            tcp = await trio.open_tcp_stream(place.host, place.port)
            if not place.tls:
                return tcp
            try:
                # Reading the system's certificates takes a while: off the loop, and once.
                context = await trio.to_thread.run_sync(_tls_context)
                tls = trio.SSLStream(tcp, context, server_hostname=place.host)
                await tls.do_handshake()
            except BaseException:
                await trio.aclose_forcefully(tcp)
                raise
            return tls
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"{place.url} cannot be reached: {_words(error)}") from None
    except trio.BrokenResourceError as error:
        raise Unavailable(f"{place.url}: no TLS: {error.__cause__ or error}") from None


@lru_cache(maxsize=1)
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _converse(
    place: Place, stream: trio.abc.Stream, request: h11.Request, body: Body,
    timeout_s: float,
) -> Answer:  # fmt: skip
    """A refusal may come while the body is still on its way: then that is the answer."""
    connection = h11.Connection(h11.CLIENT)
    head = connection.send(request) or b""
    clock = trio.CancelScope()
    answer: Answer | None = None
    trouble: SwarmError | None = None

    async def send() -> None:
        nonlocal trouble
        try:
            with within(STALL_TIMEOUT_S, place):
                await stream.send_all(head)
            async for part in body:
                data = connection.send(h11.Data(data=part)) or b""
                with within(STALL_TIMEOUT_S, place):
                    await stream.send_all(data)
            connection.send(h11.EndOfMessage())
        except trio.BrokenResourceError:
            pass  # what it answered before that counts; where it did not, the reader says so
        except h11.LocalProtocolError:
            trouble = Invalid("the file became shorter while it was read")
        except SwarmError as error:
            trouble = error
        if trouble is not None:
            clock.cancel()
        clock.deadline = trio.current_time() + timeout_s

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        try:
            with clock:
                answer = await _read_answer(place, connection, stream)
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            trouble = Unavailable(f"{place.url} broke off")
        except Unavailable as error:
            trouble = error
        nursery.cancel_scope.cancel()
    if answer is not None:
        return answer
    raise trouble or Unavailable(f"{place.url} gave no answer within {timeout_s:.0f} s")


async def _read_answer(place: Place, connection: h11.Connection, stream: trio.abc.Stream) -> Answer:
    status, said, received, early = 0, bytearray(), 0, 0
    while early <= INFORMATIONAL_MAX:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = await stream.receive_some(READ_BYTES)
            received += len(data)
            if received > 2 * ANSWER_BYTES_MAX:
                raise Unavailable(f"{place.url} answers without end")
            connection.receive_data(bytes(data))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            said += event.data
            if len(said) > ANSWER_BYTES_MAX:
                raise Unavailable(f"{place.url} answers with more than {ANSWER_BYTES_MAX} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return Answer(status, bytes(said))
        elif isinstance(event, h11.InformationalResponse):
            early += 1
        else:
            break
    raise Unavailable(f"{place.url} broke off, or speaks something else")


def _words(error: BaseException) -> str:
    """The system's own, from wherever in the chain they are."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, BaseExceptionGroup):
            seen = seen.exceptions[0]
            continue
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__
    return str(error)
