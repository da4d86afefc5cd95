"""The form of a contract: one operation a dialect offers, and everything a client may rely on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.contract.kinds import Shape


@dataclass(frozen=True)
class Parameter:
    name: str
    where: str
    """`path`, `query` or `body`."""
    default: object = None
    required: bool = False
    said: str = ""


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    port: int
    said: str
    answers: Mapping[int, Shape]
    """By status; the shape of a failure is the dialect's envelope and is not repeated."""
    parameters: tuple[Parameter, ...] = ()
    documented: bool = True
    """False: beyond the page, because users of such an API expect it."""
    media_type: str = "application/json"
    refusals: tuple[int, ...] = field(default=())

    @property
    def key(self) -> tuple[str, int, str]:
        return self.method, self.port, self.path

    def __str__(self) -> str:
        return f"{self.method} :{self.port}{self.path}"
