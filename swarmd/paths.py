"""Paths: where a node keeps its things, and how a command finds the node it is meant for.

The data directory is entered by its owner alone; that is the authority of the socket in it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from swarmd.domain.errors import Conflict, Invalid, Unavailable

CONFIG_FILE = "swarmd.toml"
SYSTEM_CONFIG_FILE = Path("/etc/swarmd") / CONFIG_FILE
SOCKET_FILE = "swarmd.sock"
CONFIG_BYTES_MAX = 1024 * 1024


def default_data_dir(env: Mapping[str, str], uid: int) -> Path:
    """The system's place for root, the user's own for anyone else."""
    if uid == 0:
        return Path("/var/lib/swarmd")
    state_home = env.get("XDG_STATE_HOME", "")
    if state_home.startswith("/"):
        return Path(state_home) / "swarmd"
    home = env.get("HOME", "")
    if not home.startswith("/"):
        raise Invalid("no place for the data: HOME is not set; give --data-dir")
    return Path(home) / ".local" / "state" / "swarmd"


def find_config_file(env: Mapping[str, str], flag: Path | None, data_dir: Path) -> Path | None:
    """What is named must be there; the two usual places may be empty."""
    named = flag or (Path(env["SWARMD_CONFIG"]) if env.get("SWARMD_CONFIG") else None)
    if named is not None:
        return named.absolute()
    for usual in (data_dir / CONFIG_FILE, SYSTEM_CONFIG_FILE):
        # A usual place that this user may not look into is as good as empty.
        if os.access(usual, os.R_OK):
            return usual
    return None


def find_data_dir(env: Mapping[str, str], flag: Path | None, uid: int) -> Path:
    """The data directory that `swarmd up` would choose here, found without reading more."""
    named = env.get("SWARMD_DATA_DIR") or env.get("SWARMD_NODE_DATA_DIR")
    if flag is not None or named:
        return (flag or Path(named or "")).absolute()
    usual = default_data_dir(env, uid)
    file = find_config_file(env, None, usual)
    said = read_toml(file).get("node") if file is not None else None
    chosen = said.get("data_dir") if isinstance(said, dict) else None
    return file.parent / chosen if file is not None and isinstance(chosen, str) else usual


def read_toml(file: Path) -> dict[str, object]:
    import tomllib

    try:
        with file.open("rb") as source:
            data = source.read(CONFIG_BYTES_MAX + 1)
        if len(data) > CONFIG_BYTES_MAX:
            raise Invalid(f"the configuration {file} is larger than {CONFIG_BYTES_MAX} bytes")
        return tomllib.loads(data.decode())
    except OSError as problem:
        raise Invalid(
            f"the configuration {file} cannot be read: {problem.strerror}; look at --config,"
            " SWARMD_CONFIG and the file's permissions"
        ) from problem
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as problem:
        raise Invalid(f"the configuration {file} is no TOML: {problem}") from problem


def default_node_name() -> str:
    """The host's first name, without what a node's name may not hold."""
    host = socket.gethostname().partition(".")[0]
    kept = "".join(c for c in host if c.isascii() and (c.isalnum() or c in "-_")).strip("-_")
    return kept[:63].strip("-_") or "node"


def make_data_dir(data_dir: Path) -> None:
    """Make it, for its owner alone to list and change; refuse somebody else's."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = data_dir.stat()
        if facts.st_uid != os.geteuid():
            raise Invalid(
                f"the data directory {data_dir} belongs to user {facts.st_uid}, and this is user"
                f" {os.geteuid()}; run as its owner, or choose another with --data-dir"
            )
        if facts.st_mode & 0o066:
            # Passing through may be granted: jobs of another account do, to their own directories.
            data_dir.chmod(facts.st_mode & 0o711)
    except OSError as problem:
        raise Invalid(
            f"the data directory {data_dir} cannot be made: {problem.strerror};"
            " choose another with --data-dir or SWARMD_DATA_DIR"
        ) from problem


@contextmanager
def claimed(data_dir: Path) -> Iterator[None]:
    """The data directory, made where it is not there and held against a second daemon."""
    make_data_dir(data_dir)
    try:
        if os.geteuid() == 0:
            # Jobs of another account pass through it to their own directories; none can list it.
            data_dir.chmod(0o711)
        fd = os.open(data_dir / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(
            f"the data directory {data_dir} cannot be used: {error.strerror}; choose another with"
            " --data-dir or SWARMD_DATA_DIR"
        ) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise Conflict(
                f"another swarmd runs on {data_dir}; see `swarmd status`, or choose another with"
                " --data-dir"
            ) from None
        yield
    finally:
        os.close(fd)
