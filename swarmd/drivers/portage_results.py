"""A build between Portage and a runner: what the runner is told, and what the build came to.

A build that came to no end of its own says nothing of its package: that is `Unfinished`, and the
package goes back as if nobody had begun it.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from swarmd.domain.builds import ERROR_CHARS_MAX, Outcome
from swarmd.domain.errors import Invalid, Unavailable
from swarmd.domain.packages import split
from swarmd.drivers.frames import AttemptOrder, Ended
from swarmd.drivers.portage import PortageSettings
from swarmd.drivers.portage_builds import (
    WORDS_BYTES_MAX,
    Built,
    Failed,
    FailureKind,
    build_command,
    packages_dir,
    prepare_staging,
    read_outcome,
)

log = logging.getLogger(__name__)

LOGS_MAX = 50
"""Of builds that failed, the newest."""
NO_PROGRAM = (126, 127)
"""So a shell ends that was to run what is not there, or cannot be run."""


UNFINISHED_S, UNFINISHED_S_MAX = 2.0, 300.0


class Unfinished(Unavailable):
    """The build came to no end of its own, through no fault of the package's."""


class Gone(Unfinished):
    """Whatever was to build is not there any more."""


@dataclass(frozen=True, slots=True)
class Package:
    """What is to be uploaded, and where to: category/file, or category/name/file."""

    path: str
    file: Path


@dataclass(frozen=True, slots=True)
class Made:
    packages: tuple[Package, ...]
    failed: Failed | None
    took_s: float

    @property
    def outcome(self) -> Outcome:
        """As long as what was built is on its way."""
        if self.failed is None:
            return Outcome.BUILT
        return Outcome.MASKED if self.failed.masked else Outcome.FAILED


def pause_after(unfinished: int) -> float:
    """After so many builds in a row that came to no end: a builder would be given the same package,
    and be as little able to build it."""
    return min(UNFINISHED_S_MAX, UNFINISHED_S * 2.0 ** min(unfinished, 16))


def refused(cpv: str) -> Made | None:
    """Where its name stands for no single version, there is nothing to build."""
    try:
        split(cpv)
    except Invalid as refusal:
        return Made((), Failed(FailureKind.UNKNOWN, refusal.message), 0.0)
    return None


def order_of_build(
    settings: PortageSettings, cpv: str, number: int, place: Path, staging: Path, *,
    grace_s: float, log_bytes_max: int, lease: tuple[int | None, int | None],
) -> AttemptOrder:  # fmt: skip
    """As the daemon's own account, which is one that Portage builds for. The staging directory is
    made anew: call it from a worker thread."""
    remove(staging)
    prepare_staging(staging)
    argv, env = build_command(settings, cpv, staging)
    lease_ms, lease_from_ns = lease
    return AttemptOrder(
        number, str(place), argv, env=env, grace_ms=int(grace_s * 1000),
        timeout_ms=int(settings.build_timeout_s * 1000), lease_ms=lease_ms,
        lease_from_ns=lease_from_ns, log_bytes_max=log_bytes_max,
    )  # fmt: skip


def read_made(
    settings: PortageSettings, cpv: str, place: Path, staging: Path, ended: Ended
) -> Made:
    """Unfinished: it came to no end of its own. Reads files: call it from a worker thread."""
    if ended.reason not in ("exit", "timeout", "oom"):
        words = {"stopped": "it was stopped", "lease": "the builder was held up for too long"}
        raise Unfinished(ended.error or words.get(ended.reason, f"its end: {ended.reason}"))
    output = _end_of_file(place / "stdout", max(WORDS_BYTES_MAX, settings.log_bytes_max))
    if ended.exit_code in NO_PROGRAM:
        last = output[-500:].decode(errors="replace").strip()
        raise Gone(f"{settings.command[0]} cannot be run: {last}")
    found = read_outcome(settings, cpv, staging, ended.exit_code, output)
    took_s = _took_s(ended)
    if isinstance(found, Built):
        root = packages_dir(staging)
        packages = (Package(str(path.relative_to(root)), path) for path in found.packages)
        return Made(tuple(packages), None, took_s)
    if ended.reason == "timeout":
        limit_s = settings.build_timeout_s
        found = replace(found, reason=f"the build did not end within {limit_s:g} s")
    elif ended.reason == "oom":
        found = replace(found, reason="the build took more memory than there is")
    elif ended.signal is not None:
        found = replace(found, reason=f"the build was ended by signal {ended.signal}")
    return Made((), found, took_s)


def error_text(failed: Failed) -> str:
    """The reason, and what the log says last."""
    words = failed.log.decode(errors="replace").replace("\x00", "")
    left = ERROR_CHARS_MAX - len(failed.reason) - 2
    return f"{failed.reason}\n\n{words[-left:]}" if words.strip() else failed.reason


def keep_log(folder: Path, cpv: str, failed: Failed) -> Path | None:
    """The failing build's own log, beside the last ones that failed."""
    if not failed.log:
        return None
    file = folder / f"{cpv.replace('/', ':')}.log"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        file.write_bytes(failed.log)
        logs = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for old in logs[:-LOGS_MAX]:
            old.unlink()
    except OSError as error:
        log.warning("a build's log is not kept", extra={"error": error.strerror})
        return None
    return file


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _took_s(ended: Ended) -> float:
    if ended.started_boottime_ns is None or ended.ended_boottime_ns is None:
        return 0.0
    return max(0.0, (ended.ended_boottime_ns - ended.started_boottime_ns) / 1e9)


def _end_of_file(path: Path, bytes_max: int) -> bytes:
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - bytes_max))
        return file.read(bytes_max)
    return b""
