"""A beacon is found by whoever has its mark; anything else on the group is passed over."""

from __future__ import annotations

import random
import socket

import pytest
import trio

from mesh.discovery import GROUP_V4, discover, open_beacon
from mesh.wires import NotAllowed


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_members_with_the_mark_are_found_and_others_are_not() -> None:
    port = free_port()
    async with (
        open_beacon(
            b"ours", ["127.0.0.31:8473"], rng=random.Random(1), loopback_only=True, port=port
        ),
        open_beacon(
            b"ours", ["127.0.0.32:8473", "x"], rng=random.Random(2), loopback_only=True, port=port
        ),
        open_beacon(
            b"theirs", ["127.0.0.33:8473"], rng=random.Random(3), loopback_only=True, port=port
        ),
    ):
        with trio.fail_after(10):
            found = await discover(b"ours", timeout_s=8.0, loopback_only=True, port=port)
    assert sorted(found) == ["127.0.0.31:8473", "127.0.0.32:8473"]


async def test_with_nobody_there_the_search_ends_in_time() -> None:
    with trio.fail_after(2):
        assert await discover(b"nobody", timeout_s=0.2, loopback_only=True, port=free_port()) == []


async def test_noise_on_the_group_is_passed_over() -> None:
    port = free_port()
    rng = random.Random(5)

    async def shout() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            while True:
                stranger.setsockopt(
                    socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1")
                )
                stranger.sendto(rng.randbytes(rng.randrange(1400)), (GROUP_V4, port))
                await trio.sleep(0.005)

    async with open_beacon(b"ours", ["127.0.0.31:8473"], rng=rng, loopback_only=True, port=port):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shout)
            with trio.fail_after(10):
                assert await discover(b"ours", timeout_s=8.0, loopback_only=True, port=port) == [
                    "127.0.0.31:8473"
                ]
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("mark", [b"", bytes(33)])
async def test_a_mark_has_a_bound(mark: bytes) -> None:
    with pytest.raises(NotAllowed):
        await discover(mark, timeout_s=0.1, loopback_only=True)
