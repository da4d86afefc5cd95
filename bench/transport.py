"""What a call, a message and a megabyte between two nodes cost, with and without TLS.

    python -m bench.transport [--seconds 1]

Two processes on loopback, each with a connection to the other as in a swarm. Bodies are 128 bytes.
CPU is that of either process a call: the asking side's, then the answering side's. "In a task" is a
handler that waits for something; the others answer at once.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from functools import partial

import trio

from bench.facts import cpu_ms, machine, table
from mesh.transport import Me, Transport, TransportSettings, open_transport
from tests.certificates import Authority, tls_from

BODY = bytes(128)
MEGABYTES = 200


async def rate_of_calls(
    wires: Transport, seconds: float, method: str, at_once: int
) -> tuple[int, float]:
    """Calls made, and the seconds that they took."""
    made = 0

    async def ask(until: float) -> None:
        nonlocal made
        while trio.current_time() < until:
            await wires.call("peer", method, BODY, 30)
            made += 1

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(ask, start + seconds)
    return made, trio.current_time() - start


async def rate_of_messages(wires: Transport, seconds: float) -> tuple[int, float]:
    """Until the last was handled: a call that is sent behind them is answered behind them."""
    sent, start = 0, trio.current_time()
    while trio.current_time() - start < seconds:
        if wires.send("peer", BODY):
            sent += 1
        else:
            await trio.lowlevel.checkpoint()
    while not wires.send("peer", BODY):
        await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()
    await wires.call("peer", "echo", b"", 30)
    return sent + 1, trio.current_time() - start


async def megabytes(wires: Transport) -> tuple[int, float]:
    data, start = bytes(1024 * 1024), trio.current_time()
    async with await wires.open_stream("peer", "sink", b"", 30) as stream:
        for _ in range(MEGABYTES):
            await stream.send_all(data)
        await stream.send_eof()
        assert await stream.receive_some() == b"%d" % (MEGABYTES * len(data))
    return MEGABYTES, trio.current_time() - start


async def measure(name: str, pem: bytes | None, peer_pem: bytes, seconds: float) -> list[list[str]]:
    command = [sys.executable, "-m", "tests.drivers.mesh_peer", "peer", *["--tls"][: bool(pem)]]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    rows: list[list[str]] = []
    with subprocess.Popen(command, **pipes) as peer:  # noqa: ASYNC220
        assert peer.stdin is not None and peer.stdout is not None
        try:
            if pem:
                peer.stdin.write(peer_pem + b"\n")
                peer.stdin.flush()
            address = peer.stdout.readline().decode().strip()
            tls = tls_from(pem) if pem else None
            async with open_transport(
                TransportSettings(), Me("bench"), rng=random.Random(1), tls=tls
            ) as wires:
                wires.set_peers({"peer": [address]})
                await wires.call("peer", "echo", b"", 10)
                calls = partial(rate_of_calls, wires, seconds)
                for what, unit, run in (
                    ("1 call in flight", "calls/s", partial(calls, "echo", 1)),
                    ("16 calls", "calls/s", partial(calls, "echo", 16)),
                    ("256 calls", "calls/s", partial(calls, "echo", 256)),
                    ("16 calls, in a task", "calls/s", partial(calls, "echo_in_a_task", 16)),
                    ("256 calls, in a task", "calls/s", partial(calls, "echo_in_a_task", 256)),
                    ("messages", "messages/s", partial(rate_of_messages, wires, seconds)),
                    ("one stream", "MiB/s", partial(megabytes, wires)),
                ):
                    mine, other = time.process_time(), cpu_ms(peer.pid)
                    count, took_s = await run()
                    mine_us = (time.process_time() - mine) / count * 1e6
                    other_us = (cpu_ms(peer.pid) - other) / count * 1e3
                    rows.append([name, what, f"{count / took_s:,.0f}", unit,
                                 f"{mine_us:.1f}", f"{other_us:.1f}"])  # fmt: skip
        finally:
            peer.kill()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0)
    seconds = parser.parse_args().seconds
    print(machine())
    authority = Authority()
    rows: list[list[str]] = []
    for name, pem in (("plain", None), ("TLS", authority.pem("bench"))):
        rows += trio.run(measure, name, pem, authority.pem("peer"), seconds)
    print(table(["wire", "what", "rate", "of", "asking, CPU us", "answering, CPU us"], rows))


if __name__ == "__main__":
    main()
