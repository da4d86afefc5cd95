"""What a caller of the core can do wrong; what peers do wrong is dropped and counted instead."""

from __future__ import annotations


class NotUsable(ValueError):
    """Settings, a name, addresses or tags that cannot work; the message says what would."""


class Dropped(Exception):
    """A datagram or a sync that is not taken: a short reason to count by, and words."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
