"""Real parts that some tests need. A missing one skips by name, or fails where all are required.

`@pytest.mark.needs("root", "cgroup-memory")` on a test, or `need("root")` in a fixture that is not
async: out of a Trio run the reason would not come. `SWARMD_REQUIRE_PARTS=1` (as CI sets it) turns
each skip into a failure. The session closes with a list of what was missing.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

MISSING = "part missing: "
REQUIRE = "SWARMD_REQUIRE_PARTS"


@dataclass(frozen=True)
class Part:
    here: Callable[[], bool]
    remedy: str


def need(*names: str) -> None:
    """Go on only where every named part is here."""
    if trio.lowlevel.in_trio_run():
        raise RuntimeError(f"use @pytest.mark.needs{names!r} on an async test")
    for name in names:
        if not is_here(name):
            words = f"{MISSING}{name} ({PARTS[name].remedy})"
            if required():
                pytest.fail(f"{words}; {REQUIRE} is set", pytrace=False)
            pytest.skip(words)


@functools.cache
def is_here(name: str) -> bool:
    try:
        return PARTS[name].here()
    except OSError:
        return False


def required() -> bool:
    return os.environ.get(REQUIRE, "") not in ("", "0")


def conformance_dir() -> Path | None:
    """Where the recorded conformance data lies, as SWARMD_CONFORMANCE names it."""
    named = os.environ.get("SWARMD_CONFORMANCE")
    return Path(named).resolve() if named and Path(named).is_dir() else None


def endpoints_file() -> Path | None:
    """The list of every documented operation, beside the conformance data."""
    folder = conformance_dir()
    file = folder.parent / "api" / "endpoints.tsv" if folder else None
    return file if file is not None and file.is_file() else None


def _root() -> bool:
    return os.geteuid() == 0


def _program(*names: str) -> Callable[[], bool]:
    return lambda: all(shutil.which(name) for name in names)


def _sshd() -> bool:
    files = ("/usr/sbin/sshd", "/usr/lib/openssh/sftp-server")
    return all(Path(file).exists() for file in files) and _program("ssh-keygen")()


def _portage() -> bool:
    """Beside this interpreter, with what it starts."""
    emerge = Path(sys.prefix) / "bin" / "emerge"
    programs = ("scanelf", "wget", "gcc", "tar", "zstd", "bzip2", "xz")
    there = importlib.util.find_spec("portage") is not None and emerge.exists()
    return there and _program(*programs)()


def _own_cgroup(controller: str) -> Path | None:
    """The directory of this process in a v1 hierarchy, or with "" in the v2 one."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        for _, at, kind, options, *_ in mounts:
            if kind == "cgroup2" if not controller else controller in options.split(","):
                here = Path(at + path)
                return here if here.is_dir() else Path(at)
    return None


def _makes_child(folder: Path, file: str) -> bool:
    child = folder / f"swarmd-probe-{os.getpid()}"
    try:
        child.mkdir()
    except OSError:
        return False
    try:
        return os.access(child / file, os.W_OK)
    finally:
        child.rmdir()


def _cgroup(controller: str = "") -> Callable[[], bool]:
    """Can a child cgroup be made here, with the files of this controller in it?"""
    file = {"": "cgroup.procs", "memory": "memory.max", "cpu": "cpu.max", "pids": "pids.max"}
    v1 = {"memory": "memory.limit_in_bytes", "cpu": "cpu.cfs_quota_us", "pids": "pids.max"}

    def here() -> bool:
        unified = _own_cgroup("")
        if unified is not None and _makes_child(unified, file[controller]):
            return True
        if controller:
            folder = _own_cgroup(controller)
            return folder is not None and _makes_child(folder, v1[controller])
        return any(here_for() for here_for in map(_cgroup, v1))

    return here


def _cgroup2() -> bool:
    unified = _own_cgroup("")
    return unified is not None and _makes_child(unified, "cgroup.procs")


def _ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
    return True


def _netns() -> bool:
    if not _root() or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    command = ["unshare", "--net", "ip", "link", "set", "lo", "up"]
    return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0


PARTS: dict[str, Part] = {
    "root": Part(_root, "run the tests as root"),
    "cgroup2": Part(_cgroup2, "run as root where cgroup v2 is mounted, or with Delegate=yes"),
    "cgroup": Part(_cgroup(), "run as root, or with a delegated cgroup: Delegate=yes"),
    "cgroup-memory": Part(_cgroup("memory"), "a writable memory controller"),
    "cgroup-cpu": Part(_cgroup("cpu"), "a writable cpu controller"),
    "cgroup-pids": Part(_cgroup("pids"), "a writable pids controller"),
    "ipv6": Part(_ipv6, "switch IPv6 on for the loopback interface"),
    "netns": Part(_netns, "run as root with iproute2 and util-linux installed"),
    "promtool": Part(_program("promtool"), "install prometheus"),
    "portage": Part(
        _portage, "pip install portage; install pax-utils wget gcc zstd bzip2 xz-utils"
    ),
    "gpg": Part(_program("gpg", "gpgconf"), "install gnupg"),
    "sshd": Part(_sshd, "install openssh-server and openssh-client"),
    "cc": Part(_program("cc"), "install gcc"),
    "setpriv": Part(_program("setpriv"), "install util-linux"),
    "curl": Part(_program("curl"), "install curl"),
    "bash": Part(_program("bash"), "install bash"),
    "zsh": Part(_program("zsh"), "install zsh"),
    "fish": Part(_program("fish"), "install fish"),
    "conformance": Part(lambda: conformance_dir() is not None, "set SWARMD_CONFORMANCE"),
    "endpoints": Part(lambda: endpoints_file() is not None, "set SWARMD_CONFORMANCE"),
}
