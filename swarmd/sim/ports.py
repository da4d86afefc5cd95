"""Datagrams of the simulated network: gossip's own, which may be lost, doubled and overtaken."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

import trio

from mesh.gossip_sockets import Take
from mesh.swim import To
from swarmd.sim.network import Way
from swarmd.sim.wires import SimWires


class SimPorts:
    """Where one node's datagrams come and go: `mesh.gossip_sockets.Datagrams` of this network."""

    def __init__(self, wires: SimWires, address: str) -> None:
        self._wires = wires
        self._address = address
        host, _, port = address.rpartition(":")
        self._source = (host, int(port))
        self._take: Take | None = None
        self._taken: Callable[[], None] = lambda: None

    def begin(self, nursery: trio.Nursery) -> None:
        self._wires.network.ports[self._address] = self

    def listen(self, take: Take, taken: Callable[[], None]) -> None:
        self._take, self._taken = take, taken

    def send(self, to: To, packet: bytes) -> str | None:
        wires = self._wires
        network = wires.network
        address = to if isinstance(to, str) else f"{to[0]}:{to[1]}"
        peer = network.addresses.get(address)
        if peer is None or wires.dead:
            return "send_failed"
        way = (wires.host, network.host(peer))
        network.carry_loosely(way, partial(self._arrive, way, address, packet))
        return None

    def _arrive(self, way: Way, address: str, packet: bytes) -> None:
        target = self._wires.network.ports.get(address)
        if target is not None and way not in self._wires.network.cut:
            target._wires.gate.datagram(partial(target._receive, packet, self._source))

    def _receive(self, packet: bytes, source: tuple[str, int]) -> None:
        if self._take is None or self._wires.dead:
            return
        self._wires.network.note("datagram", source[0], self._wires.me, packet)
        self._take(trio.current_time(), packet, source)
        self._taken()

    async def touch(self, address: str) -> None:
        """The kernel takes a connection for a process that is stopped, too."""
        wires = self._wires
        network = wires.network
        peer = network.addresses.get(address)
        host = None if peer is None else network.host(peer)
        if peer is None or host is None or host in network.off or not self._both_ways(host):
            await trio.sleep_forever()
        way = (wires.host, host)
        await trio.sleep(network.delay(way) + network.delay((host, wires.host)))
        if peer not in network.up:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nothing listens there")

    def _both_ways(self, host: str) -> bool:
        ways = {(self._wires.host, host), (host, self._wires.host)}
        return not ways & (self._wires.network.cut | self._wires.network.clogged.keys())

    def close(self) -> None:
        if self._wires.network.ports.get(self._address) is self:
            del self._wires.network.ports[self._address]
