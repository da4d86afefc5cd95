"""Commands, files and terminals on other hosts over ssh. Cancelled means ended there too; every
wait, output and connection has a bound, and no host is believed whose key is not pinned."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import msgspec
import trio

from swarmd.domain.blobs import BlobInfo
from swarmd.domain.errors import TooLarge, Unavailable
from swarmd.drivers import ssh_files
from swarmd.drivers.ssh_pool import KeepKey, Pool
from swarmd.drivers.ssh_sessions import Session, open_session
from swarmd.drivers.ssh_targets import (
    HostKey,
    HostKeyChanged,
    HostKeyUnknown,
    SshSettings,
    SshTarget,
)
from swarmd.drivers.ssh_terminal import Terminal, pty_of

__all__ = [
    "HostKey", "HostKeyChanged", "HostKeyUnknown", "KeepKey", "Ran", "Ssh", "SshSettings",
    "SshTarget", "Terminal", "open_ssh",
]  # fmt: skip

DRAINED_BYTES_MAX = 16 * 1024 * 1024
"""Read and thrown away beyond a bound, so that a command that says much may end."""
QUIET_S = 0.5
"""After its exit status a command may have something left to say; so may what it has started."""
DEFAULTS = SshSettings()


class Ran(msgspec.Struct, frozen=True):
    """A command that has ended."""

    exit_code: int
    """As a shell has it: 128 and its number for a signal."""
    stdout: bytes
    stderr: bytes
    cut: bool = False
    """It said more than was wanted."""


class Ssh:
    """All refuse with HostKeyUnknown, HostKeyChanged, Unauthorized, Busy or Unavailable."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def exec(
        self,
        target: SshTarget,
        command: Sequence[str] | str,
        *,
        input: bytes = b"",
        timeout_s: float,
        output_bytes_max: int = 1024 * 1024,
    ) -> Ran:
        """Run the words, or the text for its /bin/sh. `timeout_s` counts from where it began;
        reaching the host has bounds of its own. TooLarge: it does not stop talking."""
        async with self._session(target, command) as session:
            output = _Output(output_bytes_max)
            with trio.move_on_after(timeout_s) as scope:
                await _follow(session, input, output)
            facts = {"host": target.host, "port": target.port}
            if scope.cancelled_caught:
                raise Unavailable(
                    f"the command on {target.name} did not end within {timeout_s:g} s",
                    **facts, timeout_s=timeout_s,
                )  # fmt: skip
            if output.endless:
                raise TooLarge(f"the command on {target.name} talks without end", **facts)
            if session.channel.exit_code is None:
                lost = session.channel.lost
                words = "the connection was lost" if lost else "the host closed its channel"
                raise Unavailable(f"{words} before the command on {target.name} had ended", **facts)
            stdout, stderr = b"".join(output.parts[False]), b"".join(output.parts[True])
            return Ran(session.channel.exit_code, stdout, stderr, output.cut)

    @asynccontextmanager
    async def terminal(
        self, target: SshTarget, *, cols: int = 80, rows: int = 24, term: str = "xterm-256color"
    ) -> AsyncIterator[Terminal]:
        """A login shell at a terminal. Left, it is gone with all that it has started, but for what
        was given a session of its own."""
        async with self._session(target, None, cols=cols, rows=rows, term=term) as session:
            yield Terminal(session)

    async def put(
        self,
        target: SshTarget,
        source: Path | AsyncIterator[bytes],
        remote_path: str,
        *,
        sha256: str,
        size_bytes: int,
        mode: int = 0o644,
        keep_previous: bool = False,
        timeout_s: float = 600.0,
    ) -> None:
        """Have the file there, whole and verified where it lies, in place of the former at once;
        that one stays as `.previous` if wanted. On any failure all is as before.

        Refused also with Invalid (what was sent is not of that hash and size), NotFound (no such
        directory), Forbidden (not with this account) and Conflict (the disk spoilt it)."""
        ssh_files.check_upload(remote_path, sha256, size_bytes, mode)
        upload = ssh_files.Upload(source, remote_path, sha256, size_bytes, mode, keep_previous)
        async with self._files(target) as files:
            with _within(timeout_s, f"the upload to {target.name}"):
                afresh = partial(self._files, target)
                await ssh_files.put(files, afresh, partial(self.sha256, target), upload)

    async def get(
        self,
        target: SshTarget,
        remote_path: str,
        into: Path,
        *,
        bytes_max: int,
        timeout_s: float = 600.0,
    ) -> BlobInfo:
        """Save the file as a new one here, fsynced and closed; no file is left on error."""
        ssh_files.check_path(remote_path)
        async with self._files(target) as files:
            with _within(timeout_s, f"the download from {target.name}"):
                return await ssh_files.get(files, remote_path, into, bytes_max)

    async def sha256(
        self, target: SshTarget, remote_path: str, *, timeout_s: float = 120.0
    ) -> BlobInfo:
        """Of the file as it lies there. NotFound: there is none."""
        ssh_files.check_path(remote_path)
        command = ssh_files.hashing(remote_path)
        ran = await self.exec(target, command, timeout_s=timeout_s, output_bytes_max=16 * 1024)
        found = ssh_files.hashed(remote_path, ran.exit_code, ran.stdout)
        if found is not None:
            return found
        async with self._files(target) as files:
            with _within(timeout_s, f"reading {remote_path} on {target.name}"):
                return await ssh_files.read_hash(files, remote_path)

    async def remove(self, target: SshTarget, remote_path: str) -> None:
        """NotFound: there is none."""
        ssh_files.check_path(remote_path)
        async with self._files(target) as files:
            await files.remove(remote_path)

    async def rename(self, target: SshTarget, remote_path: str, to: str) -> None:
        """In place of what has that name, at once. NotFound: there is none."""
        ssh_files.check_path(remote_path)
        ssh_files.check_path(to)
        async with self._files(target) as files:
            await files.rename(remote_path, to)

    async def scan(self, target: SshTarget) -> HostKey:
        """The key that the host shows, for people to compare; nobody logs in."""
        return await self._pool.scan(target)

    def forget(self, target: SshTarget) -> None:
        """Of a host that is pinned by its first key, the next one counts as the first: somebody has
        decided so."""
        self._pool.forget(target)

    def _files(self, target: SshTarget) -> AbstractAsyncContextManager[ssh_files.Files]:
        return self._pool.using(target, ssh_files.open_files)

    def _session(
        self,
        target: SshTarget,
        command: Sequence[str] | str | None,
        *,
        cols: int = 0,
        rows: int = 0,
        term: str = "",
    ) -> AbstractAsyncContextManager[Session]:
        pty = pty_of(term, cols, rows) if term or cols or rows else None
        return self._pool.using(target, lambda on: open_session(on, command, pty))


@asynccontextmanager
async def open_ssh(
    settings: SshSettings = DEFAULTS, *, keep_key: KeepKey | None = None
) -> AsyncIterator[Ssh]:
    """Reach hosts until it is left; connections are kept meanwhile. `keep_key` is told the first
    key of a host that is to be pinned by it, before anybody logs in: what it raises refuses it."""
    pool = Pool(settings, keep_key)
    async with pool.opened():
        yield Ssh(pool)


class _Output:
    def __init__(self, bytes_max: int) -> None:
        self.parts: dict[bool, list[bytes]] = {False: [], True: []}
        self.seen_bytes = 0
        self._bytes_max = bytes_max

    @property
    def cut(self) -> bool:
        return self.seen_bytes > self._bytes_max

    @property
    def endless(self) -> bool:
        return self.seen_bytes > self._bytes_max + DRAINED_BYTES_MAX

    def add(self, error: bool, data: bytes) -> None:
        room = max(0, self._bytes_max - self.seen_bytes)
        if room:
            self.parts[error].append(data[:room])
        self.seen_bytes += len(data)


async def _follow(session: Session, input: bytes, output: _Output) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_feed, session, input)
        with trio.CancelScope() as reading:
            nursery.start_soon(_leave_when_quiet, session, output, reading)
            while not output.endless and (said := await session.receive()) is not None:
                output.add(*said)
        if not output.endless:
            await session.channel.exited()
        nursery.cancel_scope.cancel()


async def _feed(session: Session, input: bytes) -> None:
    try:
        await session.channel.send(input)
    except Unavailable:
        return  # it wanted no more of it
    session.channel.send_eof()


async def _leave_when_quiet(session: Session, output: _Output, reading: trio.CancelScope) -> None:
    """A service that it has started may hold its output open for good."""
    await session.channel.exited()
    before = -1
    while before != output.seen_bytes:
        before = output.seen_bytes
        await trio.sleep(QUIET_S)
    reading.cancel()


@contextmanager
def _within(limit_s: float, what: str) -> Iterator[None]:
    try:
        with trio.fail_after(limit_s):
            yield
    except trio.TooSlowError:
        raise Unavailable(f"{what} did not end within {limit_s:g} s", timeout_s=limit_s) from None
