"""Downloads against real servers on 127.0.0.1, most hostile: each ends in time, in clear words."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import logging
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from swarmd.domain.errors import Invalid, SwarmError, TooLarge, Unavailable
from swarmd.drivers.http import Downloaded, HttpSettings, download, redact
from tests.parts import need
from tests.steps import measured

QUICK = HttpSettings(connect_timeout_s=2, connect_tries=2, stall_timeout_s=0.5)
PATIENT = HttpSettings()
Handler = Callable[[trio.abc.Stream, bytes], Awaitable[None]]


class Site:
    """A server that answers every connection with one handler and keeps the heads it was sent."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.heads: list[bytes] = []
        self.ended = trio.Event()

    def url(self, path: str = "/x", *, scheme: str = "http", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.port}{path}"


@asynccontextmanager
async def serving(
    handler: Handler, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Site]:
    listeners = await trio.open_tcp_listeners(0, host=host)
    site = Site(listeners[0].socket.getsockname()[1])

    async def serve(stream: trio.abc.Stream) -> None:
        if tls is not None:
            stream = trio.SSLStream(stream, tls, server_side=True)  # type: ignore[type-var]
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                data = await stream.receive_some(4096)
                if not data:
                    return
                head += data
            site.heads.append(head)
            await handler(stream, head)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            site.ended.set()
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield site
        nursery.cancel_scope.cancel()


def answer(*parts: bytes) -> Handler:
    async def send(stream: trio.abc.Stream, head: bytes) -> None:
        for part in parts:
            await stream.send_all(part)

    return send


def endless(first: bytes, again: bytes, pause_s: float = 0.0) -> Handler:
    async def send(stream: trio.abc.Stream, head: bytes) -> None:
        await stream.send_all(first)
        while True:
            await stream.send_all(again)
            await trio.sleep(pause_s)

    return send


def ok(body: bytes, *headers: bytes) -> bytes:
    lines = (b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *headers)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(pieces: Iterable[bytes]) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


async def fetch(
    url: str,
    into: Path,
    settings: HttpSettings = QUICK,
    bytes_max: int = 1_000_000,
    timeout_s: float = 5.0,
) -> Downloaded:
    with trio.fail_after(150):
        return await download(
            url, into, bytes_max=bytes_max, timeout_s=timeout_s, settings=settings
        )


async def refusal(url: str, into: Path, **limits: object) -> SwarmError:
    with pytest.raises(SwarmError) as caught:
        await fetch(url, into, **limits)  # type: ignore[arg-type]
    assert list(into.parent.iterdir()) == [], "a failed download leaves no file"
    return caught.value


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# What ordinary servers send.


@pytest.mark.parametrize("size", [0, 1, 45_000, 262_144, 3_000_001])
async def test_a_body_with_a_length_is_saved_and_hashed(tmp_path: Path, size: int) -> None:
    body = bytes(range(251)) * (size // 251 + 1)
    body = body[:size]
    async with serving(answer(ok(body))) as site:
        got = await fetch(site.url(), tmp_path / "x", bytes_max=size)
    assert got == Downloaded(sha(body), size)
    assert (tmp_path / "x").read_bytes() == body


async def test_chunked_bodies_and_early_hints(tmp_path: Path) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    async with serving(answer(hints, chunked([b"one", b"two" * 50_000, b"3"]))) as site:
        got = await fetch(site.url(), tmp_path / "x")
    assert got.sha256 == sha(b"one" + b"two" * 50_000 + b"3")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_body_that_ends_with_the_connection(tmp_path: Path, version: bytes) -> None:
    async with serving(answer(b"HTTP/%s 200 OK\r\n\r\n" % version, b"a", b"b" * 9000)) as site:
        got = await fetch(site.url(), tmp_path / "x")
    assert got.sha256 == sha(b"a" + b"b" * 9000)


async def test_what_is_asked(tmp_path: Path) -> None:
    async with serving(answer(ok(b"x"))) as site:
        await fetch(site.url("/a%20b;p/ü?q=1&r=%2F"), tmp_path / "x")
    head = site.heads[0].decode()
    assert head.startswith("GET /a%20b;p/%C3%BC?q=1&r=%2F HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{site.port}\r\n" in head
    assert "Accept-Encoding: identity\r\n" in head
    assert "Connection: close\r\n" in head


@pytest.fixture
def ipv6() -> None:
    need("ipv6")


@pytest.mark.usefixtures("ipv6")
async def test_an_ipv6_host(tmp_path: Path) -> None:
    async with serving(answer(ok(b"six")), host="::1") as site:
        await fetch(site.url(host="[::1]"), tmp_path / "x")
    assert f"Host: [::1]:{site.port}\r\n".encode() in site.heads[0]


async def test_what_is_compressed_is_saved_as_served(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(20_000_000))
    async with serving(answer(ok(bomb, b"Content-Encoding: gzip"))) as site:
        got = await fetch(site.url(), tmp_path / "x", bytes_max=100_000)
    assert got == Downloaded(sha(bomb), len(bomb), "gzip")


async def test_anyio_and_its_missing_multierror_are_not_touched(tmp_path: Path) -> None:
    """asks wants `trio.MultiError` through anyio's backend alone. While this passes, no shim."""
    code = (
        "import sys, trio, pathlib, swarmd.drivers.http as http\n"
        "async def main():\n"
        "    got = await http.download(sys.argv[1], pathlib.Path(sys.argv[2]),"
        " bytes_max=99, timeout_s=5)\n"
        "    assert got.size_bytes == 5\n"
        "trio.run(main)\n"
        "assert 'anyio._backends._trio' not in sys.modules and not hasattr(trio, 'MultiError')\n"
    )
    async with serving(answer(ok(b"hello"))) as site:
        command = [sys.executable, "-c", code, site.url(), str(tmp_path / "x")]
        done = await trio.run_process(
            command, capture_stdout=True, stderr=subprocess.STDOUT, check=False
        )
    assert done.returncode == 0, done.stdout.decode()


# Redirects.


def redirect(to: str, status: int = 302) -> bytes:
    return b"HTTP/1.1 %d Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (
        status,
        to.encode("latin-1"),
    )


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(tmp_path: Path, status: int) -> None:
    async def hop(stream: trio.abc.Stream, head: bytes) -> None:
        there = b"GET /there" in head
        await stream.send_all(ok(b"there") if there else redirect("/there?x=1", status))

    async with serving(hop) as site:
        assert (await fetch(site.url(), tmp_path / "x")).sha256 == sha(b"there")


async def test_redirects_have_an_end(tmp_path: Path) -> None:
    async with serving(answer(redirect("/again"))) as site:
        error = await refusal(site.url(), tmp_path / "x")
    assert "more than 5 redirects" in error.message
    assert len(site.heads) == 6


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://a/b", "gopher://x", "http://", "http://[::1", "//"]
)
async def test_redirects_elsewhere_are_refused(tmp_path: Path, to: str) -> None:
    async with serving(answer(redirect(to))) as site:
        assert "redirects" in (await refusal(site.url(), tmp_path / "x")).message


async def test_a_redirect_without_a_place(tmp_path: Path) -> None:
    async with serving(answer(b"HTTP/1.1 302 X\r\nContent-Length: 0\r\n\r\n")) as site:
        assert "without saying where" in (await refusal(site.url(), tmp_path / "x")).message


async def test_credentials_stay_with_their_origin(tmp_path: Path) -> None:
    async with serving(answer(ok(b"end"))) as other:

        async def hop(stream: trio.abc.Stream, head: bytes) -> None:
            first = b"GET /first" in head
            await stream.send_all(redirect("/second" if first else other.url("/third")))

        async with serving(hop) as site:
            url = site.url("/first", host="us%40er:geheim@127.0.0.1")
            await fetch(url, tmp_path / "x")
    assert [b"Authorization: Basic dXNAZXI6Z2VoZWlt" in head for head in site.heads] == [True] * 2
    assert b"Authorization" not in other.heads[0]


# Hostile and broken servers.


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((b"\x00\xff\xfegarbage\r\n\r\n",), "does not answer in HTTP"),
        ((b"SSH-2.0-OpenSSH_9\r\n",), "does not answer in HTTP"),
        ((b"HTTP/1.1 abc OK\r\n\r\n",), "does not answer in HTTP"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nContent-Length: 8\r\n\r\n",), "HTTP"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",), "HTTP"),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",), "HTTP"),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",), "HTTP"),
        ((b"",), ""),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",), "5 bytes did"),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort",), "broke off"),
        ((b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",), ""),
        ((b"HTTP/1.1 103 Early\r\n\r\n" * 50,), "heads without end"),
        ((b"HTTP/1.1 404 \x1b[31mNope\r\nContent-Length: 0\r\n\r\n",), ""),
        ((b"HTTP/1.1 404 Nope\r\nContent-Length: 0\r\n\r\n",), "answered 404 Not Found"),
        ((b"HTTP/1.1 206 Some\r\nContent-Length: 1\r\n\r\nx",), "answered 206"),
        ((b"HTTP/1.1 799 Odd\r\nContent-Length: 1\r\n\r\nx",), "answered 799"),
        ((b"HTTP/1.1 204 None\r\n\r\n",), "answered 204"),
    ],
)
async def test_broken_answers(tmp_path: Path, parts: tuple[bytes, ...], words: str) -> None:
    async with serving(answer(*parts)) as site:
        error = await refusal(site.url(), tmp_path / "x")
    assert isinstance(error, Unavailable)
    assert words in error.message
    assert error.message.isprintable()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (endless(b"HTTP/1.1 200 OK\r\n", b"X-Filler: " + b"a" * 500 + b"\r\n"), "in HTTP/1.1"),
        (endless(b"HTTP/1.1 200 OK\r\nX: ", b"a" * 500), "in HTTP/1.1"),
        (endless(b"", b"HTTP/1.1 103 Early\r\n\r\n"), "heads without end"),
        (endless(CHUNKED + b"5;", b"ext=1;" * 100), "in HTTP/1.1"),
        (endless(CHUNKED, b"1;" + b"e" * 8000 + b"\r\nx\r\n"), "mostly framing"),
        (endless(CHUNKED + b"0\r\n", b"T: r\r\n" * 50), "in HTTP/1.1"),
    ],
    ids=["headers", "one header", "hints", "chunk extension", "chunk extensions", "trailers"],
)
async def test_framing_without_end(tmp_path: Path, handler: Handler, words: str) -> None:
    async with serving(handler) as site:
        error = await refusal(site.url(), tmp_path / "x")
        assert isinstance(error, Unavailable) and words in error.message
        await site.ended.wait()  # and our end of the connection is gone


@pytest.mark.parametrize(
    "handler",
    [
        endless(b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 65536),
        endless(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"8\r\n12345678\r\n" * 99
        ),
        answer(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"),
        answer(ok(b"x" * 100_001)),
    ],
    ids=["to the end", "chunked", "announced", "one too many"],
)
async def test_bodies_without_end(tmp_path: Path, handler: Handler) -> None:
    async with serving(handler) as site:
        error = await refusal(site.url(), tmp_path / "x", bytes_max=100_000)
    assert isinstance(error, TooLarge)
    assert "100000 bytes" in error.message


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (endless(b"", b"", 0.05), "did not answer within"),
        (endless(b"HTTP/1.1 200 OK\r\n", b"X", 0.05), "did not answer within"),
        (endless(b"HTTP/1.1 200 OK\r\n\r\nsome", b"", 0.05), "sent nothing within 0.5 s"),
        (endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x", 0.05), "did not end within 1.5 s"),
    ],
    ids=["silent", "dripping head", "silent body", "dripping body"],
)
async def test_slow_servers(tmp_path: Path, handler: Handler, words: str) -> None:
    async with serving(handler) as site:
        error = await refusal(site.url(), tmp_path / "x", timeout_s=1.5)
    assert isinstance(error, Unavailable)
    assert words in error.message


async def test_a_reset_in_the_middle(tmp_path: Path) -> None:
    async def reset(stream: trio.abc.Stream, head: bytes) -> None:
        assert isinstance(stream, trio.SocketStream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n12345")
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    async with serving(reset) as site:
        error = await refusal(site.url(), tmp_path / "x")
    assert "broke off" in error.message
    assert len(site.heads) == 1, "a request that was sent is not sent again"


async def test_tiny_chunks_do_not_hold_the_loop(tmp_path: Path) -> None:
    longest_s = []
    body = b"ab" * 10_000
    async with serving(answer(chunked(bytes([b]) for b in body))) as site:
        for number in range(3):
            with measured() as steps:
                got = await fetch(site.url(), tmp_path / f"x{number}", PATIENT, timeout_s=120)
            assert got.sha256 == sha(body)
            longest_s.append(steps.longest_s)
    assert min(longest_s) < 0.02


async def test_nobody_listens_or_answers_to_the_name(tmp_path: Path) -> None:
    async with serving(answer()) as site:
        pass
    error = await refusal(site.url(), tmp_path / "x")
    assert error.message == f"cannot connect to 127.0.0.1:{site.port}: Connection refused"
    error = await refusal("http://no-such-host.invalid/", tmp_path / "x")
    assert "cannot connect to no-such-host.invalid" in error.message


async def test_a_server_that_comes_up_a_moment_later(tmp_path: Path) -> None:
    async with serving(answer()) as site:
        port = site.port

    async def late() -> None:
        await trio.sleep(0.1)
        (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
        async with listener, await listener.accept() as stream:
            await stream.receive_some(4096)
            await stream.send_all(ok(b"late"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(late)
        assert (await fetch(site.url(), tmp_path / "x")).sha256 == sha(b"late")


async def test_a_cancelled_download_leaves_nothing(tmp_path: Path) -> None:
    async with serving(endless(b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 1000, 0.01)) as site:
        with trio.move_on_after(0.3) as scope:
            await fetch(site.url(), tmp_path / "x")
        assert scope.cancelled_caught
        assert os.listdir(tmp_path) == []
        await site.ended.wait()


# What is no URL of ours, and what must not be told.


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "/etc/passwd", "file:///etc/passwd", "ftp://h/x", "http://", "http:///x",
        "http://h:99999/", "http://h:x/", "http://[::1/", "http://h/a b", "http://h/\r\nX: y",
        "http://h\n/", "http://h/\x00", "http://h/" + "a" * 9000, "http://" + "ü" * 300 + "/",
    ],
)  # fmt: skip
async def test_urls_that_are_refused(tmp_path: Path, url: str) -> None:
    assert isinstance(await refusal(url, tmp_path / "x"), Invalid)


async def test_secrets_of_urls_appear_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    handlers = [
        answer(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"),
        answer(b"garbage\r\n\r\n"),
        answer(redirect("ftp://u:geheim@h/?token=geheim")),
        answer(redirect("http://u:geheim@127.0.0.1:1/?token=geheim")),
        answer(ok(b"x" * 2000)),
    ]
    for handler in handlers:
        async with serving(handler) as site:
            url = site.url("/p?token=geheim#geheim", host="u:geheim@127.0.0.1")
            error = await refusal(url, tmp_path / "x", bytes_max=1000)
        assert "geheim" not in f"{error.message} {error.facts}"
        assert error.facts["url"] == f"http://127.0.0.1:{site.port}/p?…"
    for bad in ("http://u:geheim@h:x/", "ftp://u:geheim@h/", "http://u:geheim@[::1/"):
        error = await refusal(bad, tmp_path / "x")
        assert "geheim" not in f"{error.message} {error.facts}"
    assert "geheim" not in caplog.text


def test_redact() -> None:
    assert redact("https://u:p@h:1/a?k=v#f") == "https://h:1/a?…"
    assert redact("http://h/\x1b[31m") == "http://h/?[31m"
    assert len(redact("http://h/" + "a" * 5000)) < 310


# TLS.


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, directory: Path) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        # Newer Pythons want all that RFC 5280 wants.
        usage = dict.fromkeys((
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
            "key_agreement", "encipher_only", "decipher_only",
        ), False)  # fmt: skip
        public = self.key.public_key()
        cert = (
            self._builder(self.name, self.key)
            .add_extension(constraints, critical=True)
            .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )
        self.file = directory / "ca.pem"
        signed = cert.sign(self.key, hashes.SHA256())
        self.file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        self.directory = directory

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int = 2
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=3))
            .not_valid_after(now + datetime.timedelta(days=days))
        )

    def server(self, *names: str, days: int = 2) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        alternatives: list[x509.GeneralName] = [
            x509.IPAddress(ip_address(n)) if n[0].isdigit() else x509.DNSName(n) for n in names
        ]
        cert = (
            self._builder(subject, key, days)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )
        file = self.directory / f"{'-'.join(names)}.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + cert.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def trusted(self) -> HttpSettings:
        return HttpSettings(connect_timeout_s=2, stall_timeout_s=0.5, ca_file=str(self.file))


@pytest.fixture
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


async def test_tls_with_a_ca_of_ones_own(tmp_path: Path, authority: Authority) -> None:
    tls = authority.server("127.0.0.1", "localhost")
    async with serving(answer(ok(b"y" * 70_000)), tls=tls) as site:
        for n, host in enumerate(("127.0.0.1", "localhost")):
            url = site.url(scheme="https", host=host)
            got = await fetch(url, tmp_path / str(n), authority.trusted())
            assert got.sha256 == sha(b"y" * 70_000)


async def test_tls_without_trust_is_refused(tmp_path: Path, authority: Authority) -> None:
    async with serving(answer(ok(b"x")), tls=authority.server("127.0.0.1")) as site:
        error = await refusal(site.url(scheme="https"), tmp_path / "x")
    assert "its certificate is not accepted" in error.message
    assert site.heads == [], "nothing was asked of a server that is not trusted"


async def test_tls_with_another_name_is_refused(tmp_path: Path, authority: Authority) -> None:
    async with serving(answer(ok(b"x")), tls=authority.server("elsewhere.example")) as site:
        for host in ("127.0.0.1", "localhost"):
            url = site.url(scheme="https", host=host)
            error = await refusal(url, tmp_path / "x", settings=authority.trusted())
            assert "mismatch" in error.message
    assert site.heads == []


async def test_tls_that_ran_out_is_refused(tmp_path: Path, authority: Authority) -> None:
    async with serving(answer(ok(b"x")), tls=authority.server("127.0.0.1", days=-1)) as site:
        error = await refusal(
            site.url(scheme="https"), tmp_path / "x", settings=authority.trusted()
        )
    assert "expired" in error.message


async def test_tls_is_never_left_by_a_redirect(tmp_path: Path, authority: Authority) -> None:
    async with serving(answer(ok(b"plain"))) as plain:
        tls = authority.server("127.0.0.1")
        async with serving(answer(redirect(plain.url())), tls=tls) as site:
            error = await refusal(
                site.url(scheme="https"), tmp_path / "x", settings=authority.trusted()
            )
    assert "from https to http" in error.message
    assert plain.heads == []


async def test_tls_body_cut_off_without_a_farewell(tmp_path: Path, authority: Authority) -> None:
    """A body that ends with the connection: whoever cuts the wire must not shorten it unseen."""
    tls = authority.server("127.0.0.1")
    async with serving(answer(b"HTTP/1.1 200 OK\r\n\r\nhalf of"), tls=tls) as site:
        error = await refusal(
            site.url(scheme="https"), tmp_path / "x", settings=authority.trusted()
        )
    assert "broke off" in error.message


async def test_no_tls_on_the_other_side(tmp_path: Path) -> None:
    async with serving(answer(ok(b"x"))) as site:
        with trio.fail_after(10):
            error = await refusal(site.url(scheme="https"), tmp_path / "x")
    assert "TLS" in error.message or "handshake" in error.message


async def test_a_ca_file_that_is_none(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bad = tmp_path_factory.mktemp("bad") / "ca.pem"
    async with serving(answer(ok(b"x"))) as site:
        for text in (None, "not a certificate"):
            if text is not None:
                bad.write_text(text)
            settings = HttpSettings(ca_file=str(bad), connect_timeout_s=2)
            error = await refusal(site.url(scheme="https"), tmp_path / "x", settings=settings)
            assert f"the CA file {bad} cannot be loaded" in error.message
