"""How busy this host is: what a builder tells the swarm of it."""

from __future__ import annotations

import os


class HostLoad:
    """Measured from one asking to the next."""

    def __init__(self) -> None:
        self._cpu = _cpu_times()

    def measure(self) -> dict[str, float]:
        """In percent, but for the load."""
        before, self._cpu = self._cpu, _cpu_times()
        busy, total = (now - then for now, then in zip(self._cpu, before, strict=True))
        _, ram_percent = memory()
        return {
            "cpu_percent": round(100 * busy / total, 1) if total > 0 else 0.0,
            "ram_percent": ram_percent, "load_1m": round(os.getloadavg()[0], 2),
        }  # fmt: skip


def memory() -> tuple[int, float]:
    """In all, and how much of it is in use, in percent."""
    found = {"MemTotal": 1, "MemAvailable": 0}
    with open("/proc/meminfo") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in found:
                found[name] = int(rest.split()[0]) * 1024
    total = found["MemTotal"]
    return total, round(100 * (total - found["MemAvailable"]) / total, 1)


def _cpu_times() -> tuple[float, float]:
    """Busy, and in all, in ticks since the host began."""
    with open("/proc/stat") as file:
        ticks = [float(word) for word in file.readline().split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
