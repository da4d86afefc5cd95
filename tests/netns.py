"""Networks of a test's own, in which what passes between two addresses can be cut in silence.

`own_network` is one loopback; `switched_network` is several hosts at a switch, where frames are
also lost or late. What is started while a namespace is entered lives in it, threads and processes;
it ends with the last of them, and nothing of it has a name that could be left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path

CLONE_NEWNET = 0x40000000
TOOL_TIMEOUT_S = 10.0
_ETHERTYPE_AT, _SOURCE_AT, _TARGET_AT = 12, 26, 30
"""In a frame without tags."""
_IPV4 = 0x0800
_DROP, _GO_ON = 2, 2**32 - 1
"""Verdicts of the traffic control: TC_ACT_SHOT, TC_ACT_UNSPEC."""
_HALF_WORD, _WORD, _JUMP_IF, _JUMP_ABOVE, _VERDICT = 0x28, 0x20, 0x15, 0x25, 0x06
_RANDOM = 2**32 - 0x1000 + 56
"""Where a load finds a random word in place of the frame's: SKF_AD_OFF + SKF_AD_RANDOM."""
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_SO_RCVBUFFORCE = 33
_ETH_P_ALL = 3
_FRAME_BYTES_MAX = 10 + 14 + 65_536
"""With what the kernel puts before a frame that it has not cut up and summed yet."""
_FRAMES_HELD_MAX = 50_000
_BUFFER_BYTES = 8 << 20
HOSTS_MAX = 200
PREFIX = "10.77.0"
CLIENTS = f"{PREFIX}.254"
"""Where those live who ask from outside: at the switch, in the namespace of the test."""


class Network:
    """The loopback of this namespace. Nobody who sends is told what was cut: as with a cable."""

    def __init__(self) -> None:
        self._numbers = count(1)
        _run("ip", "link", "set", "lo", "up")
        _run("tc", "qdisc", "add", "dev", "lo", "clsact")

    def cut(self, address: str, *others: str) -> None:
        """Drop whatever passes between the address and each of the others, both ways."""
        for other in others:
            code = _drops_between(int(IPv4Address(address)), int(IPv4Address(other)))
            _run(
                "tc", "filter", "add", "dev", "lo", "ingress", "pref", str(next(self._numbers)),
                "protocol", "ip", "bpf", "da", "bytecode", code,
            )  # fmt: skip

    def heal(self) -> None:
        _run("tc", "filter", "del", "dev", "lo", "ingress")


@contextmanager
def own_network() -> Iterator[Network]:
    """For this thread and what it starts. Needs the part `netns`."""
    with open("/proc/thread-self/ns/net", "rb") as before:
        _enter(_libc.unshare(CLONE_NEWNET))
        try:
            yield Network()
        finally:
            _enter(_libc.setns(before.fileno(), CLONE_NEWNET))


@dataclass
class Host:
    """At the switch by a cable of its own, whose other end is `port`."""

    number: int
    namespace: int
    """A descriptor of it."""
    mute: set[str] = field(default_factory=set)
    """Addresses that nothing of this host's reaches."""
    lost: float = 0.0
    """The share of the frames to other hosts that is lost."""
    unasked: bool = False
    """Nothing of the clients' reaches it."""

    @property
    def address(self) -> str:
        return f"{PREFIX}.{self.number}"

    @property
    def port(self) -> str:
        return f"h{self.number}"

    @property
    def detour(self) -> str:
        """The way into the switch of frames that are late."""
        return f"d{self.number}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """For this thread and what it starts."""
        with _within(self.namespace):
            yield


class Switched:
    """Hosts at one switch. A frame that is lost is lost in silence, as on a wire."""

    def __init__(self, hosts: Sequence[Host], hub: int) -> None:
        self.hosts = hosts
        self._hub = hub
        self._late: _Late | None = None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and what it starts, is at the switch, as the clients are."""
        with _within(self._hub):
            yield

    def cut(self, senders: Iterable[Host], receivers: Iterable[Host]) -> None:
        """One way: what these send does not reach those."""
        targets = {host.address for host in receivers}
        for host in senders:
            host.mute |= targets - {host.address}
        self._apply()

    def part(self, *groups: Sequence[Host]) -> None:
        """Hosts of different groups do not reach each other."""
        for group in groups:
            others = {h.address for other in groups if other is not group for h in other}
            for host in group:
                host.mute |= others
        self._apply()

    def cut_clients(self, host: Host) -> None:
        host.mute.add(CLIENTS)
        host.unasked = True
        self._apply()

    def lose(self, share: float) -> None:
        """So much of what one host sends to another."""
        for host in self.hosts:
            host.lost = share
        self._apply()

    def delay(self, late_s: float) -> None:
        """Whatever a host sends is so late; the way there and back takes twice that."""
        assert self._late is None
        with self.entered():
            self._late = _Late(self.hosts, late_s)
            _batch("ip", (f"link set {host.port} nomaster" for host in self.hosts))

    def link(self, host: Host, *, up: bool) -> None:
        with self.entered():
            _batch("ip", [f"link set {host.port} {'up' if up else 'down'}"])

    def heal(self) -> None:
        for host in self.hosts:
            host.mute, host.lost, host.unasked = set(), 0.0, False
        with self.entered():
            _batch("ip", (f"link set {host.port} up master switch" for host in self.hosts))
            if self._late is not None:
                self._late.close()
                self._late = None
                # The switch forgets that it saw the hosts there.
                for to in ("nomaster", "master switch"):
                    _batch("ip", (f"link set {host.detour}-in {to}" for host in self.hosts))
        self._apply()

    def _apply(self) -> None:
        lines = []
        for host in self.hosts:
            sent = _drops_sent(host.mute, host.lost)
            asked = _drops_from(CLIENTS) if host.unasked else _lets_pass()
            for way, code in (("ingress", sent), ("egress", asked)):
                lines.append(
                    f"filter replace dev {host.port} {way} pref 1 handle 1 protocol ip"
                    f" bpf da bytecode {_said(code, quoted=True)}"
                )
        with self.entered():
            _batch("tc", lines)


@contextmanager
def switched_network(hosts: int) -> Iterator[Switched]:
    """Needs the part `netns`. Hosts are numbered from 1; their addresses end like that."""
    assert 0 < hosts <= HOSTS_MAX
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(_namespace())
        made = [Host(n, stack.enter_context(_namespace())) for n in range(1, hosts + 1)]
        with _within(hub):
            # Of an address at another of its devices the hub says nothing.
            Path("/proc/sys/net/ipv4/conf/all/arp_ignore").write_text("1")
            lines = [
                "link set lo up",
                "link add name switch type bridge",
                f"addr add {CLIENTS}/24 dev switch",
            ]
            for host in made:
                at = f"/proc/{os.getpid()}/fd/{host.namespace}"
                lines += [
                    f"link add {host.port} type veth peer name eth0 netns {at}",
                    f"link add {host.detour} type veth peer name {host.detour}-in",
                    f"link set {host.port} up master switch",
                    f"link set {host.detour}-in up master switch",
                    f"link set {host.detour} up",
                ]
            _batch("ip", [*lines, "link set switch up"])
            _batch("tc", (f"qdisc add dev {host.port} clsact" for host in made))
        for host in made:
            with host.entered():
                _batch(
                    "ip",
                    ["link set lo up", f"addr add {host.address}/24 dev eth0", "link set eth0 up"],
                )
        network = Switched(made, hub)
        try:
            yield network
        finally:
            network.heal()


class _Late:
    """Carries the frames of each host into the switch some time after they came, and what is for
    the host to it at once: where the kernel has no such delay of its own."""

    def __init__(self, hosts: Sequence[Host], late_s: float) -> None:
        self._late_s = late_s
        self._selector = selectors.DefaultSelector()
        self._held: deque[tuple[float, socket.socket, bytes]] = deque()
        self._going = True
        self._sockets: list[socket.socket] = []
        for host in hosts:
            port, detour = _packets(host.port), _packets(host.detour)
            self._sockets += [port, detour]
            self._selector.register(port, selectors.EVENT_READ, (detour, True))
            self._selector.register(detour, selectors.EVENT_READ, (port, False))
        self._thread = threading.Thread(target=self._carry, name="late frames", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._going = False
        self._thread.join(TOOL_TIMEOUT_S)
        self._selector.close()
        for each in self._sockets:
            each.close()

    def _carry(self) -> None:
        while self._going:
            now = time.monotonic()
            while self._held and self._held[0][0] <= now:
                _, target, frame = self._held.popleft()
                _send(target, frame)
            wait_s = min(0.05, self._held[0][0] - now) if self._held else 0.05
            for key, _ in self._selector.select(wait_s):
                target, late = key.data
                assert isinstance(key.fileobj, socket.socket)
                due = time.monotonic() + self._late_s
                with contextlib.suppress(BlockingIOError):
                    for _ in range(100):
                        frame = key.fileobj.recv(_FRAME_BYTES_MAX)
                        if not late:
                            _send(target, frame)
                        elif len(self._held) < _FRAMES_HELD_MAX:
                            self._held.append((due, target, frame))


def _packets(device: str) -> socket.socket:
    """Every frame that comes in there, as the kernel has it."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    found.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    found.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    found.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    found.bind((device, _ETH_P_ALL))
    return found


def _send(target: socket.socket, frame: bytes) -> None:
    # Of a device that is down, or has no room, a frame is lost: as on a wire.
    with contextlib.suppress(OSError):
        target.send(frame)


Code = list[tuple[int, int, int, int]]
"""Classic BPF: operation, steps if true and if not, operand."""


def _drops_sent(targets: Iterable[str], share: float) -> Code:
    """What goes to one of these, and a share of what goes to any but the clients."""
    known = sorted(int(IPv4Address(target)) for target in targets)
    code: Code = [(_HALF_WORD, 0, 0, _ETHERTYPE_AT), (_JUMP_IF, 0, len(known) + 5, _IPV4)]
    code.append((_WORD, 0, 0, _TARGET_AT))
    code += [(_JUMP_IF, len(known) - at + 2, 0, target) for at, target in enumerate(known)]
    return [
        *code,
        (_JUMP_IF, 3, 0, int(IPv4Address(CLIENTS))),
        (_WORD, 0, 0, _RANDOM),
        (_JUMP_ABOVE, 1, 0, int(share * (2**32 - 1))),
        (_VERDICT, 0, 0, _DROP if known or share else _GO_ON),
        (_VERDICT, 0, 0, _GO_ON),
    ]


def _drops_from(source: str) -> Code:
    return [
        (_HALF_WORD, 0, 0, _ETHERTYPE_AT),
        (_JUMP_IF, 0, 3, _IPV4),
        (_WORD, 0, 0, _SOURCE_AT),
        (_JUMP_IF, 0, 1, int(IPv4Address(source))),
        (_VERDICT, 0, 0, _DROP),
        (_VERDICT, 0, 0, _GO_ON),
    ]


def _lets_pass() -> Code:
    return [(_VERDICT, 0, 0, _GO_ON)]


def _drops_between(a: int, b: int) -> str:
    return _said([
        (_HALF_WORD, 0, 0, _ETHERTYPE_AT),
        (_JUMP_IF, 0, 8, _IPV4),
        (_WORD, 0, 0, _SOURCE_AT),
        (_JUMP_IF, 0, 2, a),
        (_WORD, 0, 0, _TARGET_AT),
        (_JUMP_IF, 3, 4, b),
        (_JUMP_IF, 0, 3, b),
        (_WORD, 0, 0, _TARGET_AT),
        (_JUMP_IF, 0, 1, a),
        (_VERDICT, 0, 0, _DROP),
        (_VERDICT, 0, 0, _GO_ON),
    ])  # fmt: skip


def _said(code: Code, *, quoted: bool = False) -> str:
    """In the form that tc takes."""
    said = f"{len(code)}," + ",".join(" ".join(map(str, each)) for each in code)
    return f'"{said}"' if quoted else said


@contextmanager
def _namespace() -> Iterator[int]:
    """A new one, which nobody has entered: a descriptor of it."""
    with open("/proc/thread-self/ns/net", "rb") as before:
        _enter(_libc.unshare(CLONE_NEWNET))
        try:
            made = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            _enter(_libc.setns(before.fileno(), CLONE_NEWNET))
    try:
        yield made
    finally:
        os.close(made)


@contextmanager
def _within(namespace: int) -> Iterator[None]:
    with open("/proc/thread-self/ns/net", "rb") as before:
        _enter(_libc.setns(namespace, CLONE_NEWNET))
        try:
            yield
        finally:
            _enter(_libc.setns(before.fileno(), CLONE_NEWNET))


def _batch(tool: str, lines: Iterable[str]) -> None:
    """All of them, by one process."""
    done = subprocess.run(
        [tool, "-batch", "-"], input="\n".join(lines) + "\n",
        capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{tool}: {done.stderr}"


def _run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def _enter(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_libc = ctypes.CDLL(None, use_errno=True)
