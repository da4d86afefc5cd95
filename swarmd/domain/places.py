"""Places: where builders are reached. No two are believed to be at one: what is done for the one's
illness, or given to it, would befall the other."""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import IPv4Address, ip_address

from swarmd.domain.errors import Conflict
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node

_NUMBER = re.compile(r"0x[0-9a-f]{1,16}|0[0-7]{0,16}|[1-9][0-9]{0,16}", re.ASCII)


class Places:
    """Who is to be where: by what builders say of themselves, and by what is said of them."""

    def __init__(self) -> None:
        self._said: dict[str, dict[NodeId, str]] = {}
        self._put: dict[tuple[str, int], dict[NodeId, str]] = {}

    def say(self, node: Node) -> None:
        """It says so itself, of the host and not of a port there."""
        for address in node.addresses:
            self._said.setdefault(_plain(address), {})[node.id] = node.name

    def put(self, node: Node, host: str, port: int) -> None:
        """This is known otherwise: whatever others say of themselves is no doubt of it."""
        self._put.setdefault((_plain(host), port), {})[node.id] = node.name

    def check_alone(self, node: Node, host: str, port: int) -> None:
        """Conflict: another is to be at the same place, and one of them is not what it says."""
        place = _plain(host), port
        there = self._put.get(place, {})
        if node.id not in there:
            there = self._said.get(place[0], {}) | there
        others = sorted(name for node_id, name in there.items() if node_id != node.id)
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            raise Conflict(
                f"several builders are to be at {host}, this one and {others[0]}{more}; name a"
                " place for each in ssh.hosts, or have the one that is wrong register with its own"
                " `ip`"
            )


def _plain(host: str) -> str:
    """However it is written: 10.0.1 is 10.0.0.1. Names are not looked up."""
    text = host.lower().rstrip(".")
    with suppress(ValueError):
        address = ip_address(text)
        return str(getattr(address, "ipv4_mapped", None) or address)
    return _ipv4(text) or text


def _ipv4(text: str) -> str | None:
    """As C reads it: up to four numbers, octal and hexadecimal too; the last has what is left."""
    words = text.split(".")
    if len(words) > 4 or not all(map(_NUMBER.fullmatch, words)):
        return None
    *first, last = [int(w, 16 if w[:2] == "0x" else 8 if w[0] == "0" else 10) for w in words]
    if max(first, default=0) > 255 or last >= 256 ** (4 - len(first)):
        return None
    whole = last + sum(number << (24 - 8 * at) for at, number in enumerate(first))
    return str(IPv4Address(whole))
