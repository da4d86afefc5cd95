"""Real sshd daemons of a test's own, in whatever network it has entered. Needs the part `sshd`.

Each has its directory, host keys and one account's key; what it has started ends with it.
"""

from __future__ import annotations

import getpass
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swarmd.drivers.ssh_targets import SshTarget

SSHD = "/usr/sbin/sshd"
START_TIMEOUT_S = 30.0


@dataclass
class Sshd:
    folder: Path
    host: str
    port: int
    kinds: tuple[str, ...]
    options: tuple[str, ...]
    env: dict[str, str]
    sftp_server: str
    within: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def target(self, **changes: Any) -> SshTarget:
        """Its own account, with the key that it takes and the host key that it shows."""
        target = SshTarget(
            self.host,
            self.port,
            getpass.getuser(),
            key_file=str(self.folder / "client"),
            host_keys=(self.host_key(),),
        )
        return replace(target, **changes)

    def host_key(self, kind: str = "") -> str:
        file = self.folder / f"host_{kind or self.kinds[0]}.pub"
        return " ".join(file.read_text().split()[:2])

    def fingerprint(self, kind: str = "") -> str:
        """As ssh-keygen has it."""
        file = self.folder / f"host_{kind or self.kinds[0]}.pub"
        return _run("ssh-keygen", "-lf", str(file)).split()[1]

    def settings(self, known_hosts: Path) -> dict[str, object]:
        """A daemon's section `ssh` that reaches it; the file is written here."""
        known_hosts.write_text(f"# by the test\n[{self.host}]:{self.port} {self.host_key()}\n")
        return {
            "key_file": str(self.folder / "client"), "known_hosts": str(known_hosts),
            "port": self.port, "user": getpass.getuser(),
        }  # fmt: skip

    def start(self) -> None:
        assert self.process is None
        config = self.folder / "sshd_config"
        lines = [
            f"Port {self.port}",
            f"ListenAddress {self.host}",
            *(f"HostKey {self.folder}/host_{kind}" for kind in self.kinds),
            "PidFile none",
            f"AuthorizedKeysFile {self.folder}/client.pub",
            "StrictModes no",
            "UsePAM no",
            "UseDNS no",
            "PasswordAuthentication no",
            "PermitRootLogin prohibit-password",
            "MaxStartups 100:30:200",
            "PrintMotd no",
            "PrintLastLog no",
            f"Subsystem sftp {self.sftp_server}",
        ]
        env = {"HOME": str(self.folder), **self.env}
        lines.append("SetEnv " + " ".join(f'"{name}={value}"' for name, value in env.items()))
        # The first that is said of an option counts.
        config.write_text("\n".join([*self.options, *lines]) + "\n")
        with open(self.folder / "sshd.log", "ab") as log:
            self.process = subprocess.Popen(
                [*self.within, SSHD, "-D", "-e", "-f", str(config)],
                stdin=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            with suppress(OSError), socket.create_connection((self.host, self.port), 1):
                return
            assert self.process.poll() is None, (self.folder / "sshd.log").read_text()
            assert time.monotonic() < until, "sshd does not listen"
            time.sleep(0.02)

    def stop(self) -> None:
        """With every connection, and all that runs on one."""
        if self.process is not None:
            for pid in [self.process.pid, *descendants(self.process.pid)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections, and does not say or hear a word, for the block."""
        assert self.process is not None
        pids = [self.process.pid, *descendants(self.process.pid)]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def sessions(self) -> list[int]:
        """The processes of its connections."""
        assert self.process is not None
        return children(self.process.pid)

    def rebuild(self) -> None:
        """As after a new installation: the same address, other host keys."""
        self.stop()
        for kind in self.kinds:
            for file in self.folder.glob(f"host_{kind}*"):
                file.unlink()
            make_key(self.folder / f"host_{kind}", kind)
        self.start()


@dataclass
class SshHost:
    """A host: its sshd sees a directory of its own where all of them have theirs."""

    name: str
    sshd: Sshd
    root: Path

    @property
    def inside(self) -> Path:
        """That directory, from here."""
        assert self.sshd.process is not None
        return Path(f"/proc/{self.sshd.process.pid}/root{self.root}")

    def write(self, name: str, data: bytes | str, mode: int = 0o644) -> None:
        file = self.inside / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data.encode() if isinstance(data, str) else data)
        file.chmod(mode)

    def file(self, name: str) -> bytes:
        return (self.inside / name).read_bytes()

    def names(self) -> set[str]:
        return {path.name for path in self.inside.iterdir()}

    def pid(self) -> int | None:
        """Of its service, which says so itself."""
        with suppress(OSError, ValueError):
            return int((self.inside / "pid").read_text())
        return None

    def kill(self) -> None:
        """Its service."""
        pid = self.pid()
        if pid is not None and alive(pid):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def running_sshd(
    folder: Path,
    host: str = "127.0.0.1",
    *,
    kinds: tuple[str, ...] = ("ed25519",),
    options: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    sftp_server: str = "/usr/lib/openssh/sftp-server",
    port: int = 0,
    within: tuple[str, ...] = (),
) -> Iterator[Sshd]:
    """One that listens; its options come before the usual ones. The account is at home in its
    directory, so that nobody's own start-up files take part. `within` is a command that becomes
    the one that comes after it."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd has it compiled in
    make_key(folder / "client", "ed25519")
    for kind in kinds:
        make_key(folder / f"host_{kind}", kind)
    with socket.socket() as probe:
        probe.bind((host, port))
        port = probe.getsockname()[1]
    sshd = Sshd(folder, host, port, kinds, options, env or {}, sftp_server, within)
    try:
        sshd.start()
        yield sshd
    finally:
        sshd.stop()


def make_key(file: Path, kind: str) -> None:
    bits = ("-b", "2048") if kind == "rsa" else ()  # the largest take seconds to find
    _run("ssh-keygen", "-q", "-t", kind, *bits, "-N", "", "-C", "", "-f", str(file))


def children(pid: int) -> list[int]:
    return [each for each, parent in _parents().items() if parent == pid]


def descendants(pid: int) -> list[int]:
    parents = _parents()
    found, last = [], [pid]
    while last := [each for each, parent in parents.items() if parent in last]:
        found += last
    return found


def alive(pid: int) -> bool:
    """Neither gone nor a zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] != "Z"
    return False


def _parents() -> dict[int, int]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            stat = (folder / "stat").read_text().rpartition(") ")[2].split()
            found[int(folder.name)] = int(stat[1])
    return found


def _run(*command: str) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30
    ).stdout
