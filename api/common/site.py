"""A surface at work: each request is admitted, routed, answered and counted here.

The order is fixed: guard, then a place among the running requests, then the route and its bounds,
then the handler. Hot routes come first; Quart has the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from email.utils import formatdate
from typing import Any
from urllib.parse import unquote

import trio

from api.common import auth
from api.common.connection import Connection
from api.common.consistency import wants_local
from api.common.exchange import ClientGone, Exchange
from api.common.faults import BadRequest, MethodNotAllowed
from api.common.load import Load
from api.common.quart_app import QuartApp, unknown_path
from api.common.streams import current_exchange
from api.common.surface import Found, HotRoute, Request, Response, Router, Surface
from api.common.websocket import serve_websocket
from api.common.wire import Head, RawHeaders
from swarmd.cluster.handle import local_reads
from swarmd.domain.actors import Actor
from swarmd.domain.errors import SwarmError

log = logging.getLogger(__name__)

_TOKENS_SHOWN_MAX = 2


class Site:
    def __init__(self, surface: Surface, load: Load, wall: Callable[[], float]) -> None:
        self.surface = surface
        self.limits = load.limits
        self.load = load
        self.connections: set[Connection] = set()
        self.quart = QuartApp(surface, surface.app) if surface.app is not None else None
        self._router = Router(surface.hot)
        self._wall = wall
        self._date_of = -1
        self._common: RawHeaders = []

    def common_headers(self) -> RawHeaders:
        """Of every answer; the date changes once a second."""
        now = int(self._wall())
        if now != self._date_of:
            self._date_of = now
            date = formatdate(now, usegmt=True).encode()
            self._common = [(b"Date", date), (b"X-Content-Type-Options", b"nosniff")]
        return self._common

    def count(self, exchange: Exchange, status: int, *, timed: bool) -> None:
        duration_s = trio.current_time() - exchange.started
        if self.surface.metrics is not None:
            self.surface.metrics.count(
                exchange.head.method, exchange.endpoint, status, duration_s if timed else None
            )
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "request",
                extra={
                    "surface": self.surface.name,
                    "method": exchange.head.method,
                    "endpoint": exchange.endpoint,
                    "status": status,
                    "ms": round(duration_s * 1000, 2),
                },
            )

    async def handle(self, connection: Connection, exchange: Exchange) -> None:
        """Answer one request. What the handler did not foresee is logged once, and is a 500."""
        try:
            await self._route(connection, exchange)
        except ClientGone:
            raise
        except Exception as error:
            await self._refuse(exchange, _innermost(error))

    async def _refuse(self, exchange: Exchange, error: Exception) -> None:
        """Answer what was raised, as far as an answer is still possible."""
        facts = {"surface": self.surface.name, "endpoint": exchange.endpoint}
        if isinstance(error, ClientGone):
            raise error
        if not isinstance(error, SwarmError):
            log.error("a request failed", exc_info=error, extra=facts)
            answer = self.surface.envelope.fault()
        else:
            if exchange.status:
                log.warning("an answer broke off", extra={**facts, "error": error.message})
            answer = self.surface.envelope.answer(error)
        if not exchange.status:
            await exchange.answer(answer)

    async def _route(self, connection: Connection, exchange: Exchange) -> None:
        head = exchange.head
        keys = self.surface.query_keys
        if keys and unquote(head.target.decode("ascii")).startswith(keys):
            auth.take_query_key(head)
        raw_path, _, query = head.target.partition(b"?")
        probe = head.method in ("GET", "HEAD") and raw_path.decode("ascii") in self.surface.probes
        found = self._router.find(raw_path)
        bearer = self._bearer(head, found)
        actor = connection.guard.admit(head, connection.peer, probe=probe, bearer=bearer)
        auth.set_actor(actor)
        current_exchange.set(exchange)
        if not wants_local(head):
            await self._admitted(connection, exchange, actor, raw_path, query, found)
            return
        exchange.answer_locally(self.surface.staleness_ms())
        with local_reads():
            await self._admitted(connection, exchange, actor, raw_path, query, found)

    def _bearer(self, head: Head, found: Found | None) -> auth.Bearer | None:
        tokens = self.surface.tokens
        if tokens is None or found is None:
            return None
        route = found[0].get(head.method)
        if route is None or not route.by_token:
            return None
        shown = [value.decode("latin-1") for name, value in head.headers if name == tokens.header]
        shown += [head.key] if head.key else []
        named = (tokens.owner(each.strip()) for each in shown[:_TOKENS_SHOWN_MAX])
        return auth.Bearer(next(filter(None, named), None), tokens.hint)

    async def _admitted(
        self, connection: Connection, exchange: Exchange, actor: Actor, raw_path: bytes,
        query: bytes, found: Found | None,
    ) -> None:  # fmt: skip
        head = exchange.head
        method = head.method
        if head.upgrade and self.quart is not None and self.quart.has_websocket(raw_path):
            exchange.endpoint, _ = self.quart.match("GET", raw_path, websocket=True)
            exchange.become_stream()
            scope = self._scope(connection, exchange, raw_path, query)
            await serve_websocket(self.quart.asgi, connection, exchange, scope)
            return
        exchange.take_place()
        if found is not None:
            methods, params = found
            route = methods.get(method)
            if route is None and method == "HEAD":
                route = methods.get("GET")
            if route is not None:
                request = self._request(exchange, route, raw_path, query, params, actor)
                await self._answer_hot(connection, exchange, route, request)
                return
        if method == "OPTIONS":
            await exchange.answer(self._options(raw_path, found))
            return
        await self._answer_quart(connection, exchange, raw_path, query, found)

    def _request(
        self,
        exchange: Exchange,
        route: HotRoute,
        raw_path: bytes,
        query: bytes,
        params: dict[str, str],
        actor: Actor,
    ) -> Request:
        exchange.endpoint = route.template
        bytes_max = route.body_bytes_max
        if bytes_max is None:
            bytes_max = self.limits.body_bytes_max
        exchange.allow_body(bytes_max)
        return Request(
            exchange.head.method,
            unquote(raw_path.decode("ascii")),
            params,
            query,
            exchange.head.headers,
            actor,
            route.template,
            bytes_max,
            exchange,
        )

    async def _answer_hot(
        self, connection: Connection, exchange: Exchange, route: HotRoute, request: Request
    ) -> None:
        if route.timeout_s is None or route.timeout_s >= 0:
            connection.handler_may_take(route.timeout_s)
        response = await route.handler(request)
        await exchange.answer(response)

    def _options(
        self, raw_path: bytes, found: tuple[dict[str, HotRoute], dict[str, str]] | None
    ) -> Response:
        methods = self._methods(raw_path, found)
        if raw_path == b"*":
            return Response(204)
        if not methods:
            raise unknown_path("OPTIONS", unquote(raw_path.decode("ascii")))
        return Response(204, headers=(("Allow", ", ".join(sorted(methods))),))

    def _methods(
        self, raw_path: bytes, found: tuple[dict[str, HotRoute], dict[str, str]] | None
    ) -> set[str]:
        methods = self.quart.methods(raw_path) if self.quart is not None else set()
        if found is not None:
            methods |= found[0].keys()
        if "GET" in methods:
            methods.add("HEAD")
        if methods:
            methods.add("OPTIONS")
        return methods

    async def _answer_quart(
        self,
        connection: Connection,
        exchange: Exchange,
        raw_path: bytes,
        query: bytes,
        found: tuple[dict[str, HotRoute], dict[str, str]] | None,
    ) -> None:
        method = exchange.head.method
        try:
            if self.quart is None:
                raise unknown_path(method, unquote(raw_path.decode("ascii")))
            exchange.endpoint, bytes_max = self.quart.match(method, raw_path)
        except SwarmError as refusal:
            if isinstance(refusal, BadRequest):
                raise
            methods = self._methods(raw_path, found)
            if not methods:
                raise
            path = unquote(raw_path.decode("ascii"))[:200]
            raise MethodNotAllowed(method, path, methods) from None
        exchange.allow_body(bytes_max or self.limits.body_bytes_max)
        scope = self._scope(connection, exchange, raw_path, query)
        # Quart's own tasks wait for the client's going, so a handler has no need of a deadline;
        # it has one all the same, until it turns out to be a stream.
        await self.quart.asgi(scope, exchange.asgi_receive, exchange.asgi_send)
        if not exchange.status and not connection.eof and exchange.refusal is None:
            raise RuntimeError("the application gave no answer")

    def _scope(
        self, connection: Connection, exchange: Exchange, raw_path: bytes, query: bytes
    ) -> dict[str, Any]:
        head = exchange.head
        return {
            "type": "http",
            "http_version": f"1.{head.minor}",
            "asgi": {"spec_version": "2.3", "version": "3.0"},
            "method": head.method,
            "scheme": "http",
            "path": unquote(raw_path.decode("ascii")),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": head.headers,
            "client": (connection.peer.address, connection.peer.port),
            "server": connection.server,
            "state": {},
            "extensions": {},
        }


def _innermost(error: Exception) -> Exception:
    """What a nursery wrapped: the one error, or the client's going where that is all there is."""
    while isinstance(error, ExceptionGroup):
        if error.split(ClientGone)[1] is None:
            return ClientGone()
        if len(error.exceptions) > 1:
            break
        error = error.exceptions[0]
    return error
