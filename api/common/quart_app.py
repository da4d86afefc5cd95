"""A dialect's Quart application behind our connection: its routes are matched before it is asked.

Unknown paths, wrong methods, bodies over the route's bound and OPTIONS are settled here for hot
and Quart routes alike, so one table of a surface's paths stays one table for its clients.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed
from werkzeug.exceptions import NotFound as WerkzeugNotFound
from werkzeug.routing import RequestRedirect, Rule, WebsocketMismatch

from api.common.faults import BadRequest, InternalFault, MethodNotAllowed
from api.common.metrics import OTHER
from api.common.streams import current_exchange
from api.common.surface import Envelope, Response, Surface, template_of
from swarmd.domain.errors import Conflict, Invalid, NotFound, SwarmError, TooLarge

if TYPE_CHECKING:
    import quart
    from quart_trio import QuartTrio

log = logging.getLogger(__name__)

_POLICY, _INTERNAL = 1008, 1011
_REASON_BYTES_MAX = 120

Asgi = Callable[[dict[str, Any], Callable[..., Any], Callable[..., Any]], Awaitable[None]]


class QuartApp:
    """The application of one surface, made ready: our limits instead of Quart's, our envelope."""

    def __init__(self, surface: Surface, make: Callable[[], QuartTrio]) -> None:
        self.app = make()
        self._limits = surface.body_limits
        self._templates: dict[str, str] = {}
        # The connection bounds bodies and their time, and cuts readers that stall.
        self.app.config["MAX_CONTENT_LENGTH"] = None
        self.app.config["BODY_TIMEOUT"] = None
        self.app.config["RESPONSE_TIMEOUT"] = None
        self.app.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = 1
        _install_envelope(self.app, surface.envelope)
        self._adapter = self.app.url_map.bind("localhost")
        known = {(m, str(r.rule)) for r in self.app.url_map.iter_rules() for m in r.methods or ()}
        if unknown := [key for key in self._limits if key not in known]:
            raise ValueError(f"body limits for routes that are not there: {unknown}")

    @property
    def asgi(self) -> Asgi:
        return cast(Asgi, self.app)

    def match(self, method: str, raw_path: bytes, *, websocket: bool = False) -> tuple[str, int]:
        """The endpoint's template and its body bound (0: the surface's). Raises NotFound or
        MethodNotAllowed; a redirect to the right slash is left to Quart."""
        path = unquote(raw_path.decode("latin-1"))
        try:
            rule, _ = cast(
                "tuple[Rule, object]",
                self._adapter.match(path, method, return_rule=True, websocket=websocket),
            )
        except RequestRedirect:
            return OTHER, 0
        except WerkzeugMethodNotAllowed as error:
            raise MethodNotAllowed(method, path[:200], error.valid_methods or ()) from None
        except WebsocketMismatch:
            raise BadRequest(f"{path[:200]} is a WebSocket; ask with Upgrade: websocket") from None
        except WerkzeugNotFound:
            raise unknown_path(method, path) from None
        text = str(rule.rule)
        template = self._templates.get(text)
        if template is None:
            template = self._templates[text] = template_of(text)
        return template, self._limits.get((method, text), 0)

    def has_websocket(self, raw_path: bytes) -> bool:
        try:
            self.match("GET", raw_path, websocket=True)
        except SwarmError:
            return False
        return True

    def methods(self, raw_path: bytes) -> set[str]:
        """The methods that Quart serves on a path."""
        return set(self._adapter.allowed_methods(unquote(raw_path.decode("latin-1"))))


def unknown_path(method: str, path: str) -> NotFound:
    return NotFound(f"nothing is served at {path[:200]}", path=path[:200], method=method)


def _install_envelope(app: QuartTrio, envelope: Envelope) -> None:
    async def refuse(error: SwarmError) -> quart.Response:
        await _end_websocket(_POLICY, error.message)
        return as_quart(envelope.answer(error))

    async def refuse_http(error: HTTPException) -> quart.Response:
        code = error.code or InternalFault.status
        if code < 400 and error.response is not None:  # a redirect that Quart made
            return cast("quart.Response", error.get_response())
        if code >= 500:
            return as_quart(envelope.fault())
        text = f"{error.name}: {error.description or ''}".rstrip(": ")
        kinds = {404: NotFound, 409: Conflict, 413: TooLarge}
        return as_quart(envelope.answer(kinds.get(code, Invalid)(text)))

    async def fail(error: Exception) -> quart.Response:
        exchange = current_exchange.get()
        log.error("a request failed", exc_info=error, extra={"endpoint": exchange.endpoint})
        await _end_websocket(_INTERNAL, "")
        return as_quart(envelope.fault())

    app.register_error_handler(SwarmError, refuse)
    app.register_error_handler(HTTPException, refuse_http)
    app.register_error_handler(Exception, fail)


async def _end_websocket(code: int, reason: str) -> None:
    """One that was accepted can only be closed; for one that was not, there is the envelope."""
    import quart

    if quart.has_websocket_context() and current_exchange.get().status == HTTPStatus(101):
        with suppress(RuntimeError):  # closed already
            await quart.websocket.close(
                code, reason.encode()[:_REASON_BYTES_MAX].decode("utf-8", "ignore")
            )


def as_quart(response: Response) -> quart.Response:
    """One of our answers, as Quart sends it."""
    import quart

    return quart.Response(
        response.body,
        response.status,
        headers=dict(response.headers),
        content_type=response.content_type,
    )
