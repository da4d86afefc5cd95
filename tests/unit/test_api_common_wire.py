"""Heads and chunked bodies: strict, and never read in another way than h11 reads them."""

from __future__ import annotations

import random

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.common.faults import BadRequest, HeadersTooLarge, HttpFault, UriTooLong
from api.common.limits import HttpLimits
from api.common.wire import ChunkedReader, Head, check_beginning, parse_head, render_head

LIMITS = HttpLimits()


def head_of(*lines: str) -> Head:
    return parse_head("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n", LIMITS)


def test_a_head_is_read() -> None:
    head = head_of(
        "POST /jobs?x=1 HTTP/1.1", "Host: a:80", "Content-Length: 12", "X-Admin-Key:  k  "
    )
    assert (head.method, head.target, head.minor) == ("POST", b"/jobs?x=1", 1)
    assert head.headers[2] == (b"x-admin-key", b"k")
    assert head.content_length == 12 and head.key == "k" and head.keep_alive


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("GET / HTTP/1.1",), 400),  # no Host
        (("GET / HTTP/1.1", "Host: a", "Host: a"), 400),
        (("GET / HTTP/1.1", "Host: a b"), 400),
        (("GET / HTTP/1.1", "Host: a/b@c"), 400),
        (("GET / HTTP/2.0", "Host: a"), 501),
        (("GET / HTTP/0.9", "Host: a"), 501),
        (("GET  / HTTP/1.1", "Host: a"), 400),
        (("get / HTTP/1.1", "Host: a"), 400),
        (("GET /a b HTTP/1.1", "Host: a"), 400),
        (("GET a HTTP/1.1", "Host: a"), 400),
        (("CONNECT a:80 HTTP/1.1", "Host: a"), 400),
        (("GET * HTTP/1.1", "Host: a"), 400),
        (("GET / HTTP/1.1", "Host: a", " folded: x"), 400),
        (("GET / HTTP/1.1", "Host: a", "X: 1", "\tfolded"), 400),
        (("GET / HTTP/1.1", "Host : a"), 400),
        (("GET / HTTP/1.1", "Host: a", "X: a\0b"), 400),
        (("GET / HTTP/1.1", "Host: a", "X: a\nY: b"), 400),
        (("GET / HTTP/1.1", "Host: a", "X: a\rY: b"), 400),
        (("GET / HTTP/1.1", "Host: a", ": x"), 400),
        (("GET / HTTP/1.1", "Host: a", "no colon"), 400),
        (("POST / HTTP/1.1", "Host: a", "Content-Length: 1", "Content-Length: 2"), 400),
        (("POST / HTTP/1.1", "Host: a", "Content-Length: 1", "Content-Length: 1"), 400),
        (("POST / HTTP/1.1", "Host: a", "Content-Length: +1"), 400),
        (("POST / HTTP/1.1", "Host: a", "Content-Length: -1"), 400),
        (("POST / HTTP/1.1", "Host: a", "Content-Length: 1, 1"), 400),
        (("POST / HTTP/1.1", "Host: a", "Content-Length: 0x10"), 400),
        (("POST / HTTP/1.1", "Host: a", "Content-Length: "), 400),
        (("POST / HTTP/1.1", "Host: a", "Content-Length: " + "9" * 40), 400),
        (("POST / HTTP/1.1", "Host: a", "Content-Length: 1", "Transfer-Encoding: chunked"), 400),
        (("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: gzip, chunked"), 501),
        (("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked, identity"), 501),
        (("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: \x0bchunked"), 400),
        (
            (
                "POST / HTTP/1.1",
                "Host: a",
                "Transfer-Encoding: chunked",
                "Transfer-Encoding: chunked",
            ),
            400,
        ),
        (("POST / HTTP/1.0", "Transfer-Encoding: chunked"), 400),
        (("POST / HTTP/1.1", "Host: a", "Expect: magic"), 417),
        (("POST / HTTP/1.1", "Host: a", "Content-Type: a/b", "Content-Type: c/d"), 400),
        (("GET / HTTP/1.1", "Host: a", *(f"X-{n}: y" for n in range(101))), 431),
        (("GET /" + "a" * 13_000 + " HTTP/1.1", "Host: a"), 414),
        (("GET / HTTP/1.1", "Host: a", "X: " + "y" * 17000), 431),
    ],
)
def test_what_two_readers_could_read_in_two_ways_is_refused(
    lines: tuple[str, ...], status: int
) -> None:
    with pytest.raises(HttpFault) as refused:
        head_of(*lines)
    assert refused.value.status == status


def test_absolute_targets_outrank_the_host() -> None:
    head = head_of("GET http://Swarm.example:8080?x=1 HTTP/1.1", "Host: other")
    assert (head.target, head.host) == (b"/?x=1", "Swarm.example:8080")
    with pytest.raises(BadRequest):
        head_of("GET http://user@evil/ HTTP/1.1", "Host: a")


def test_keep_alive_by_version() -> None:
    assert not head_of("GET / HTTP/1.0").keep_alive
    assert head_of("GET / HTTP/1.0", "Connection: Keep-Alive").keep_alive
    assert not head_of("GET / HTTP/1.1", "Host: a", "Connection: x, CLOSE").keep_alive


def test_a_beginning_that_can_be_no_request_is_refused_early() -> None:
    check_beginning(b"GE", LIMITS)
    check_beginning(b"GET / HTTP/1.1\r\nHos", LIMITS)
    for garbage in (
        b"\x16\x03\x01",
        b"get /",
        b"GET\t/",
        b"GET / HTTP/1.1\nHost: a\n",
        b"hello\r\n",
    ):
        with pytest.raises(BadRequest):
            check_beginning(garbage, LIMITS)
    with pytest.raises(UriTooLong):
        check_beginning(b"GET /" + b"a" * 12_400, LIMITS)
    with pytest.raises(HeadersTooLarge):
        check_beginning(b"GET / HTTP/1.1\r\nX: " + b"a" * 16400, LIMITS)


def test_a_response_header_cannot_break_out_of_its_line() -> None:
    assert render_head(200, [(b"A", b"b")]) == b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"
    for bad in (b"b\r\nSet-Cookie: x", b"b\nc", b"b\0c"):
        with pytest.raises(ValueError, match="line break"):
            render_head(200, [(b"A", bad)])


def h11_reads(data: bytes) -> tuple[str, list[tuple[bytes, bytes]], bytes] | None:
    """Method, headers and body as h11 has them; None where it refuses or wants more."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    try:
        request = connection.next_event()
        if not isinstance(request, h11.Request):
            return None
        body = b""
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return request.method.decode(), list(request.headers), body
            else:
                return None
    except h11.RemoteProtocolError:
        return None


def we_read(data: bytes) -> tuple[str, list[tuple[bytes, bytes]], bytes] | None:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    try:
        head = parse_head(data[: end + 4], LIMITS)
        rest = bytearray(data[end + 4 :])
        if head.chunked:
            reader, body = ChunkedReader(), b""
            while piece := reader.feed(rest):
                body += piece
            if not reader.done:
                return None
        else:
            body = bytes(rest[: head.content_length or 0])
            if len(body) < (head.content_length or 0):
                return None
    except HttpFault:
        return None
    return head.method, head.headers, body


SEEDS = [
    b"GET /a HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;x=y\r\nhello\r\nA\r\n0123456789\r\n0\r\nTrailer: z\r\n\r\n",
    b"PUT /a HTTP/1.0\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi",
]
PIECES = [b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"0", b"5", b"\x0b", b"\x80", b",",
          b";", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"chunked",
          b"\r\n\r\n",
          b"-", b"Host: b\r\n", b"0\r\n\r\n", b"HTTP/1.1", b"+", b"_", b"e"]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 12), st.sampled_from(PIECES)), max_size=4
    ),
)
def test_whatever_is_accepted_h11_reads_the_same(
    seed: bytes, edits: list[tuple[int, int, bytes]]
) -> None:
    data = seed
    for at, gone, piece in edits:
        at %= len(data) + 1
        data = data[:at] + piece + data[at + gone :]
    ours = we_read(data)
    if ours is None or b"://" in data.split(b"\r\n")[0]:
        return
    theirs = h11_reads(data)
    if theirs is None:  # stricter than h11 is allowed to be, never laxer
        pytest.fail(f"h11 refuses what we read: {data!r}")
    assert (ours[0], ours[2]) == (theirs[0], theirs[2])
    assert sorted(ours[1]) == sorted(theirs[1])


def test_chunks_come_in_any_pieces() -> None:
    whole = b"".join(b"%x\r\n%b\r\n" % (n, b"x" * n) for n in range(1, 60)) + b"0\r\nA: b\r\n\r\n"
    chooser = random.Random(7)
    for _ in range(50):
        reader, buffer, body, at = ChunkedReader(), bytearray(), b"", 0
        while not reader.done:
            step = chooser.randint(1, 40)
            buffer += whole[at : at + step]
            at += step
            body += reader.feed(buffer)
        assert len(body) == sum(range(1, 60)) and not buffer


def test_a_call_takes_a_bounded_number_of_chunks() -> None:
    buffer = bytearray(b"1\r\nx\r\n" * 5000)
    assert len(ChunkedReader().feed(buffer)) == 512


@pytest.mark.parametrize(
    "bad",
    [b"x\r\n", b"-1\r\n", b"5\r\nhelloo\r\n", b"5\nhello\n", b"5 5\r\n", b"0x5\r\n",
     b"1" * 300, b"0\r\nbad trailer\r\n\r\n", b"1;\x00\r\n", b"0\r\n" + b"A: b\r\n" * 1000,
     b"FFFFFFFFFFFFFFFFF\r\n"],
)  # fmt: skip
def test_a_malformed_chunk_is_refused(bad: bytes) -> None:
    with pytest.raises(HttpFault):
        ChunkedReader().feed(bytearray(bad))
