"""X-Swarm-Consistency on a real server: who answers, what the answer says of its age, what is
refused; and Retry-After on every 503."""

from __future__ import annotations

from dataclasses import replace

import pytest

from api.common.surface import Envelope, HotRoute, Request, Response, json_answer
from api.console.envelope import ENVELOPE as CONSOLE
from api.jobqueue.envelope import ENVELOPE as JOBQUEUE
from swarmd.cluster.handle import reads_are_local
from swarmd.domain.errors import ALL_ERRORS, Busy, NotFound, Unavailable
from tests.surfaces import HOST, QUICK, UPGRADE, read_all, read_until, serving

LOCAL = "X-Swarm-Consistency: local"
STALENESS = "x-swarm-staleness-ms"


async def whose(request: Request) -> Response:
    return json_answer({"local": reads_are_local()})


async def missing(request: Request) -> Response:
    raise NotFound("no such thing")


LOOKING = (
    HotRoute("GET", "/whose", whose),
    HotRoute("POST", "/whose", whose),
    HotRoute("GET", "/missing", missing),
)


async def test_a_local_read_says_how_stale_it_may_be() -> None:
    async with serving(hot=LOOKING, staleness_ms=lambda: 83) as world:
        for word in ("local", "LOCAL"):
            answer = await world.get("/whose", f"x-swarm-consistency: {word}")
            assert (answer.status, answer.json) == (200, {"local": True})
            assert 83 <= int(answer.header(STALENESS) or "") < 83 + 2000
        head = await world.get("/whose", LOCAL, method="HEAD")
        assert (head.status, head.header(STALENESS) is None) == (200, False)
        # A refusal is as old as the read that led to it.
        assert (await world.get("/missing", LOCAL)).header(STALENESS) is not None
        for path in ("/q/bob", "/follow", "/none"):
            world.gate.set()
            assert (await world.get(path, LOCAL)).header(STALENESS) is not None, path


async def test_the_default_is_linearizable_and_says_nothing_of_age() -> None:
    async with serving(hot=LOOKING, staleness_ms=lambda: 83) as world:
        for headers in ((), ("X-Swarm-Consistency: linearizable",)):
            answer = await world.get("/whose", *headers)
            assert (answer.json, answer.header(STALENESS)) == ({"local": False}, None)


async def test_one_request_does_not_choose_for_the_next_of_its_connection() -> None:
    async with serving(hot=LOOKING) as world, await world.connect() as stream:
        for n, said in enumerate((b"local", b"linearizable", b"local", b"")):
            header = b"X-Swarm-Consistency: %b\r\n" % said if said else b""
            end = b"Connection: close\r\n" if n == 3 else b""
            await stream.send_all(b"GET /whose HTTP/1.1\r\n" + HOST + header + end + b"\r\n")
            got = await (read_all(stream) if end else read_until(stream, b"}"))
            assert (b'{"local":true}' in got) is (said == b"local")


async def test_a_node_that_never_heard_of_a_leader_does_not_know() -> None:
    async with serving(hot=LOOKING) as world:
        assert (await world.get("/whose", LOCAL)).header(STALENESS) == "unknown"


@pytest.mark.parametrize("value", ["", "eventual", "local, local", "locally", "1"])
async def test_another_word_is_refused_and_told_the_right_ones(value: str) -> None:
    async with serving(hot=LOOKING) as world:
        for path in ("/whose", "/q/bob", "/none"):
            answer = await world.get(path, f"X-Swarm-Consistency: {value}")
            assert answer.status == 400
            assert answer.json["code"] == "invalid"
            assert "linearizable" in answer.json["error"] and "local" in answer.json["error"]
        both = await world.get("/whose", LOCAL, "X-Swarm-Consistency: linearizable")
        assert both.status == 400
        assert (await world.get("/whose", LOCAL, LOCAL)).status == 200


async def test_a_write_is_agreed_on_in_any_case() -> None:
    async with serving(hot=LOOKING) as world:
        answer = await world.get("/whose", LOCAL, method="POST", body=b"x")
        assert (answer.json, answer.header(STALENESS)) == ({"local": False}, None)


async def test_a_websocket_is_told_as_well() -> None:
    async with serving(replace(QUICK), staleness_ms=lambda: 5) as world:
        async with await world.connect() as stream:
            asked = UPGRADE.replace(b"\r\n\r\n", f"\r\n{LOCAL}\r\n\r\n".encode())
            await stream.send_all(asked % b"/ws")
            got = await read_until(stream, b"\r\n\r\n")
            assert got.startswith(b"HTTP/1.1 101 ") and STALENESS.encode() in got.lower()


@pytest.mark.parametrize("envelope", [CONSOLE, JOBQUEUE], ids=["console", "jobqueue"])
def test_every_503_says_when_to_ask_again(envelope: Envelope) -> None:
    for kind in ALL_ERRORS:
        answer = envelope.answer(kind("no"))
        assert ("Retry-After" in dict(answer.headers)) is (answer.status == 503)
        assert (answer.status == 503) is (kind in (Busy, Unavailable))
