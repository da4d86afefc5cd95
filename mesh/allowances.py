"""How often a source may come: so many at once, and then so many a second.

A source is an IPv4 address, or the /64 of an IPv6 one. So many are remembered; whoever is forgotten
begins anew.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

SOURCES_MAX = 1024


class Allowances:
    def __init__(self, per_s: float, burst: float, sources_max: int = SOURCES_MAX) -> None:
        self._per_s = per_s
        self._burst = burst
        self._sources_max = sources_max
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """What is left of each, and as of when; whoever came last stands last."""

    def take(self, source: str, now: float) -> bool:
        left, since = self._left.pop(source, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._per_s)
        may = left >= 1.0
        self._left[source] = (left - may, now)
        if len(self._left) > self._sources_max:
            self._left.popitem(last=False)
        return may


def source_of(host: str) -> str:
    if ":" not in host:
        return host
    network = ipaddress.IPv6Address(host.partition("%")[0]).packed[:8]
    return network.hex()
