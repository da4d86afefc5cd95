"""Raw bytes at an HTTP port, for a bounded time, from one seed.

    python -m tests.fuzz HOST PORT SECONDS SEED [PATH…]

Requests that are valid, mutated, cut in the middle, smuggled, upgraded with bytes sent along, far
too large, trickled, or reset while they are answered. What comes back is only read, never judged:
whoever calls looks at the server afterwards.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import trio

WORKERS = 12
CONNECTION_S_MAX = 3.0
Address = tuple[str, int] | Path

PATHS = ("/", "/health", "/api/v1/jobs", "/api/v1/jobs/bulk", "/api/v1/health", "/metrics",
         "/api/v1/jobs/x/logs", "/api/v1/jobs/claim", "/%00", "/a/%2e%2e/b", "//x",
         "*")  # fmt: skip
WORDS = (b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"\xff\xfe", b"\r\n\r\n", b"chunked",
         b"Content-Length: 0\r\n", b"Content-Length: 2147483648\r\n", b"Content-Length: -1\r\n",
         b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"Host: evil\r\n",
         b"Expect: 100-continue\r\n", b"Connection: upgrade\r\n", b"Upgrade: websocket\r\n",
         b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", b"HTTP/1.0", b"HTTP/2.0",
         b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"Connection: close\r\n", b"\x16\x03\x01",
         b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", b"{", b"[" * 500,
         b"A" * 5000)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE", "BREW")


async def fuzz(
    address: Address, seconds: float, seed: int, paths: tuple[str, ...] = PATHS
) -> Counter[str]:
    """How many connections of each kind were made, and how many of all were answered."""
    counts: Counter[str] = Counter()
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for worker in range(WORKERS):
                chooser = random.Random(seed * 1000 + worker)
                nursery.start_soon(_work, address, chooser, paths, counts)
    return counts


async def _work(
    address: Address, chooser: random.Random, paths: tuple[str, ...], counts: Counter[str]
) -> None:
    while True:
        kind = chooser.choice(tuple(KINDS))
        counts[kind] += 1
        payload = KINDS[kind](chooser, chooser.choice(paths))
        with trio.move_on_after(CONNECTION_S_MAX):
            if await _throw(address, payload, chooser, slowly=kind == "slow"):
                counts["answered"] += 1
        await trio.lowlevel.checkpoint()


async def _throw(address: Address, payload: bytes, chooser: random.Random, *, slowly: bool) -> bool:
    """One connection; true when anything came back."""
    answered = False
    try:
        stream = await _connect(address)
    except OSError:
        return False
    async with stream:
        try:
            if slowly:
                for at in range(0, len(payload), 7):
                    await stream.send_all(payload[at : at + 7])
                    await trio.sleep(chooser.random() * 0.05)
            elif chooser.random() < 0.5:
                await stream.send_all(payload)
            else:
                cut = chooser.randrange(len(payload) + 1)
                await stream.send_all(payload[:cut])
                await trio.sleep(chooser.random() * 0.01)
                await stream.send_all(payload[cut:])
            ending = chooser.randrange(4)
            if ending == 0:
                _reset_on_close(stream)
            elif ending == 1:
                await stream.send_eof()
            if ending != 0 or chooser.random() < 0.3:
                with trio.move_on_after(chooser.random() * 0.3):
                    while await stream.receive_some(chooser.choice((1, 100, 65536))):
                        answered = True
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
    return answered


async def _connect(address: Address) -> trio.SocketStream:
    if isinstance(address, Path):
        return await trio.open_unix_socket(str(address))
    return await trio.open_tcp_stream(*address)


def _reset_on_close(stream: trio.SocketStream) -> None:
    if stream.socket.family != socket.AF_UNIX:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# -- what is thrown -----------------------------------------------------------------------------


def _request(chooser: random.Random, path: str) -> bytes:
    method = chooser.choice(METHODS[:6] if chooser.random() < 0.9 else METHODS)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {chooser.choice(('localhost', '127.0.0.1:1'))}"]
    body = b""
    if method in ("POST", "PUT", "PATCH"):
        body = chooser.choice(
            (b"{}", b"[]", b'{"type":"x"}', b"x" * 2000, b"[" * 10_000, b'{"a":"\\u0000"}', b"null")
        )
        lines.append("Content-Type: application/json")
        if chooser.random() < 0.3:
            lines.append("Transfer-Encoding: chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        else:
            lines.append(f"Content-Length: {len(body)}")
    if chooser.random() < 0.3:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _mutated(chooser: random.Random, path: str) -> bytes:
    data = _request(chooser, path)
    for _ in range(chooser.randint(1, 6)):
        at = chooser.randrange(len(data) + 1)
        gone = chooser.randrange(8)
        data = data[:at] + chooser.choice(WORDS) + data[at + gone :]
    return data


def _garbage(chooser: random.Random, path: str) -> bytes:
    return chooser.randbytes(chooser.randint(1, 3000))


def _half(chooser: random.Random, path: str) -> bytes:
    data = _request(chooser, path)
    return data[: chooser.randint(1, len(data))]


def _pipeline(chooser: random.Random, path: str) -> bytes:
    return b"".join(_request(chooser, path) for _ in range(chooser.randint(2, 30)))


def _smuggle(chooser: random.Random, path: str) -> bytes:
    inner = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return b"POST %b HTTP/1.1\r\nHost: localhost\r\n%b%b\r\n%b%b" % (
        path.encode(),
        chooser.choice(WORDS[8:15]) + b"\r\n",
        chooser.choice((b"Content-Length: %d\r\n" % len(inner), b"Transfer-Encoding: chunked\r\n",
                        b"Transfer-Encoding : chunked\r\n", b"Content-Length: 4, 5\r\n")),
        chooser.choice((b"", b"0\r\n\r\n", b"5\r\nhello\r\n", b"1;x\r\nA\r\n")),
        inner,
    )  # fmt: skip


def _upgrade(chooser: random.Random, path: str) -> bytes:
    head = (
        b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n" % path.encode()
    )
    frames = (
        b"\x81\x85\x00\x00\x00\x00hello", b"\x89\x80\x00\x00\x00\x00",
        b"\x88\x82\x00\x00\x00\x00\x03\xe8",
        b"\x81\x05hello", b"\x01\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00xxxx",
        b"\xc1\x85\x00\x00\x00\x00hello", b"\x82\xfe\xff\xff\x01\x02\x03\x04" + bytes(65535),
        b"\x80\x80\x00\x00\x00\x00", b"\x8f\xff", b"\x81\x82\x00\x00\x00\x00\xff\xfe",
    )  # fmt: skip
    extra = b"".join(chooser.choice(frames) for _ in range(chooser.randint(0, 6)))
    return head + (extra if chooser.random() < 0.7 else chooser.randbytes(chooser.randint(1, 2000)))


def _huge(chooser: random.Random, path: str) -> bytes:
    return chooser.choice((
        b"GET /" + b"a" * 300_000,
        b"GET / HTTP/1.1\r\nX: " + b"b" * 300_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n" % path.encode()
        + b"c" * 500_000,
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode()
        + b"1\r\nx\r\n" * 50_000,
        b"\r\n" * 50_000,
    ))  # fmt: skip


KINDS: dict[str, Callable[[random.Random, str], bytes]] = {
    "valid": _request,
    "mutated": _mutated,
    "garbage": _garbage,
    "half": _half,
    "slow": _half,
    "pipeline": _pipeline,
    "smuggle": _smuggle,
    "upgrade": _upgrade,
    "huge": _huge,
}


if __name__ == "__main__":
    host, port, seconds, seed, *given = sys.argv[1:]
    found = trio.run(fuzz, (host, int(port)), float(seconds), int(seed), tuple(given) or PATHS)
    print(dict(found))
