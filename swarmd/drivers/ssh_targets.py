"""Whom ssh reaches and by which keys it knows them: a host key that was not pinned is never taken
in silence, and nothing secret of a target is ever printed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field

import msgspec

from swarmd.domain.errors import Conflict, Forbidden, Invalid, Unavailable

HOST_CHARS_MAX = 255
USER_CHARS_MAX = 64
PINS_MAX = 64
PIN_CHARS_MAX = 16 * 1024
KEY_BYTES_MAX = 16 * 1024
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_ALGORITHM = re.compile(r"(ssh|ecdsa|sk-ssh|sk-ecdsa)-[A-Za-z0-9@.-]{1,60}")


class HostKeyUnknown(Forbidden):
    """No key is pinned for this host; the facts carry the one that it showed."""


class HostKeyChanged(Conflict):
    """The host shows another key than the pinned one: rebuilt, or somebody in between."""


@dataclass(frozen=True, slots=True)
class HostKey:
    """The public key by which a host is known."""

    algorithm: str
    blob: bytes

    @property
    def line(self) -> str:
        """As a pin of a target, and as in `ssh_host_*_key.pub`."""
        return f"{self.algorithm} {base64.b64encode(self.blob).decode('ascii')}"

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` says it."""
        digest = hashlib.sha256(self.blob).digest()
        return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


@dataclass(frozen=True, slots=True)
class SshTarget:
    """An account on a host, the key to it, and the keys that the host may show.

    Each of `host_keys` is a line of a known_hosts file, a public key (`ssh-ed25519 AAAA…`) or a
    fingerprint (`SHA256:…`). With none, `pin_first` takes the first key that is seen and has it
    kept; without that, the host is refused.
    """

    host: str
    port: int = 22
    user: str = "root"
    private_key: bytes | None = field(default=None, repr=False)
    """Of the OpenSSH or PEM form, without a passphrase."""
    key_file: str | None = None
    """Read anew for each connection, where no `private_key` is given."""
    host_keys: tuple[str, ...] = ()
    pin_first: bool = False

    def __post_init__(self) -> None:
        if not 0 < len(self.host) <= HOST_CHARS_MAX or not _plain(self.host):
            raise Invalid("host must be a name or an IP address", field="host")
        if not 0 < self.port < 65536:
            raise Invalid("port must be between 1 and 65535", field="port")
        if not 0 < len(self.user) <= USER_CHARS_MAX or not _plain(self.user):
            raise Invalid("user must be the name of an account", field="user")
        if self.private_key is None and not self.key_file:
            raise Invalid("ssh needs a private key: private_key or key_file", field="private_key")
        if len(self.private_key or b"") > KEY_BYTES_MAX:
            raise Invalid(f"private_key is over {KEY_BYTES_MAX} bytes", field="private_key")
        if len(self.host_keys) > PINS_MAX or any(len(p) > PIN_CHARS_MAX for p in self.host_keys):
            raise Invalid(
                f"host_keys takes up to {PINS_MAX} pins of {PIN_CHARS_MAX} characters",
                field="host_keys",
            )

    @property
    def name(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 22 else f"{host}:{self.port}"


class SshSettings(msgspec.Struct, frozen=True):
    connect_timeout_s: float = 10.0
    login_timeout_s: float = 20.0
    """From the connection to the end of authentication."""
    open_timeout_s: float = 10.0
    """For a channel on a connection, until the command has begun."""
    stall_timeout_s: float = 30.0
    """For a peer that takes nothing, and for each answer of a transfer."""
    end_timeout_s: float = 3.0
    """For ending what a cancelled or late command has left on the far side."""
    idle_s: float = 120.0
    keepalive_s: float = 15.0
    connections_max: int = 256
    connections_per_target_max: int = 4
    channels_max: int = 8
    """On one connection; sshd's own bound is 10, and ending a command takes one more."""


class Pty(msgspec.Struct, frozen=True):
    term: str
    cols: int
    rows: int


class Gone(Unavailable):
    """The connection was lost before the command had been sent: it may be sent on another."""


class Refused(Unavailable):
    """The host opens no further channel on this connection."""


@dataclass(frozen=True, slots=True)
class Pins:
    """What a host may show. Lines of a known_hosts file are left to who can match them."""

    keys: frozenset[HostKey]
    fingerprints: frozenset[str]
    known_hosts: str
    """The lines of that form, to be matched with the host's name."""


def pins_of(host_keys: tuple[str, ...]) -> Pins:
    """Sort the pins by their forms. Refused with Invalid: what is none of them."""
    keys, fingerprints, lines = set(), set(), []
    for number, pin in enumerate(host_keys, 1):
        words = pin.split()
        if not words or "\n" in pin.strip() or pin.lstrip().startswith("#"):
            raise _no_pin(number)
        if len(words) == 1:
            if not _FINGERPRINT.fullmatch(words[0]):
                raise _no_pin(number)
            fingerprints.add(words[0])
        elif _ALGORITHM.fullmatch(words[0]):
            keys.add(_key(words[0], words[1], number))
        else:
            at = 2 if words[0].startswith("@") else 1
            if len(words) < at + 2:
                raise _no_pin(number)
            _key(words[at], words[at + 1], number)
            lines.append(" ".join(words))
    return Pins(frozenset(keys), frozenset(fingerprints), "\n".join(lines))


def unknown(target: SshTarget, seen: HostKey) -> HostKeyUnknown:
    return HostKeyUnknown(
        f"the host key of {target.name} is not known: it shows {seen.fingerprint}"
        f" ({seen.algorithm}); compare that with `ssh-keygen -lf` on the host, then pin it",
        host=target.host, port=target.port, fingerprint=seen.fingerprint, host_key=seen.line,
    )  # fmt: skip


def changed(target: SshTarget, seen: HostKey, pinned: frozenset[str]) -> HostKeyChanged:
    were = ", ".join(sorted(pinned)) or "none that may still be used"
    return HostKeyChanged(
        f"the host key of {target.name} has changed: pinned is {were}, it shows"
        f" {seen.fingerprint} ({seen.algorithm}); nothing was sent. Where the host was rebuilt,"
        " pin the new key; else somebody stands in between",
        host=target.host, port=target.port, pinned=were, fingerprint=seen.fingerprint,
        host_key=seen.line,
    )  # fmt: skip


def _key(algorithm: str, text: str, number: int) -> HostKey:
    try:
        blob = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _no_pin(number) from None
    named = len(algorithm).to_bytes(4, "big") + algorithm.encode("utf-8", "replace")
    if not blob.startswith(named):
        raise _no_pin(number)
    return HostKey(algorithm, blob)


def _no_pin(number: int) -> Invalid:
    return Invalid(
        f"host_keys, pin {number}: give a line of known_hosts, a public key (ssh-ed25519 AAAA…)"
        " or a fingerprint (SHA256:…)",
        field="host_keys",
    )


def _plain(text: str) -> bool:
    return text.isprintable() and not any(c.isspace() for c in text)
