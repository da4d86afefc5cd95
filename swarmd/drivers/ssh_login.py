"""How a host is logged in to: by modern algorithms, with one key of ours, and only once it has
shown a key that is pinned for it. A failure says how far it got."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import asyncssh
import msgspec
import trio
from asyncssh.encryption import get_encryption_algs
from asyncssh.kex import get_kex_algs

from swarmd.domain.errors import Invalid, Unauthorized, Unavailable
from swarmd.drivers.ssh_channels import Connection
from swarmd.drivers.ssh_loop import Loop
from swarmd.drivers.ssh_targets import (
    HostKey,
    Pins,
    SshSettings,
    SshTarget,
    changed,
    pins_of,
    unknown,
)

HOST_KEYS = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}
"""Kinds of host keys, the best first, and how each signs. SHA-1 and DSA are not among them."""
KEY_EXCHANGES = (
    "mlkem768x25519-sha256", "curve25519-sha256", "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256", "ecdh-sha2-nistp384", "ecdh-sha2-nistp521",
    "diffie-hellman-group16-sha512", "diffie-hellman-group14-sha256",
)  # fmt: skip
CIPHERS = (
    "aes256-gcm@openssh.com", "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com",
    "aes256-ctr", "aes128-ctr",
)  # fmt: skip
MACS = (
    "hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256",
    "hmac-sha2-512",
)  # fmt: skip


async def connect(loop: Loop, target: SshTarget, settings: SshSettings) -> Connection:
    """Connect and log in. Of the keys that the host has, it is asked for one that is pinned.

    Refused with HostKeyUnknown, HostKeyChanged, Unauthorized or Unavailable."""
    wanted = await trio.to_thread.run_sync(_wanted, target)
    seen: HostKey | None = None
    limit_s = settings.connect_timeout_s + settings.login_timeout_s
    with trio.move_on_after(limit_s):
        for kinds in wanted.rounds():
            attempt = _Attempt(loop, target, settings, wanted)
            try:
                return await attempt.run(kinds)
            except _NoCommonHostKey:
                continue
            except Unavailable:
                if attempt.seen is None or attempt.trusted:
                    raise
                seen = seen or attempt.seen
        seen = seen or await scan(loop, target, settings)
        if not wanted.fingerprints:
            raise unknown(target, seen)
    if seen is None:
        raise Unavailable(
            f"cannot reach {target.name} over ssh: it showed no host key within {limit_s:g} s",
            host=target.host, port=target.port, timeout_s=limit_s,
        )  # fmt: skip
    raise changed(target, seen, wanted.fingerprints)


async def scan(loop: Loop, target: SshTarget, settings: SshSettings) -> HostKey:
    """The key that the host shows; nobody logs in."""
    attempt = _Attempt(loop, target, settings, _Wanted(frozenset(), frozenset(), ()))
    try:
        connection = await attempt.run(tuple(HOST_KEYS))
    except _NoCommonHostKey as error:
        raise Unavailable(error.message, **error.facts) from None
    except Unavailable:
        if attempt.seen is None:
            raise
        return attempt.seen
    connection.abort()
    raise AssertionError("a host whose key is trusted by none let us in")


class _Wanted(msgspec.Struct, frozen=True):
    """The keys that the target's host may show."""

    fingerprints: frozenset[str]
    revoked: frozenset[str]
    kinds: tuple[str, ...]
    """Of the keys that are known whole; a fingerprint says nothing of its kind."""
    by_fingerprint: bool = False

    def rounds(self) -> Iterator[tuple[str, ...]]:
        """A host has a key of each kind, and shows one of a kind that was asked for. Which kind a
        fingerprint names is found by asking for each."""
        yield from ((kind,) for kind in self.kinds)
        if self.by_fingerprint:
            yield from ((kind,) for kind in HOST_KEYS if kind not in self.kinds)


def _wanted(target: SshTarget) -> _Wanted:
    pins = pins_of(target.host_keys)
    keys, revoked = set(pins.keys), frozenset[str]()
    if pins.known_hosts:
        matched, revoked = _matched(target, pins)
        keys |= matched
    keys = {key for key in keys if key.fingerprint not in revoked}
    fingerprints = frozenset(key.fingerprint for key in keys) | (pins.fingerprints - revoked)
    shown = {key.algorithm for key in keys}
    kinds = tuple(kind for kind in HOST_KEYS if kind in shown)
    return _Wanted(fingerprints, revoked, kinds, bool(pins.fingerprints))


def _matched(target: SshTarget, pins: Pins) -> tuple[set[HostKey], frozenset[str]]:
    port = target.port if target.port != 22 else None
    try:
        known = asyncssh.import_known_hosts(pins.known_hosts)
        keys, authorities, revoked, *_ = known.match(target.host, "", port)
    except (ValueError, asyncssh.Error):
        raise Invalid(
            "host_keys: a line of known_hosts cannot be read", field="host_keys"
        ) from None
    if authorities and not keys:
        raise Invalid(
            "host_keys: a certificate authority is not taken; pin the host's own key",
            field="host_keys",
        )
    return {_host_key(key) for key in keys}, frozenset(_host_key(k).fingerprint for k in revoked)


def _host_key(key: asyncssh.SSHKey) -> HostKey:
    return HostKey(key.get_algorithm(), key.public_data)


class _NoCommonHostKey(Unavailable):
    """The host has no key of the kinds that were asked for."""


class _Attempt(asyncssh.SSHClient):
    """One connection while it is made: how far it got, and the key that it showed."""

    def __init__(
        self, loop: Loop, target: SshTarget, settings: SshSettings, wanted: _Wanted
    ) -> None:
        self.seen: HostKey | None = None
        self.trusted = False
        self._target = target
        self._settings = settings
        self._wanted = wanted
        self._loop = loop
        self._connection = Connection(loop, target, settings)
        self._raw: asyncssh.SSHClientConnection | None = None

    async def run(self, kinds: tuple[str, ...]) -> Connection:
        key = await trio.to_thread.run_sync(_private_key, self._target)
        raw_socket = await self._dial()
        logged_in = False
        login_s = self._settings.login_timeout_s
        try:
            with trio.fail_after(login_s):
                self._connection.raw = await self._loop.run(self._log_in(raw_socket, key, kinds))
            logged_in = True
        except trio.TooSlowError:
            words = f"{self._step()} within {login_s:g} s"
            raise self._unavailable(words, timeout_s=login_s) from None
        except asyncssh.PermissionDenied:
            raise Unauthorized(
                f"{self._target.name} does not take this key for {self._target.user}; put its"
                " public half into that account's authorized_keys",
                host=self._target.host, user=self._target.user,
            ) from None  # fmt: skip
        except asyncssh.KeyExchangeFailed as error:
            if "host key" in str(error):
                words = "it has no host key of a kind that is still safe"
                raise _NoCommonHostKey(self._words(words), **self._facts()) from None
            raise self._unavailable(
                "no algorithm in common; it needs an OpenSSH of this decade"
            ) from None
        except (asyncssh.ConnectionLost, ConnectionError):
            if self.seen is None and kinds != tuple(HOST_KEYS):
                # So does sshd where it has no key of that kind, unless we say so first.
                words = "it hung up when asked for a kind of host key"
                raise _NoCommonHostKey(self._words(words), **self._facts()) from None
            raise self._unavailable("it hung up: " + self._step()) from None
        except Exception as error:
            kind = type(error).__name__
            raise self._unavailable(f"what answers there breaks the protocol ({kind})") from error
        finally:
            if not logged_in:
                self._hang_up(raw_socket)
        return self._connection

    async def _dial(self) -> socket.socket:
        host, port, limit_s = self._target.host, self._target.port, self._settings.connect_timeout_s
        try:
            with trio.fail_after(limit_s):
                stream = await trio.open_tcp_stream(host, port)
        except trio.TooSlowError:
            words = f"no connection within {limit_s:g} s"
            raise self._unavailable(words, timeout_s=limit_s) from None
        except (OSError, UnicodeError) as error:
            raise self._unavailable(os_words(error)) from None
        return socket.socket(fileno=stream.socket.detach())

    async def _log_in(
        self, raw_socket: socket.socket, key: asyncssh.SSHKey, kinds: tuple[str, ...]
    ) -> asyncssh.SSHClientConnection:
        raw_socket.setblocking(False)
        try:
            return await asyncssh.connect(
                host=self._target.host, port=self._target.port, sock=raw_socket,
                client_factory=lambda: self, client_version="swarmd", config=None,
                username=self._target.user, client_keys=[key], client_certs=(),
                # Which key is taken, is said below.
                known_hosts=([], [], []),
                server_host_key_algs=[each for kind in kinds for each in HOST_KEYS[kind]],
                preferred_auth="publickey", agent_path=None, agent_forwarding=False,
                gss_host=None, gss_kex=False, gss_auth=False, pkcs11_provider=None,
                x509_trusted_certs=None, x509_trusted_cert_paths=[], x11_forwarding=False,
                kex_algs=_known(KEY_EXCHANGES, get_kex_algs()),
                encryption_algs=_known(CIPHERS, get_encryption_algs()),
                mac_algs=MACS, compression_algs=None, login_timeout=0, connect_timeout=None,
                keepalive_interval=self._settings.keepalive_s, keepalive_count_max=3,
                env=None, send_env=None, command=None, request_pty=False, encoding=None,
            )  # fmt: skip
        except BaseException:
            raw_socket.close()
            raise

    def _hang_up(self, raw_socket: socket.socket) -> None:
        if self._raw is None:
            raw_socket.close()
        else:
            with self._loop.inside():
                self._raw.abort()

    # -- what asyncssh calls ---------------------------------------------------------------------

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self._raw = conn
        self._connection.guard(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lost()

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        self.seen = _host_key(key)
        shown = self.seen.fingerprint
        self.trusted = shown in self._wanted.fingerprints and shown not in self._wanted.revoked
        return self.trusted

    # -- words -----------------------------------------------------------------------------------

    def _step(self) -> str:
        """What did not come."""
        if self._raw is None or self._raw.get_extra_info("server_version") is None:
            return "it did not say that it speaks ssh"
        if self.seen is None:
            return "it did not agree on keys"
        return "it did not answer the login"

    def _words(self, words: str) -> str:
        return f"cannot reach {self._target.name} over ssh: {words}"

    def _facts(self) -> dict[str, object]:
        return {"host": self._target.host, "port": self._target.port}

    def _unavailable(self, words: str, **facts: object) -> Unavailable:
        return Unavailable(self._words(words), **self._facts(), **facts)


def _private_key(target: SshTarget) -> asyncssh.SSHKey:
    data = target.private_key
    try:
        if data is None:
            assert target.key_file is not None
            with open(target.key_file, "rb") as file:
                data = file.read(64 * 1024)
        return asyncssh.import_private_key(data)
    except OSError as error:
        raise Unavailable(
            f"the key file {target.key_file} cannot be read: {os_words(error)}"
        ) from None
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError) as error:
        locked = "assphrase" in str(error) or isinstance(error, asyncssh.KeyEncryptionError)
        words = "has a passphrase; give one without"
        raise Invalid(
            f"the private key {words if locked else 'cannot be read; ssh-keygen writes such'}",
            field="private_key",
        ) from None


def _known(ours: tuple[str, ...], theirs: list[bytes]) -> list[str]:
    """Those that the installed libraries have."""
    return [name for name in ours if name.encode() in theirs]


def os_words(error: BaseException) -> str:
    """The system's own words, without the address that Trio adds."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, BaseExceptionGroup):
            seen = seen.exceptions[0]
            continue
        if isinstance(seen, OSError) and seen.strerror and not isinstance(seen, socket.gaierror):
            if seen.__cause__ is None:
                return seen.strerror.lower()
        elif isinstance(seen, socket.gaierror):
            return "its name is not known here"
        seen = seen.__cause__
    return "the name cannot be looked up" if isinstance(error, UnicodeError) else str(error)
