"""The way to the daemon: HTTP over the unix socket in its data directory.

Whoever may open the socket may do anything; there is no other credential on this way.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode

import click

from swarmd.paths import SOCKET_FILE, find_data_dir

REQUEST_TIMEOUT_S = 30.0
STREAM_CHUNK_BYTES = 64 * 1024
ANSWER_BYTES_MAX = 256 * 1024 * 1024
SUN_PATH_BYTES_MAX = 107

Query = Mapping[str, object]
"""None among the values was not asked for, a sequence is asked for once each."""


class Refused(click.ClickException):
    """The daemon's own refusal, or no daemon to ask."""

    def __init__(self, message: str, code: str = "", http_status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.http_status = http_status

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.message}", err=True, file=file)


class NotRunning(Refused):
    """No daemon listens at the socket."""


class Daemon:
    """The daemon of one data directory. Each call is a connection of its own."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.socket_path = data_dir / SOCKET_FILE

    def get(
        self, path: str, query: Query | None = None, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> Any:
        """The answer's JSON, or Refused with the daemon's own words."""
        with self._answer("GET", path, None, {}, timeout_s, query or {}) as answer:
            return _json(_read(answer))

    def post(self, path: str, body: object = None, timeout_s: float = REQUEST_TIMEOUT_S) -> Any:
        data = b"" if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        with self._answer("POST", path, data, headers, timeout_s, {}) as answer:
            return _json(_read(answer))

    def upload(self, path: str, file: BinaryIO, size_bytes: int, sha256: str) -> Any:
        headers = {"Content-Length": str(size_bytes), "X-Sha256": sha256,
                   "Content-Type": "application/octet-stream"}  # fmt: skip
        with self._answer("PUT", path, file, headers, REQUEST_TIMEOUT_S, {}) as answer:
            return _json(_read(answer))

    def stream(self, path: str, query: Query | None = None) -> Iterator[bytes]:
        """The body as it comes, until the daemon ends it. A stream may rest as long as it likes."""
        with self._answer("GET", path, None, {}, None, query or {}) as answer:
            yield from _pieces(answer)

    @contextlib.contextmanager
    def download(
        self, path: str, timeout_s: float
    ) -> Iterator[tuple[Mapping[str, str], Iterator[bytes]]]:
        """The answer's headers, by their names in lower case, and its body as it comes. The daemon
        may take `timeout_s` for the headers, and for each piece."""
        with self._answer("GET", path, None, {}, timeout_s, {}) as answer:
            yield {name.lower(): value for name, value in answer.getheaders()}, _pieces(answer)

    def pid(self) -> int | None:
        """The process that listens at the socket; None where it cannot be told."""
        with contextlib.suppress(OSError), _connect(self.socket_path, 2.0) as connected:
            format = "3i"
            facts = connected.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(format)
            )
            return int(struct.unpack(format, facts)[0]) or None
        return None

    @contextlib.contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        body: bytes | BinaryIO | None,
        headers: dict[str, str],
        timeout_s: float | None,
        query: Query,
    ) -> Iterator[http.client.HTTPResponse]:
        given = {name: value for name, value in query.items() if value is not None}
        target = f"{path}?{urlencode(given, doseq=True)}" if given else path
        with contextlib.closing(_Connection(self, timeout_s)) as connection:
            try:
                # A refusal may come while the body is still on its way: then it is what counts.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(method, target, body, headers)
                answer = connection.getresponse()
                if answer.status >= 400:
                    raise _refusal(answer)
            except TimeoutError as problem:
                raise Refused(
                    f"the daemon of {self.data_dir} did not answer within {timeout_s:g} s;"
                    " look at its log"
                ) from problem
            except (OSError, http.client.HTTPException) as problem:
                why = str(problem) or type(problem).__name__
                raise Refused(
                    f"the daemon of {self.data_dir} broke off: {why}; look at its log"
                ) from problem
            yield answer


def find_daemon(data_dir: Path | None) -> Daemon:
    """The daemon that --data-dir, SWARMD_DATA_DIR or the configuration means."""
    return Daemon(find_data_dir(os.environ, data_dir, os.geteuid()))


def job_path(job_id: str, *more: str) -> str:
    return "/".join(("/api/v1/jobs", quote(job_id, safe=""), *more))


class _Connection(http.client.HTTPConnection):
    def __init__(self, daemon: Daemon, timeout_s: float | None) -> None:
        super().__init__("localhost")
        self._daemon = daemon
        self._timeout_s = timeout_s

    def connect(self) -> None:
        try:
            self.sock = _connect(self._daemon.socket_path, self._timeout_s)
        except OSError as problem:
            raise _no_way(self._daemon, problem) from problem


def _connect(path: Path, timeout_s: float | None) -> socket.socket:
    """Also where the path is longer than a socket's address may be."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connected.settimeout(timeout_s)
    folder = -1
    try:
        if len(os.fsencode(path)) <= SUN_PATH_BYTES_MAX:
            connected.connect(os.fspath(path))
        else:
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            connected.connect(f"/proc/self/fd/{folder}/{path.name}")
    except BaseException:
        connected.close()
        raise
    finally:
        if folder != -1:
            os.close(folder)
    return connected


def _no_way(daemon: Daemon, problem: OSError) -> Refused:
    elsewhere = "--data-dir or SWARMD_DATA_DIR picks another node"
    if problem.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
        return NotRunning(
            f"no daemon is running for the data directory {daemon.data_dir};"
            f" start one with `swarmd up`, or try `swarmd demo` ({elsewhere})"
        )
    if problem.errno in (errno.EACCES, errno.EPERM):
        return Refused(
            f"you ({_user(os.geteuid())}) may not open {daemon.socket_path},"
            f" which belongs to {_owner(daemon.socket_path)}; run this as that user ({elsewhere})"
        )
    if isinstance(problem, TimeoutError):
        return Refused(f"the daemon of {daemon.data_dir} takes no connection; look at its log")
    return Refused(f"{daemon.socket_path} cannot be opened: {problem.strerror} ({elsewhere})")


def _owner(path: Path) -> str:
    """Of the socket, or of the nearest directory above it that can be seen."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            return _user(place.stat().st_uid)
    return "another user"


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _pieces(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := answer.read1(STREAM_CHUNK_BYTES):
            yield chunk
    except (OSError, http.client.HTTPException) as problem:
        raise Refused("the daemon went away in the middle of its answer") from problem
    if answer.length:  # of which a read that ends too early does not complain
        raise Refused("the daemon went away in the middle of its answer")


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        data = answer.read(ANSWER_BYTES_MAX + 1)
    except (OSError, http.client.HTTPException) as problem:
        raise Refused("the daemon broke off in the middle of its answer") from problem
    if len(data) > ANSWER_BYTES_MAX:
        raise Refused(f"the answer is larger than {ANSWER_BYTES_MAX} bytes; ask for less")
    # A bounded read does not itself complain of a body that ends too early.
    if answer.length:
        raise Refused("the daemon broke off in the middle of its answer")
    return data


def _json(data: bytes) -> Any:
    try:
        return json.loads(data) if data else None
    except ValueError as problem:
        raise Refused("the daemon's answer is no JSON; is it of another version?") from problem


def _refusal(answer: http.client.HTTPResponse) -> Refused:
    said = _json(_read(answer))
    error = said.get("error") if isinstance(said, dict) else None
    if not isinstance(error, dict):
        return Refused(f"the daemon answered {answer.status} {answer.reason}", "", answer.status)
    return Refused(str(error.get("message", "")), str(error.get("code", "")), answer.status)
