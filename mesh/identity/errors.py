"""The one refusal of identity: what was shown does not prove what it should."""

from __future__ import annotations

from mesh.wires import WireError


class IdentityError(WireError):
    """A certificate, token, proof, box or file that is not taken; `reason` is short, to count by.

    The words say what was wrong and what would be right, and never hold a secret."""

    def __init__(self, reason: str, message: str, **facts: object) -> None:
        super().__init__(message, **facts)
        self.reason = reason
