"""A network of a test's own, in which what passes between two addresses can be cut in silence.

What is started while it is entered lives in it, threads and processes; it ends with the last.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from itertools import count

CLONE_NEWNET = 0x40000000
TOOL_TIMEOUT_S = 10.0
_ETHERTYPE_AT, _SOURCE_AT, _TARGET_AT = 12, 26, 30
"""In a frame without tags."""
_IPV4 = 0x0800
_DROP, _GO_ON = 2, 2**32 - 1
"""Verdicts of the traffic control: TC_ACT_SHOT, TC_ACT_UNSPEC."""


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


def _drops_between(a: int, b: int) -> str:
    """Classic BPF, in the form that tc takes: operation, steps if true and if not, operand."""
    half_word, word, jump_if, verdict = 0x28, 0x20, 0x15, 0x06
    code = [
        (half_word, 0, 0, _ETHERTYPE_AT),
        (jump_if, 0, 8, _IPV4),
        (word, 0, 0, _SOURCE_AT),
        (jump_if, 0, 2, a),
        (word, 0, 0, _TARGET_AT),
        (jump_if, 3, 4, b),
        (jump_if, 0, 3, b),
        (word, 0, 0, _TARGET_AT),
        (jump_if, 0, 1, a),
        (verdict, 0, 0, _DROP),
        (verdict, 0, 0, _GO_ON),
    ]
    return f"{len(code)}," + ",".join(" ".join(map(str, each)) for each in code)


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
