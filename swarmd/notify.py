"""Words to the service manager that started us, where one asked for them (sd_notify).

A manager that cannot be reached is never a reason to fail.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


@dataclass(frozen=True, slots=True)
class Notifier:
    address: str | None
    watchdog_s: float | None
    """Within this, WATCHDOG has to be told again and again; half of it is a good pace."""

    def tell(self, *words: str) -> bool:
        """True where somebody was told."""
        if self.address is None:
            return False
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as to_manager:
            to_manager.sendto("\n".join(words).encode(), address)
            return True
        return False


def take_notifier(env: MutableMapping[str, str], pid: int) -> Notifier:
    """The manager that `env` names, which is taken out: no child may speak in our name."""
    asked = {name: env.pop(name, "") for name in VARIABLES}
    return Notifier(_address(asked), _watchdog_s(asked, pid))


def _address(asked: Mapping[str, str]) -> str | None:
    address = asked["NOTIFY_SOCKET"]
    return address if address[:1] in ("/", "@") and len(address) > 1 else None


def _watchdog_s(asked: Mapping[str, str], pid: int) -> float | None:
    if not asked["WATCHDOG_USEC"].isdigit() or asked["WATCHDOG_PID"] not in ("", str(pid)):
        return None
    return int(asked["WATCHDOG_USEC"]) / 1e6 or None
