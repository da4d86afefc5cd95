"""A node that is nothing but its wires, as a process that can be killed or stopped.

    python -m tests.drivers.mesh_peer NAME [--tls]

Prints where it listens. With --tls it reads its key, certificate and authority from stdin, as one
PEM. It lives until it is killed or its stdin ends.
"""

from __future__ import annotations

import random
import sys

import trio

from mesh.pipes import Tls
from mesh.transport import Me, TransportSettings, open_transport
from tests.certificates import tls_from


async def main(name: str, tls: Tls | None) -> None:
    settings = TransportSettings(keepalive_s=0.1)
    async with open_transport(settings, Me(name), rng=random.Random(1), tls=tls) as wires:
        wires.handle_call("echo", lambda peer, body: body)
        wires.handle_call("echo_in_a_task", echo_in_a_task)
        wires.handle_call("endless", endless)
        wires.handle_message(lambda peer, body: None)
        wires.handle_stream("sink", sink)
        print(wires.addresses[0], flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


async def echo_in_a_task(peer: str, body: bytes) -> bytes:
    await trio.lowlevel.checkpoint()
    return body


async def endless(peer: str, body: bytes) -> bytes:
    return await trio.sleep_forever()


async def sink(peer: str, body: bytes, stream) -> None:  # type: ignore[no-untyped-def]
    size = 0
    while data := await stream.receive_some():
        size += len(data)
    await stream.send_all(str(size).encode())


def read_keys() -> Tls:
    return tls_from("".join(iter(sys.stdin.readline, "\n")).encode())


if __name__ == "__main__":
    trio.run(main, sys.argv[1], read_keys() if "--tls" in sys.argv[2:] else None)
