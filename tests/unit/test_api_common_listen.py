"""Where surfaces listen, who may call there, and what is said when they cannot."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import time
from pathlib import Path

import pytest
import trio

from api.common.faults import CannotListen, PortTaken
from api.common.serve import open_surfaces
from api.common.surface import Access
from tests.surfaces import (
    HOST,
    KEY,
    QUICK,
    UPGRADE,
    World,
    make_surface,
    read_until,
    serving,
)


async def test_a_taken_port_names_surface_address_and_setting() -> None:
    async with serving() as world:
        with pytest.raises(PortTaken) as taken:
            async with serving(port=world.port):
                raise AssertionError
        for word in ("jobqueue", f"127.0.0.1:{world.port}", "SWARMD_SURFACES_JOBQUEUE_PORT"):
            assert word in taken.value.message


async def test_what_cannot_be_listened_on_is_named() -> None:
    for bind in ("192.0.2.1", "no-such-name.invalid"):
        with pytest.raises(CannotListen, match=bind):
            async with serving(binds=(bind,)):
                raise AssertionError


async def test_several_addresses_share_a_port() -> None:
    async with serving(binds=("127.0.0.1", "127.0.0.2")) as world:
        assert world.bound is not None
        urls = world.bound.urls["jobqueue"]
        assert urls == (f"http://127.0.0.1:{world.port}", f"http://127.0.0.2:{world.port}")
        stream = await trio.open_tcp_stream("127.0.0.2", world.port)
        async with stream:
            await stream.send_all(b"GET /hot/x HTTP/1.1\r\nHost: 127.0.0.2\r\n\r\n")
            await read_until(stream, b"anonymous")


@pytest.mark.needs("ipv6")
async def test_ipv6() -> None:
    async with serving(binds=("127.0.0.1", "::1")) as world:
        assert world.bound is not None and "http://[::1]:" in world.bound.urls["jobqueue"][1]
        async with await trio.open_tcp_stream("::1", world.port) as stream:
            await stream.send_all(b"GET /hot/x HTTP/1.1\r\nHost: [::1]:%d\r\n\r\n" % world.port)
            await read_until(stream, b"anonymous")


async def test_foreign_hosts_and_origins_are_refused_in_the_envelope() -> None:
    async with serving() as world:
        for headers in (
            ["Host: evil.example"],
            ["Host: localhost", "Origin: http://evil.example"],
            ["Host: localhost", "Sec-Fetch-Site: cross-site"],
        ):
            for path in ("/q/x", "/hot/x", "/none", "/health"):
                found = await world.get(path, *headers)
                assert (found.status, found.json["code"]) == (403, "forbidden")


async def test_a_surface_off_loopback_needs_the_key() -> None:
    async with serving(binds=("0.0.0.0",)) as world:
        for path in ("/q/x", "/hot/x", "/none"):
            closed = await world.get(path, "Host: any.name")
            assert (closed.status, closed.json["code"]) == (401, "unauthorized")
            assert closed.header("www-authenticate")
        for header in (f"X-Admin-Key: {KEY}", f"Authorization: Bearer {KEY}"):
            assert (await world.get("/hot/x", header)).json["who"] == "admin"
        assert (await world.get("/health", "Host: any.name")).status == 200
        assert (await world.get("/health", method="POST")).status == 401
        assert (await world.ask(UPGRADE % b"/ws")).status == 401
    async with serving(binds=("0.0.0.0",), access=Access.OPEN) as world:
        assert (await world.get("/hot/x", "Host: any.name")).status == 200


async def test_the_unix_socket_is_its_owners(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    path = folder / "swarmd.sock"
    old_umask = os.umask(0)
    try:
        async with serving(binds=(), unix_path=path) as world:
            assert world.bound is not None and world.bound.urls["jobqueue"] == (f"unix:{path}",)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with pytest.raises(PortTaken, match="another daemon"):
                async with serving(binds=(), unix_path=path):
                    raise AssertionError
            client = _unix_client(path)
            async with client:
                await client.send_all(b"GET /hot/x HTTP/1.1\r\nHost: anything.at.all\r\n\r\n")
                assert b'"who":"local"' in await read_until(client, b"}")
        assert not path.exists() and not list(folder.iterdir())
    finally:
        os.umask(old_umask)


async def test_a_stale_unix_socket_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "swarmd.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    async with serving(binds=(), unix_path=path):
        with _unix_socket(path):
            pass
    path.write_text("precious")
    with pytest.raises(CannotListen, match="a file of that name"):
        async with serving(binds=(), unix_path=path):
            raise AssertionError
    assert path.read_text() == "precious"


async def test_a_socket_that_another_took_over_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "swarmd.sock"
    async with serving(binds=(), unix_path=path):
        path.unlink()
        path.write_text("theirs")
    assert path.read_text() == "theirs"


def _unix_socket(path: Path) -> socket.socket:
    folder = os.open(path.parent, os.O_PATH)
    try:
        client = socket.socket(socket.AF_UNIX)
        client.connect(f"/proc/self/fd/{folder}/{path.name}")
        return client
    finally:
        os.close(folder)


def _unix_client(path: Path) -> trio.SocketStream:
    client = _unix_socket(path)
    client.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(client))


async def test_two_surfaces_serve_side_by_side() -> None:
    worlds = World(), World()
    surfaces = [make_surface(world, name=name) for world, name in zip(worlds, "ab", strict=True)]
    async with open_surfaces(surfaces, QUICK, admin_key=lambda: None, wall=time.time) as bound:
        for name in "ab":
            port = int(bound.url(name).rsplit(":", 1)[1])
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"GET /hot/x HTTP/1.1\r\n" + HOST + b"\r\n")
                await read_until(stream, b"anonymous")


async def test_the_log_of_requests_has_no_query_and_no_header(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving() as world:
        await world.get("/hot/x?token=shh", "X-Admin-Key: hush", "Cookie: quiet")
        await world.get("/q/x?token=shh", "Authorization: Bearer hush")
        await world.empty()
    told = caplog.text + json.dumps([str(vars(record)) for record in caplog.records])
    assert not any(secret in told for secret in ("shh", "hush", "quiet"))
