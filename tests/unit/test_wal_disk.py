"""A disk that is full, that loses an fsync, or that does not give back what it was given.

The faults are real: limits of the kernel, a small file system, and system calls that fail in a
process of its own. Nothing is acknowledged that is not on disk, and after a fault nothing is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.raft.types import Entry
from mesh.wal import RaftLog
from mesh.wal_errors import DiskFull, LogDamaged, LogFailed
from mesh.wal_sqlite import open_log
from tests.parts import need

ROOT = Path(__file__).parents[2]

# Appends until the log fails, and says as JSON what was acknowledged before, during and after.
_CHILD = """
import json, resource, sys, trio
from pathlib import Path
from mesh import wal_writer
from mesh.raft.types import Entry, HardState
from mesh.wal import LogSettings
from mesh.wal_errors import LogError
from mesh.wal_sqlite import open_log

path, fault, trigger = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
said = {"acknowledged": 0, "late": [], "error": None, "message": "", "again": None}
wal_writer.WAL_PAGES_MAX = 100

async def main():
    async with open_log(path, LogSettings(recent_bytes_max=0, idle_s=60), create=True) as log:
        try:
            await use(log)
        finally:
            # What the disk may do from now on makes no difference: this log is over.
            trigger.unlink(missing_ok=True)
            with trio.CancelScope(shield=True):
                try:
                    ticket = log.append([Entry(1, said["handed"] + 1)],
                                        on_done=lambda: said["late"].append("after"))
                    with trio.move_on_after(1):
                        await ticket.wait()
                        said["again"] = "done"
                except LogError as error:
                    said["again"] = type(error).__name__

async def use(log):
    await log.append([], HardState(1, 7)).wait()
    if fault == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
    for index in range(log.last_index() + 1, 3000):
        said["handed"] = index
        if fault == "trigger" and index == 40:
            trigger.touch()
        if fault == "read" and index == 60:
            trigger.touch()
            list(log.entries(3, 4))
        failed = index >= 40 and fault == "trigger"
        ticket = log.append([Entry(1, index, b"%05d" % index * 600)],
                            on_done=lambda failed=failed: failed and said["late"].append(index))
        await ticket.wait()
        said["acknowledged"] = index

try:
    trio.run(main)
except* LogError as group:
    error = group.exceptions[0]
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    said["error"], said["message"] = type(error).__name__, str(error)
print(json.dumps(said))
"""

# Calls that fail once the trigger is there, on files whose name ends as told.
_SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(const char *what, int fd) {
    const char *call = getenv("FAIL_CALL"), *end = getenv("FAIL_FILE"), *at = getenv("FAIL_WHEN");
    char link[64], name[PATH_MAX];
    if (!call || !end || !at || strcmp(call, what) || access(at, F_OK)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, name, sizeof name - 1);
    if (size < 0) return 0;
    name[size] = 0;
    size_t tail = strlen(end);
    return (size_t)size >= tail && !strcmp(name + size - tail, end);
}
int fdatasync(int fd) {
    if (fails("sync", fd)) { errno = EIO; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
int fsync(int fd) {
    if (fails("sync", fd)) { errno = EIO; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
ssize_t pread64(int fd, void *to, size_t count, off64_t from) {
    if (fails("read", fd)) { errno = EIO; return -1; }
    return ((ssize_t (*)(int, void *, size_t, off64_t))dlsym(RTLD_NEXT, "pread64"))
        (fd, to, count, from);
}
ssize_t pread(int fd, void *to, size_t count, off_t from) {
    return pread64(fd, to, count, from);
}
"""


def run_child(path: Path, fault: str, **environment: str) -> dict[str, Any]:
    trigger = path.parent.parent / f"trigger-{path.parent.name}"
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path), fault, str(trigger)],
        capture_output=True, cwd=ROOT, timeout=60, check=False,
        env={**os.environ, **environment, "FAIL_WHEN": str(trigger)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def everything(log: RaftLog) -> list[Entry]:
    found: list[Entry] = []
    while len(found) < log.last_index():
        found += log.entries(len(found) + 1, log.last_index() + 1)
    return found


async def check_kept(path: Path, said: dict[str, Any]) -> None:
    """What was acknowledged is there; at most what was handed over is there besides."""
    assert said["late"] == []
    async with open_log(path, create=False) as log:
        assert said["acknowledged"] <= log.last_index() <= said["handed"]
        assert [each.data for each in everything(log)] == [
            b"%05d" % index * 600 for index in range(1, log.last_index() + 1)
        ]
        assert log.hard_state.vote == 7
        # And with the fault gone it goes on.
        await log.append([Entry(1, log.last_index() + 1)]).wait()


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("cc")
    folder = tmp_path_factory.mktemp("shim")
    source, library = folder / "fail.c", folder / "fail.so"
    source.write_text(_SHIM)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"],
        check=True, timeout=60,
    )  # fmt: skip
    return library


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "raft.db"


@pytest.mark.parametrize("file", ["raft.db-wal", "raft.db"])
async def test_after_a_failed_fsync_no_ticket_is_ever_done(
    path: Path, shim: Path, file: str
) -> None:
    said = run_child(
        path, "trigger", LD_PRELOAD=str(shim), FAIL_CALL="sync", FAIL_FILE=f"/{file}"
    )  # fmt: skip
    assert (said["error"], said["again"]) == ("LogFailed", "LogFailed")
    assert str(path) in said["message"]
    assert "Look at the disk" in said["message"]
    # The log itself fails with the write, the file behind it when that is next written back.
    assert said["acknowledged"] >= 39
    if file == "raft.db-wal":
        assert said["acknowledged"] == 39
    else:
        assert 40 <= said["acknowledged"] < 200
        assert "after" not in said["late"]
        said["late"] = []
    await check_kept(path, said)


async def test_a_page_that_cannot_be_read_ends_the_log_and_is_no_hole(
    path: Path, shim: Path
) -> None:
    said = run_child(path, "read", LD_PRELOAD=str(shim), FAIL_CALL="read", FAIL_FILE="/raft.db")
    assert said["error"] == LogDamaged.__name__
    assert str(path) in said["message"]
    assert "cannot be trusted" in said["message"]
    await check_kept(path, said)


async def test_a_write_over_the_limit_of_file_sizes_is_not_acknowledged(path: Path) -> None:
    said = run_child(path, "limit")
    assert said["error"] in (LogFailed.__name__, DiskFull.__name__)
    assert said["again"] == said["error"]
    assert "limits on file sizes" in said["message"]
    await check_kept(path, said)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    need("root")
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "swarmd-test", str(place)],
        capture_output=True, timeout=10, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True, timeout=10)


async def test_a_full_disk_ends_the_log_and_says_what_to_do(small_disk: Path) -> None:
    path = small_disk / "raft.db"
    said = run_child(path, "full")
    assert (said["error"], said["again"]) == (DiskFull.__name__, DiskFull.__name__)
    assert str(path) in said["message"]
    assert "Free space" in said["message"]
    assert said["acknowledged"] > 50
    # Still no room: it does not even open, and says the same.
    with pytest.RaisesGroup(DiskFull, flatten_subgroups=True, allow_unwrapped=True):
        (small_disk / "filler").write_bytes(b"")
        _fill(small_disk / "filler")
        async with open_log(path, create=False) as log:
            await log.append([Entry(1, log.last_index() + 1, b"x" * 3_000_000)]).wait()
    (small_disk / "filler").unlink()
    await trio.run_process(["mount", "-o", "remount,size=16m", str(small_disk)])
    await check_kept(path, said)


def _fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
