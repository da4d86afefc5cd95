"""A drone's way to the swarm: the documented HTTP API of any of its nodes, one after the other.

Any node will do: one that does not answer, or cannot, is left for the next, and the one that did
is asked again. What comes back is checked like a stranger's.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlencode

import msgspec
import trio

from swarmd import __version__
from swarmd.cli.drone_wire import (
    CONNECT_TIMEOUT_S,
    Body,
    Place,
    bytes_of,
    exchange,
    file_of,
    within,
)
from swarmd.domain.errors import Conflict, Invalid, NotFound, SwarmError, Unauthorized, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")
API = "/api/v1"
STAGING = "/binhost/staging"
JSON = "application/json"
OCTETS = "application/octet-stream"
ASK_TIMEOUT_S = 20.0
LOOK_BYTES_PER_S_MIN = 5_000_000
"""As fast a node looks at a whole package, at the least, before it answers."""
WORDS_CHARS_MAX = 500

REFUSALS: dict[int, type[SwarmError]] = {
    401: Unauthorized, 403: Unauthorized, 404: NotFound, 408: Unavailable, 409: Conflict,
    429: Unavailable,
}  # fmt: skip

Says = dict[str, object]


class Registered(msgspec.Struct, frozen=True):
    status: str
    paused: bool = False
    token: str | None = None
    revoke: list[str] | None = None
    stop_work: str | None = None
    assigned_packages: list[str] | None = None
    """None: a node of an older version does not say."""


class Work(msgspec.Struct, frozen=True):
    package: str | None
    revoke: list[str] | None = None
    action: str | None = None
    expected_timestamp: str | float | None = None


class Completed(msgspec.Struct, frozen=True):
    status: str
    stale: bool = False


class Standing(msgspec.Struct, frozen=True):
    """Of a drone in the list of all."""

    id: str
    assigned_packages: list[str] = []


class _Failure(msgspec.Struct, frozen=True):
    """By its two fields a build swarm is told from other surfaces."""

    error: str
    hint: str


class NoBuildSwarm(Unavailable):
    """Something answers there, and it does not speak the build swarm's API."""


class Link:
    """`own_token`, or else `admin_key`, is shown with each request, for surfaces that ask everybody
    for one."""

    def __init__(
        self, places: Sequence[Place], admin_key: str | None, own_token: str | None = None
    ) -> None:
        self._places = tuple(places)
        self._at = 0
        """Who answered last."""
        self._shows: dict[str, str] = {}
        if own_token is not None:
            self._shows["Authorization"] = f"Bearer {own_token}"
        elif admin_key is not None:
            self._shows["X-Admin-Key"] = admin_key
        self._tokens: dict[str, str] = {}
        """By the place that gave them: nodes may have different admin keys."""

    async def register(self, says: Says) -> Registered:
        """Also the sign of life."""
        return await self._anywhere(partial(self._register, says))

    async def introduce(self, says: Says) -> Registered:
        """The first word. NoBuildSwarm already where the first of them that answers is none."""
        return await self._anywhere(partial(self._register, says), first=True)

    async def work(self, drone_id: str, cores: int, synced: str = "") -> Work:
        """`synced`: which tree it tried to come up to. NotFound: it has to register first."""
        query = {"id": drone_id, "cores": cores} | ({"synced": synced} if synced else {})
        target = f"{API}/work?{urlencode(query)}"
        return await self._anywhere(lambda place: self._ask(place, "GET", target, None, Work))

    async def complete(self, report: Says) -> Completed:
        target = f"{API}/complete"
        return await self._anywhere(
            lambda place: self._ask(place, "POST", target, report, Completed)
        )

    async def held(self, says: Says) -> list[str]:
        """What this drone was given and did not report."""
        told = await self.register(says)
        if told.assigned_packages is not None:
            return told.assigned_packages
        target = f"{API}/nodes?all=true"
        drones = await self._anywhere(
            lambda place: self._ask(place, "GET", target, None, list[Standing])
        )
        return [p for each in drones if each.id == says["id"] for p in each.assigned_packages]

    async def upload(self, path: str, file: Path, says: Says) -> None:
        """Put a package into staging, at a path such as app-misc/hello-1.0.gpkg.tar. Conflict: it
        is no longer this drone's. Invalid: it is not taken as it is. Unavailable: `answered` is
        among its facts, whether a node said so itself."""
        await self._anywhere(partial(self._upload, path, file, says))

    # One node, or the next

    async def _anywhere(
        self, ask: Callable[[Place], Awaitable[T]], *, first: bool = False
    ) -> T:  # fmt: skip
        reasons, answered = list[str](), False
        count, start = len(self._places), self._at
        for step in range(count):
            at = (start + step) % count
            try:
                answer = await ask(self._places[at])
            except NoBuildSwarm as error:
                if first:
                    raise
                reasons.append(error.message)
            except Unavailable as error:
                reasons.append(error.message)
                answered |= "status" in error.facts
            else:
                if at != self._at:
                    log.info("another node answers", extra={"url": self._places[at].url})
                self._at = at
                return answer
        raise Unavailable("; ".join(reasons), answered=answered)

    async def _register(self, says: Says, place: Place) -> Registered:
        told = await self._ask(place, "POST", f"{API}/register", says, Registered)
        if told.status != "registered":
            raise _no_build_swarm(place)
        if told.token:
            self._tokens[place.url] = told.token
        return told

    async def _upload(self, path: str, file: Path, says: Says, place: Place) -> None:
        target = f"{STAGING}/{quote(path)}"
        if place.url in self._tokens:
            try:
                return await self._put(place, target, file)
            except Unauthorized:
                pass  # the admin key, of which the token is made, may be another by now
        await self._register(says, place)
        await self._put(place, target, file)

    async def _put(self, place: Place, target: str, file: Path) -> None:
        size = (await trio.to_thread.run_sync(file.stat)).st_size
        headers = {"Content-Type": OCTETS, "Content-Length": str(size)}
        if token := self._tokens.get(place.url):
            headers["X-Drone-Token"] = token
        timeout_s = ASK_TIMEOUT_S + size / LOOK_BYTES_PER_S_MIN
        await self._exchange(place, "PUT", target, headers, file_of(file, size), timeout_s)

    async def _ask(
        self, place: Place, method: str, target: str, body: Says | None, kind: type[T]
    ) -> T:
        data, headers = b"", dict[str, str]()
        if body is not None:
            data = msgspec.json.encode(body)
            headers = {"Content-Type": JSON, "Content-Length": str(len(data))}
        parts = bytes_of(data)
        with within(ASK_TIMEOUT_S + CONNECT_TIMEOUT_S, place):
            said = await self._exchange(place, method, target, headers, parts, ASK_TIMEOUT_S)
        try:
            return msgspec.json.decode(said, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _no_build_swarm(place) from None

    async def _exchange(
        self, place: Place, method: str, target: str, headers: dict[str, str], body: Body,
        timeout_s: float,
    ) -> bytes:  # fmt: skip
        """The body of a good answer."""
        about = {"User-Agent": f"swarmd-drone/{__version__}", "Accept": JSON}
        sent = about | self._shows | headers
        answer = await exchange(place, method, target, [*sent.items()], body, timeout_s)
        if not 200 <= answer.status < 300:
            raise _refusal(place, answer.status, answer.body)
        return answer.body


def _refusal(place: Place, status: int, said: bytes) -> SwarmError:
    try:
        failure = msgspec.json.decode(said, type=_Failure)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if status in (429, 502, 503, 504):
            return Unavailable(f"{place.url} answers {status}")
        return _no_build_swarm(place, status)
    words = "; ".join(filter(None, (failure.error, failure.hint)))[:WORDS_CHARS_MAX]
    words = "".join(c if c.isprintable() else "?" for c in words)
    kind = REFUSALS.get(status, Invalid if status < 500 else Unavailable)
    return kind(f"{place.url}: {words}", status=status)


def _no_build_swarm(place: Place, status: int = 200) -> NoBuildSwarm:
    try:
        shown = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        shown = str(status)
    return NoBuildSwarm(
        f"{place.url} answers ({shown}), but not as a build swarm; name port 8100 of a node, or"
        " where its surface `buildswarm` was moved to"
    )
