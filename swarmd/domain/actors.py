"""Who acts, from which surface and address, and for which tenant: every command carries one."""

from __future__ import annotations

import msgspec


class Actor(msgspec.Struct, frozen=True, array_like=True):
    name: str
    surface: str
    address: str = ""
    tenant: str = "default"


SYSTEM = Actor("system", "control")
