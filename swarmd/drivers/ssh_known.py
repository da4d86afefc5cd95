"""Known hosts: those whose keys are in a known_hosts file, reached with one account and one key.
The file is read anew when it changes."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from swarmd.domain.errors import Invalid, Unavailable
from swarmd.drivers.ssh_targets import PIN_CHARS_MAX, PINS_MAX, SshTarget

FILE_BYTES_MAX = 4 * 1024 * 1024
TARGETS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class SshAccount:
    """How this node shows itself to all of them."""

    key_file: str
    known_hosts: str
    user: str = "root"
    port: int = 22


class KnownHosts:
    def __init__(self, account: SshAccount) -> None:
        self._account = account
        self._stamp: tuple[int, int, int] | None = None
        self._lines: tuple[str, ...] = ()
        self._found: dict[str, SshTarget | None] = {}

    async def targets(self, hosts: Sequence[str]) -> dict[str, SshTarget]:
        """Those of the hosts that are known. Unavailable: the file cannot be read."""
        return await trio.to_thread.run_sync(self._targets, [*hosts])

    async def target(self, host: str) -> SshTarget | None:
        return (await self.targets([host])).get(host)

    def _targets(self, hosts: list[str]) -> dict[str, SshTarget]:
        self._refresh()
        found = {}
        for host in hosts:
            if host not in self._found:
                if len(self._found) >= TARGETS_MAX:
                    self._found.clear()
                self._found[host] = self._make(host)
            target = self._found[host]
            if target is not None:
                found[host] = target
        return found

    def _refresh(self) -> None:
        path = Path(self._account.known_hosts)
        try:
            stat = path.stat()
            stamp = stat.st_mtime_ns, stat.st_size, stat.st_ino
            if stamp == self._stamp:
                return
            with path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise Unavailable(
                f"the file that ssh.known_hosts names cannot be read: {error.strerror}"
            ) from None
        if len(data) > FILE_BYTES_MAX:
            raise Unavailable(f"the file that ssh.known_hosts names is over {FILE_BYTES_MAX} bytes")
        lines = (line.strip() for line in data.decode("utf-8", "replace").split("\n"))
        self._lines = tuple(
            line for line in lines if line and line[0] != "#" and len(line) <= PIN_CHARS_MAX
        )
        self._found.clear()
        self._stamp = stamp

    def _make(self, host: str) -> SshTarget | None:
        account = self._account
        lines = lines_of(self._lines, host, account.port)[:PINS_MAX]
        if not lines:
            return None
        try:
            return SshTarget(
                host, account.port, account.user, key_file=account.key_file, host_keys=lines
            )
        except Invalid:
            return None  # what a host says of where it is may be anything


def lines_of(lines: Sequence[str], host: str, port: int) -> tuple[str, ...]:
    """The lines of a known_hosts file that speak of a host, as OpenSSH has it."""
    name = host.lower() if port == 22 else f"[{host.lower()}]:{port}"
    return tuple(line for line in lines if _speaks_of(line, name))


def _speaks_of(line: str, name: str) -> bool:
    words = line.split(None, 2)
    if line.startswith("@"):
        words = words[1:]
    if len(words) < 2:
        return False
    if words[0].startswith("|1|"):
        return _hashed(words[0], name)
    matched = False
    for pattern in words[0].lower().split(","):
        if pattern.startswith("!"):
            if _matches(pattern[1:], name):
                return False
        else:
            matched = matched or _matches(pattern, name)
    return matched


def _matches(pattern: str, name: str) -> bool:
    """Only * and ? mean something: a bracket stands for itself."""
    return re.fullmatch(fnmatch.translate(pattern.replace("[", "[[]")), name) is not None


def _hashed(word: str, name: str) -> bool:
    parts = word.split("|")
    if len(parts) != 4:
        return False
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in parts[2:])
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.digest(salt, name.encode(), hashlib.sha1), digest)
