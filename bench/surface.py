"""What a small HTTP request costs the server, in CPU: stock Hypercorn beside our surfaces.

    python -m bench.surface [--requests 4000]

Each server is a process of its own, asked by one client on one kept connection; its CPU is read
from the kernel before and after, so the client's work is not in it.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from pathlib import Path

import trio

from bench.facts import machine, table

KINDS = {
    "hypercorn-asgi": "stock Hypercorn, bare ASGI",
    "hypercorn-quart": "stock Hypercorn, Quart-Trio",
    "surface-hot": "surface, hot route",
    "surface-hot-post": "surface, hot route, 300 B of JSON into a struct",
    "surface-quart": "surface, Quart-Trio",
}
WARM_UP = 300
BODY = b'{"type":"bench","priority":"normal","arguments":["' + b"a" * 245 + b'"]}'


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU of one small HTTP request")
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--serve", choices=KINDS, help="be one of the servers")
    given = parser.parse_args()
    if given.serve:
        trio.run(serve, given.serve)
        return
    print(machine())
    rows = [
        (title, *(f"{us:.0f}" for us in measure(kind, given.requests)))
        for kind, title in KINDS.items()
    ]
    print(table(("server", "CPU us", "wall us", "p99 us"), rows))


def measure(kind: str, requests: int) -> tuple[float, float, float]:
    server = subprocess.Popen(
        [sys.executable, "-m", "bench.surface", "--serve", kind],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        request = b"GET /hello HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n"
        if kind.endswith("post"):
            request = (
                b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(BODY), BODY)
            )
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            for _ in range(WARM_UP):
                ask(client, request)
            cpu_before, began = cpu_ns(server.pid), time.perf_counter()
            times: list[float] = []
            for _ in range(requests):
                at = time.perf_counter()
                ask(client, request)
                times.append(time.perf_counter() - at)
            wall_us = (time.perf_counter() - began) / requests * 1e6
            cpu_us = (cpu_ns(server.pid) - cpu_before) / requests / 1e3
        return cpu_us, wall_us, sorted(times)[int(requests * 0.99)] * 1e6
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


def ask(client: socket.socket, request: bytes) -> None:
    client.sendall(request)
    got = b""
    while b'"hello"' not in got:
        piece = client.recv(65536)
        assert piece, "the server closed the connection"
        got += piece
    assert got.startswith(b"HTTP/1.1 200"), got


def cpu_ns(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


async def serve(kind: str) -> None:
    if kind.startswith("hypercorn"):
        await serve_stock(kind)
    else:
        await serve_surface()


def make_quart() -> object:
    from quart_trio import QuartTrio

    app = QuartTrio(__name__)

    @app.get("/hello")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    return app


async def serve_stock(kind: str) -> None:
    from hypercorn.config import Config
    from hypercorn.trio import serve as hypercorn_serve

    async def bare(scope: dict, receive, send) -> None:  # type: ignore[no-untyped-def,type-arg]
        while scope["type"] == "lifespan":
            event = await receive()
            await send({"type": event["type"] + ".complete"})
        body = b'{"hello":"world"}'
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    config.keep_alive_max_requests = 10_000_000
    app = bare if kind == "hypercorn-asgi" else make_quart()
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(hypercorn_serve, app, config)
        print(urls[0].rsplit(":", 1)[1], flush=True)


async def serve_surface() -> None:
    import msgspec

    from api.common.bodies import read_json
    from api.common.limits import HttpLimits
    from api.common.metrics import RequestMetrics
    from api.common.serve import open_surfaces
    from api.common.surface import Envelope, HotRoute, Request, Response, Surface, json_answer
    from swarmd.domain.errors import ALL_ERRORS

    class Job(msgspec.Struct):
        type: str
        priority: str
        arguments: list[str]

    async def hello(request: Request) -> Response:
        return json_answer({"hello": "world"})

    async def jobs(request: Request) -> Response:
        job = await read_json(request, Job)
        return json_answer({"hello": job.type})

    envelope = Envelope(
        dict.fromkeys(ALL_ERRORS, 400), lambda status, code, message, facts: {"error": message}
    )
    hot = (HotRoute("GET", "/hello", hello), HotRoute("POST", "/jobs", jobs))
    surfaces = [
        Surface("hot", envelope, hot=hot, metrics=RequestMetrics("bench_")),
        Surface("quart", envelope, app=make_quart, metrics=RequestMetrics("bench_")),  # type: ignore[arg-type]
    ]
    wanted = sys.argv[sys.argv.index("--serve") + 1].split("-")[1]
    async with open_surfaces(
        surfaces, HttpLimits(), admin_key=lambda: None, wall=time.time
    ) as bound:
        print(bound.url(wanted).rsplit(":", 1)[1], flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    main()
