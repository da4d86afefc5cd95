"""A knock at a member that answers no datagrams: does its process answer, or at least its host?

A host that refuses connections has no process there; one that takes them has a process that is held
up. Only where neither can be seen it is silence.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import trio

from mesh.gossip_sockets import Datagrams
from mesh.swim import Knock, Knocked
from mesh.wires import NotAllowed, Wires

_PROBE_SHARE = 0.6
"""Of the time; in the rest its kernel shows whether it takes or refuses a connection."""


async def try_to_reach(
    wires: Wires, knock: Knock, addresses: Sequence[str], sockets: Datagrams
) -> Knocked:
    deadline = trio.current_time() + knock.timeout_s
    if await wires.probe(knock.peer, _PROBE_SHARE * knock.timeout_s):
        return Knocked.ANSWERED
    refusals = 0
    taken = False

    async def try_one(address: str) -> None:
        nonlocal refusals, taken
        try:
            await sockets.touch(address)
            taken = True
            nursery.cancel_scope.cancel()
        except NotAllowed:
            return
        except OSError as error:
            refusals += error.errno == errno.ECONNREFUSED

    with trio.move_on_at(deadline):
        async with trio.open_nursery() as nursery:
            for address in addresses:
                nursery.start_soon(try_one, address)
    if taken:
        return Knocked.HELD
    all_refused = bool(addresses) and refusals == len(addresses)
    return Knocked.REFUSED if all_refused else Knocked.SILENT
