"""Whatever a peer sends in place of what it should, it is refused, and nobody ends of it."""

from __future__ import annotations

import random

import msgspec
import pytest
import trio

from mesh.wires import Aborted, Refused, Unreachable
from swarmd.sim.bottle import Bottle
from swarmd.sim.world import CLIENT
from swarmd.state.commands import PutSetting, Request, RequestId
from tests.sim.world import bottled

READABLE = msgspec.msgpack.encode([Request(RequestId(1, 1, 1), CLIENT, PutSetting("k", b"vv"))])
BODIES = (
    b"", b"\xc1", b"\xa1\xb0", b"\x92\xa1\xb0\x01", b"\x81\xa4kind\xa1\xb0", b"\x91" * 5000,
    b"\x80",
    b"\xdd\xff\xff\xff\xff", b"\xc6\x00\x00\x00\x05", msgspec.msgpack.encode([None] * 12),
    msgspec.msgpack.encode(["x"] * 12), msgspec.msgpack.encode([1] * 12),
    msgspec.msgpack.encode([b"\xb0"] * 12), READABLE.replace(b"\xa1k", b"\xa1\xb0"),
    READABLE.replace(b"PutSetting", b"PutSetters"), msgspec.msgpack.encode({"type": "x" * 100}),
)  # fmt: skip


@bottled(3)
async def test_a_peer_that_sends_garbage_is_refused(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c")
    leader = await bottle.leader()
    await _send_garbage(bottle, leader, "b" if leader != "b" else "a")
    await _send_garbage(bottle, "b" if leader != "b" else "a", leader)


async def _send_garbage(bottle: Bottle, source: str, target: str) -> None:
    mine, theirs = bottle.machine(source).wires, bottle.machine(target).wires
    assert mine is not None and theirs is not None
    chance = random.Random(target)
    bodies = [*BODIES, *(chance.randbytes(chance.randrange(60)) for _ in range(100))]
    answered = 0
    for method in list(theirs._calls):
        for body in bodies:
            try:
                await mine.call(theirs.me, method, body, 5.0)
                answered += 1
            except Refused as refused:
                assert "object has no" not in refused.message and len(refused.message) < 500
    for method in list(theirs._streams):
        for body in bodies:
            with pytest.raises((Refused, Aborted, Unreachable)), trio.fail_after(20):
                async with await mine.open_stream(theirs.me, method, body, 5.0) as stream:
                    await stream.send_all(chance.randbytes(50))
                    await stream.send_eof()
                    while await stream.receive_some():
                        pass
                    raise Aborted("it was heard to the end")
    assert len(theirs._calls) > 5 and answered < len(theirs._calls) * len(bodies) / 2
    assert sorted(bottle.there()) == ["a", "b", "c"]
    assert bottle.network.refused == []
    await bottle.settle()
