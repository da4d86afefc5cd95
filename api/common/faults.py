"""Refusals that belong to HTTP itself, with the status that HTTP gives them in every dialect.

They are SwarmErrors, so that they wear the dialect's own envelope like any other refusal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from swarmd.domain.errors import SwarmError


class HttpFault(SwarmError):
    """Refused before any operation was reached; `status` is the same in every dialect."""

    code = "http"
    status: ClassVar[int] = 400


class BadRequest(HttpFault):
    """The bytes are not a request, or are one that two readers could read in two ways."""

    code = "bad_request"


class MethodNotAllowed(HttpFault):
    """The path is there, the method is not; `allow` names those that are."""

    code = "method_not_allowed"
    status = 405

    def __init__(self, method: str, path: str, allow: Iterable[str]) -> None:
        self.allow = ", ".join(sorted(allow))
        super().__init__(
            f"{method} is not served on {path}; use {self.allow}", method=method, allow=self.allow
        )


class RequestTimeout(HttpFault):
    """The client took too long to send what it announced."""

    code = "timeout"
    status = 408


class UriTooLong(HttpFault):
    """The request line is over its bound."""

    code = "uri_too_long"
    status = 414


class ExpectationFailed(HttpFault):
    """Something other than 100-continue was expected of us."""

    code = "expectation_failed"
    status = 417


class HeadersTooLarge(HttpFault):
    """The headers are over their bound, in bytes or in number."""

    code = "headers_too_large"
    status = 431


class InternalFault(HttpFault):
    """Our own mistake; the log has the traceback, the client gets none of it."""

    code = "internal"
    status = 500


class NotImplementedFault(HttpFault):
    """A transfer coding or an HTTP version that is not served."""

    code = "not_implemented"
    status = 501


class CannotListen(SwarmError):
    """A surface could not listen; the message names it, the address and the setting."""

    code = "cannot_listen"


class PortTaken(CannotListen):
    """Somebody else listens there already."""

    code = "port_taken"
