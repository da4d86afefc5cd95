"""What all surfaces hold open at present, against the limits they share."""

from __future__ import annotations

from dataclasses import dataclass

from api.common.limits import HttpLimits


@dataclass(slots=True)
class Load:
    limits: HttpLimits
    connections: int = 0
    requests: int = 0
    streams: int = 0
    stopping: bool = False
