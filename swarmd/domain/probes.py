"""Probes: how a host is, told by one line that any POSIX shell runs. What a host says about itself
is taken whole and in its bounds, or not at all."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from swarmd.domain.errors import Invalid

PATHS_MAX = 16
PATH_CHARS_MAX = 1024
PROBE_BYTES_MAX = 16 * 1024
"""Of what a host answers."""
OVERLOADED_ABOVE = 50.0
DISK_WARNING_ABOVE_PERCENT = 90
DISK_CRITICAL_ABOVE_PERCENT = 95
MEMORY_CRITICAL_ABOVE_PERCENT = 95
_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9@:._-]{0,127}")
_BEGIN, _END = "swarmd-probe 1", "swarmd-probe end"
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")
_WHOLE = re.compile(r"[0-9]{1,6}")
_RUNS_EMERGE = (
    # After the head of each: the interpreter, its options, some with a word of their own, and the
    # script. Behind -c and -m there is none.
    "/^==> .* <==$/ {s=1; next} s==1 || s==3 {s=2; next} s==2 && /^-[WX]$/ {s=3; next}"
    " s==2 && /^-[WX]/ {next} s==2 && /^-[A-Za-z]*[cm]/ {s=0} s==2 && /^-/ {next}"
    " s==2 {s=0; if (/^(.*\\/)?(emerge|ebuild)$/) f=1} END {exit !f}"
)
"""For awk, of arguments line by line."""


class ServiceState(StrEnum):
    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"
    """None was asked for, or the host has no way to tell."""


class ProbeStatus(StrEnum):
    OK = "ok"
    SERVICE_DOWN = "service_down"
    OVERLOADED = "overloaded"
    DISK_WARNING = "disk_warning"
    DISK_CRITICAL = "disk_critical"
    MEMORY_CRITICAL = "memory_critical"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    ERROR = "error"


class Probed(msgspec.Struct, frozen=True):
    """A host, as it was when it was asked."""

    load: float
    """Over the last minute."""
    cores: int
    disk_percent: tuple[int | None, ...]
    """Used, for each path that was asked for; None where there is no such path or disk."""
    memory_percent: int
    """Not available to a new process."""
    service: ServiceState
    emerge_running: bool
    uptime_s: float

    @property
    def fullest_disk_percent(self) -> int:
        return max((each for each in self.disk_percent if each is not None), default=0)

    @property
    def status(self) -> ProbeStatus:
        """The worst of what it says; where the service is down, that is it."""
        if self.service is ServiceState.DOWN:
            return ProbeStatus.SERVICE_DOWN
        if self.fullest_disk_percent > DISK_CRITICAL_ABOVE_PERCENT:
            return ProbeStatus.DISK_CRITICAL
        if self.memory_percent > MEMORY_CRITICAL_ABOVE_PERCENT:
            return ProbeStatus.MEMORY_CRITICAL
        if self.load > OVERLOADED_ABOVE:
            return ProbeStatus.OVERLOADED
        if self.fullest_disk_percent > DISK_WARNING_ABOVE_PERCENT:
            return ProbeStatus.DISK_WARNING
        return ProbeStatus.OK


def probe_command(
    service: str | None = None, *, pidfile: str | None = None, paths: Sequence[str] = ("/",)
) -> str:
    """One line for a POSIX shell on Linux. The service is asked for at its pidfile, where one is
    given, else at systemd or OpenRC, whichever runs there. Refused with Invalid."""
    if service is not None and not _SERVICE.fullmatch(service):
        raise Invalid("service must be the name of a service", field="service")
    if not 0 < len(paths) <= PATHS_MAX:
        raise Invalid(f"a probe looks at 1 to {PATHS_MAX} paths", field="paths")
    asked = " ".join(_path(each, "paths") for each in paths)
    return "; ".join([
        "LC_ALL=C; export LC_ALL; exec 2>/dev/null",
        f"echo {_BEGIN}",
        "read -r a b </proc/loadavg; echo load $a",
        'echo cores "$(getconf _NPROCESSORS_ONLN || grep -c ^processor /proc/cpuinfo)"',
        # The first word that ends in % is the share: a name further on may have anything in it.
        f"for p in {asked}; do u=; for w in $(df -P -- \"$p\" | tail -n 1); do"
        ' case $w in [0-9]*%) u=${w%?}; break;; esac; done; echo disk "$u"; done',
        "t=0; m=0; while read -r k v b; do case $k in MemTotal:) t=$v;; MemAvailable:) m=$v;; esac;"
        ' done </proc/meminfo; [ "$t" -gt 0 ] && echo memory $(((t-m)*100/t))',
        _service_text(service, pidfile),
        _emerge_text(),
        "read -r a b </proc/uptime; echo uptime $a",
        f"echo {_END}",
    ])  # fmt: skip


def read_probe(stdout: bytes) -> Probed:
    """What the line printed. Refused with Invalid: it says something else, or not all of it."""
    if len(stdout) > PROBE_BYTES_MAX:
        raise Invalid(f"the probe said more than {PROBE_BYTES_MAX} bytes")
    try:
        lines = stdout.decode("ascii").split("\n")
        begin = lines.index(_BEGIN)  # a host's start-up files may print something before
        end = lines.index(_END, begin)
    except ValueError:
        raise Invalid("the probe did not come to its end on that host") from None
    said: dict[str, list[str]] = {}
    for line in lines[begin + 1 : end]:
        key, _, value = line.partition(" ")
        said.setdefault(key, []).append(value)
    disks = said.pop("disk", [])
    if not 0 < len(disks) <= PATHS_MAX or not any(disks):
        raise Invalid("the probe says nothing of the disks")
    wanted = {"load", "cores", "memory", "service", "emerge", "uptime"}
    if said.keys() != wanted or any(len(values) != 1 for values in said.values()):
        missing = ", ".join(sorted(wanted - said.keys())) or "nothing"
        raise Invalid(f"the probe is not of the form that was asked for; missing: {missing}")
    return Probed(
        load=_number("load", said["load"][0]),
        cores=_whole("cores", said["cores"][0], 100_000),
        disk_percent=tuple(_whole("disk", value, 100) if value else None for value in disks),
        memory_percent=_whole("memory", said["memory"][0], 100),
        service=_service("service", said["service"][0]),
        emerge_running=_whole("emerge", said["emerge"][0], 1) == 1,
        uptime_s=_number("uptime", said["uptime"][0]),
    )


def _service_text(service: str | None, pidfile: str | None) -> str:
    if pidfile is not None:
        there = _path(pidfile, "pidfile")
        ask = f"i=; read -r i <{there}; case $i in *[!0-9]*|'') false;; *) [ -d /proc/$i ];; esac"
        return f"s=down; {ask} && s=up; echo service $s"
    if service is None:
        return "echo service unknown"
    return (
        "s=unknown; if [ -d /run/systemd/system ]; then s=down;"
        f" systemctl is-active --quiet {service} && s=up;"
        " elif command -v rc-service >/dev/null; then s=down;"
        f" rc-service {service} status >/dev/null && s=up; fi; echo service $s"
    )


def _emerge_text() -> str:
    """A Portage that an interpreter was told to run has that one's name: what it runs is asked of
    all of them at once. Of others' processes only root's are: to read the arguments of one that
    somebody has laid on a file system of his own could take for ever."""
    return (
        "e=0; l=; o=$(id -u); for p in /proc/[0-9]*; do c=; read -r c <$p/comm; case $c in"
        " emerge|ebuild|ebuild.sh) e=1;;"
        " python*|pypy*) u=; while read -r k v b; do case $k in Uid:) u=$v; break;; esac; done"
        ' <$p/status; case $u in 0|"$o") l="$l $p/cmdline";; esac;;'
        ' esac; done; [ $e = 0 ] && [ -n "$l" ] &&'
        f" head -n 1 /dev/null $l | tr '\\000' '\\n' | awk '{_RUNS_EMERGE}' && e=1; echo emerge $e"
    )


def _path(path: str, field: str) -> str:
    if not path.startswith("/") or len(path) > PATH_CHARS_MAX or not path.isprintable():
        raise Invalid(f"{field}: {path[:100]!r} is no absolute path", field=field)
    return shlex.quote(path)


def _number(key: str, text: str) -> float:
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise _odd(key)
    return float(text)


def _whole(key: str, text: str, at_most: int) -> int:
    if not _WHOLE.fullmatch(text) or int(text) > at_most:
        raise _odd(key)
    return int(text)


def _service(key: str, text: str) -> ServiceState:
    try:
        return ServiceState(text)
    except ValueError:
        raise _odd(key) from None


def _odd(key: str) -> Invalid:
    return Invalid(f"the probe says something of {key} that cannot be", field=key)
