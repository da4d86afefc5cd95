"""One build by this host's Portage: the command that a runner starts, and what became of it.

A build has a staging directory of its own, so what lies there afterwards is its doing. An exit
status of 0 is believed only with a package beside it; a failure is told apart by Portage's words,
which an ebuild can print as well: they decide what users read and when to try again, never more.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from swarmd.domain.packages import Cpv, split
from swarmd.drivers.portage import PortageSettings, environment

PACKAGE_BYTES_MIN = 1024
FILES_MAX = 1000
"""Looked at below a staging directory."""
WORDS_BYTES_MAX = 256 * 1024
"""Of the output's end, searched for Portage's words."""
UNPACKED_BYTES_MAX = 256 * 1024 * 1024
REASON_CHARS_MAX = 500
SUFFIXES = (".gpkg.tar", ".tbz2", ".xpak")

BUILD = ("--buildpkgonly", "--oneshot", "--usepkg=n", "--getbinpkg=n")
PREPARE = ("--onlydeps", "--onlydeps-with-rdeps=n", "--oneshot", "--usepkg=y", "--getbinpkg=y")
QUIET = ("--ask=n", "--color=n", "--nospinner", "--quiet-build=n", "--autounmask=n")
"""Whatever EMERGE_DEFAULT_OPTS says: it asks nobody, and its log is the build's."""


class FailureKind(StrEnum):
    MASKED = "masked"
    """The package, or one it needs, is not accepted by this host."""
    UNKNOWN = "unknown"
    """The tree of this host does not have it."""
    DEPENDENCY = "dependency"
    """What it needs is not installed here, not in the tree, or failed before it."""
    USE = "use"
    """USE flags stand against each other."""
    DIGEST = "digest"
    """A source file is not what the Manifest says."""
    FETCH = "fetch"
    PHASE = "phase"
    """The ebuild itself failed."""
    DISK = "disk"
    NO_PACKAGE = "no_package"
    """It ended well, and no binary package is there."""
    ENDED = "ended"
    """By a signal, or by the runner."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Built:
    packages: tuple[Path, ...]
    """Of the package that was asked for; none only for a virtual one."""
    others: tuple[Path, ...] = ()
    """Built beside it, as options may ask for."""


@dataclass(frozen=True, slots=True)
class Failed:
    kind: FailureKind
    reason: str
    phase: str | None = None
    log: bytes = b""
    """The end of the build's own log; where it has none, of what was printed."""

    @property
    def masked(self) -> bool:
        return self.kind is FailureKind.MASKED

    @property
    def missing(self) -> bool:
        return self.kind is FailureKind.NO_PACKAGE


def build_command(
    settings: PortageSettings, cpv: str, staging: Path
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Arguments and the whole environment; both streams become one, in the order of printing.
    The account must be one that Portage builds for: root, as a rule. Invalid: no such cpv."""
    target = f"={split(cpv)}"
    common = (*QUIET, *settings.options)
    steps = [("exec", *settings.command, *common, *BUILD, target)]
    if settings.install_dependencies:
        # Their packages are the host's own, and none of this build's.
        prepare = (*settings.command, *common, *PREPARE, target)
        steps.insert(0, ("env", "-u", "PKGDIR", *prepare))
    script = "exec 2>&1; " + " && ".join(map(shlex.join, steps))
    env = environment(settings)
    env |= {
        "PKGDIR": str(packages_dir(staging)), "PORTAGE_LOGDIR": str(staging / "log"),
        "FEATURES": f"{env.get('FEATURES', '')} -clean-logs".strip(),
    }  # fmt: skip
    return ("/bin/sh", "-c", script), env


def packages_dir(staging: Path) -> Path:
    return staging / "packages"


def prepare_staging(staging: Path) -> None:
    """Made anew. Packages are for the building account alone, since what lies there will be signed
    with the swarm's key; the log is passable for the one that Portage runs ebuilds as."""
    for folder, mode in (
        (staging, 0o711), (packages_dir(staging), 0o700), (staging / "log", 0o711),
    ):  # fmt: skip
        folder.mkdir()
        folder.chmod(mode)


def read_outcome(
    settings: PortageSettings, cpv: str, staging: Path, exit_code: int | None, output: bytes
) -> Built | Failed:
    """`exit_code` is None where a signal or the runner ended it; `output` is the end of what it
    printed. Reads files: call it from a worker thread."""
    package = split(cpv)
    if exit_code == 0:
        found = list(find_packages(packages_dir(staging)))
        own = tuple(path for path in found if is_of(path, package))
        if own or package.category == "virtual":
            return Built(own, tuple(path for path in found if path not in own))
    log = build_log(staging, package, settings.log_bytes_max) or output[-settings.log_bytes_max :]
    if exit_code is None:
        return Failed(FailureKind.ENDED, f"the build of {cpv} was ended", log=log)
    words = _plain(output[-WORDS_BYTES_MAX:])
    failed = _recognize(package, words) if exit_code else None
    if failed is None and not exit_code:
        reason = f"emerge ended well, and left no package of {PACKAGE_BYTES_MIN} bytes or more"
        failed = Failed(FailureKind.NO_PACKAGE, reason)
    if failed is None:
        last = next((line for line in reversed(words.splitlines()) if line.strip()), "")
        failed = Failed(FailureKind.OTHER, f"emerge ended with {exit_code}: {last.strip()}")
    return Failed(failed.kind, failed.reason[:REASON_CHARS_MAX], failed.phase, log)


def find_packages(folder: Path) -> Iterator[Path]:
    """Regular files that are large enough and named like packages; no link is followed."""
    for path in _files(folder):
        if path.name.endswith(SUFFIXES) and path.lstat().st_size >= PACKAGE_BYTES_MIN:
            yield path


def is_of(path: Path, package: Cpv) -> bool:
    """In either layout: `cat/pkg-1.tbz2`, or with a build id `cat/pkg/pkg-1-2.gpkg.tar`."""
    stem = next((path.name.removesuffix(s) for s in SUFFIXES if path.name.endswith(s)), None)
    if stem is None:
        return False
    if path.parent.name == package.category:
        return stem == package.file_stem
    build_id = stem.removeprefix(f"{package.file_stem}-")
    folder = path.parent
    return (
        (folder.parent.name, folder.name) == (package.category, package.name)
        and stem != build_id
        and build_id.isascii()
        and build_id.isdigit()
    )


def build_log(staging: Path, package: Cpv, bytes_max: int) -> bytes:
    """The end of the newest log that Portage kept of it; empty where there is none."""
    named = (f"{package.category}:{package.file_stem}:", f"{package.file_stem}:")
    logs = [path for path in _files(staging / "log") if path.name.startswith(named)]
    for path in sorted(logs, key=lambda path: path.lstat().st_mtime_ns, reverse=True):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        with open(fd, "rb") as file:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                if path.name.endswith(".gz"):
                    return _unpacked_end(iter(lambda: file.read(65536), b""), bytes_max)
                file.seek(max(0, os.fstat(fd).st_size - bytes_max))
                return file.read(bytes_max)
    return b""


def _files(folder: Path) -> Iterator[Path]:
    seen = 0
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            seen += 1
            if seen > FILES_MAX:
                return
            path = Path(parent, name)
            if stat.S_ISREG(path.lstat().st_mode):
                yield path


def _unpacked_end(parts: Iterator[bytes], bytes_max: int) -> bytes:
    """Of a log that FEATURES=compress-build-logs wrote; a spoilt one as far as it goes."""
    unpack, end, total = zlib.decompressobj(wbits=31), bytearray(), 0
    try:
        for part in parts:
            rest = part
            while rest:
                data = unpack.decompress(rest, 1 << 20)
                rest = unpack.unconsumed_tail
                total += len(data)
                end += data
                del end[:-bytes_max]
                if total > UNPACKED_BYTES_MAX:
                    return bytes(end)
    except zlib.error:
        pass
    return bytes(end)


_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_PHASE = re.compile(r"^ ?\* ERROR: (\S+?)(?:::\S+)? failed \((\w+) phase\)", re.MULTILINE)
_COMPLAINT = re.compile(r"^(?:\S.*?: )?(?:fatal )?error: .+$|^!!! .+$", re.MULTILINE)
_WHY_DIGEST = re.compile(
    r"^!!! (?:Fetched|Previously fetched) file: '?(\S+?)'?(?: VERIFY FAILED!)?\n!!! Reason: (.+)$",
    re.MULTILINE,
)
_MANIFEST = re.compile(r"^!!! (Digest verification failed:.*|Manifest file not found.*)", re.M)
_NO_FILE = re.compile(
    r"(?:Couldn't download '|No mirrors available for file '|Fetch failed for '?)([^'\n]{1,255})"
)
_MASKED = re.compile(r'^!!! All ebuilds that could satisfy "([^"\n]+)".* have been masked', re.M)
_MASKED_BY = re.compile(r"^- (\S+) \(masked by: (.+)\)$", re.MULTILINE)
_NO_EBUILD = re.compile(r'^emerge: there are no ebuilds to satisfy "([^"\n]+)"', re.MULTILINE)
_USE = re.compile(
    r"^The following USE changes are necessary|has unmet requirements\.$"
    r"|there are no ebuilds built with USE flags to satisfy",
    re.MULTILINE,
)
_UNMET = "--buildpkgonly requires all dependencies to be merged"
_TO_MERGE = re.compile(r"^\[(?:ebuild|binary)[^\]\n]*\] (\S+)", re.MULTILINE)


def _recognize(package: Cpv, words: str) -> Failed | None:
    """The disk first, since everything fails on a full one; then what happens last in a build."""
    if "No space left on device" in words:
        return Failed(FailureKind.DISK, "no space left on the builder's disk")
    if match := _last(_PHASE, words):
        return _in_phase(package, match, words)
    if match := _last(_WHY_DIGEST, words):
        return Failed(FailureKind.DIGEST, f"source file {match[1]} is spoilt: {match[2]}")
    if match := _last(_MANIFEST, words):
        return Failed(FailureKind.DIGEST, match[1])
    if match := _last(_NO_FILE, words):
        return Failed(FailureKind.FETCH, f"source file {match[1]} cannot be fetched")
    if match := _last(_MASKED, words):
        by = "; ".join(f"{name} by {why}" for name, why in _MASKED_BY.findall(words)[:5])
        return Failed(FailureKind.MASKED, f"{match[1]} is masked on the builder: {by}")
    if match := _last(_NO_EBUILD, words):
        if match[1] == f"={package}":
            return Failed(FailureKind.UNKNOWN, f"the builder's tree does not have {package}")
        return Failed(FailureKind.DEPENDENCY, f"it needs {match[1]}, which the tree does not have")
    if match := _last(_USE, words):
        lines = words[match.start() :].splitlines()
        return Failed(FailureKind.USE, " ".join(filter(None, map(str.strip, lines[:8]))))
    if _UNMET in words:
        needs = [name for name in _TO_MERGE.findall(words) if name != str(package)]
        listed = ", ".join(needs[:10]) or "something that it does not name"
        return Failed(FailureKind.DEPENDENCY, f"the builder has to have {listed} installed first")
    return None


def _in_phase(package: Cpv, match: re.Match[str], words: str) -> Failed:
    which, phase = match.groups()
    said = _last(_COMPLAINT, words[: _first(_PHASE, words)])
    reason = f"failed in its {phase} phase" + (f": {said[0].lstrip('! ')}" if said else "")
    if which != str(package):
        return Failed(FailureKind.DEPENDENCY, f"{which}, which it needs, {reason}", phase)
    return Failed(FailureKind.PHASE, reason, phase)


def _last(pattern: re.Pattern[str], words: str) -> re.Match[str] | None:
    found = None
    for found in pattern.finditer(words):  # noqa: B007 - the last one is wanted
        pass
    return found


def _first(pattern: re.Pattern[str], words: str) -> int:
    match = pattern.search(words)
    return match.start() if match else len(words)


def _plain(output: bytes) -> str:
    return _COLOUR.sub("", output.decode(errors="replace").replace("\r\n", "\n"))
