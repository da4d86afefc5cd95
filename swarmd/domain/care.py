"""Care: what is done for builders that fail, step by step, up a ladder and never two at once.

A level of the ladder is reached only when what it stands for was done; a builder that is well is at
its foot. What the swarm has agreed on about it is here; how a builder is just now is in the
leader's memory.
"""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from swarmd.domain.builds import HostSort
from swarmd.domain.errors import Invalid
from swarmd.domain.jobs import NodeId
from swarmd.domain.probes import ProbeStatus

PROBE_EVERY_S = 30.0
FAILURES_MIN = 3
"""In a row, before anything is done."""
FAILING_MS_MIN = 180_000
"""And so long."""
HEARD_MS = 120_000
"""Who gave a sign of life within that is there, whatever a probe could not reach."""
ACT_MS_MAX = 90_000
"""An action that is not over by then has failed; nobody else is cared for meanwhile."""
TRIES_MAX = 3
"""So often an action may fail before people are called."""
ALERT = 4
DETAIL_CHARS_MAX = 1000
SERVICE_CHARS_MAX = 128
_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9@:._-]{0,127}")

HEALTHY = frozenset({ProbeStatus.OK, ProbeStatus.DISK_WARNING})
"""Such a probe brings a builder back to the foot of the ladder."""


class CareAction(StrEnum):
    """In the order of the ladder."""

    RESTART = "restart"
    """The service."""
    KILL_START = "kill and start"
    """The service."""
    REBOOT = "reboot"
    ALERT = "alert"
    """People have to look after it."""

    @property
    def level(self) -> int:
        return LADDER.index(self) + 1

    @property
    def loses_builds(self) -> bool:
        """What the builder holds has to be given back before: of a restart, too, not every builder
        gives back by itself what it was at."""
        return self is not CareAction.ALERT


LADDER = tuple(CareAction)
PAUSES_MS = {
    CareAction.RESTART: 30_000, CareAction.KILL_START: 30_000, CareAction.REBOOT: 120_000,
    CareAction.ALERT: 0,
}  # fmt: skip
"""After each, before the next is thought of."""


class Care(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was done for a builder since it was last well, as the swarm has agreed on it."""

    node_id: NodeId
    level: int = 0
    level_at: int | None = None
    """When it last rose."""
    attempts: int = 0
    """Of actions, whatever became of them."""
    failed_tries: int = 0
    """In a row."""
    failing_since: int | None = None
    action: CareAction | None = None
    """The last one."""
    rises: bool = False
    """It is a step of the ladder."""
    begun_at: int | None = None
    ended_at: int | None = None
    """None while it is under way."""
    ok: bool = False
    detail: str = ""
    grounded_until: int | None = None
    """The grounding that was seen to."""
    revision: int = 0

    @property
    def under_way(self) -> bool:
        return self.begun_at is not None and self.ended_at is None

    def pauses(self, at: int) -> bool:
        """Something is under way, or was done so lately that it is to be seen what comes of it."""
        if self.action is None or self.begun_at is None:
            return False
        if self.ended_at is None:
            return True
        return at < self.ended_at + PAUSES_MS[self.action]


def may_reboot(sort: HostSort, auto_reboot: bool) -> bool:
    return auto_reboot and sort.may_reboot


def next_action(care: Care, sort: HostSort, auto_reboot: bool) -> CareAction | None:
    """The next step up: what may not be done is passed over, what keeps failing too. None: people
    were called already."""
    if care.level >= ALERT:
        return None
    if care.failed_tries >= TRIES_MAX:
        return CareAction.ALERT
    action = LADDER[care.level]
    if action is CareAction.REBOOT and not may_reboot(sort, auto_reboot):
        return CareAction.ALERT
    return action


# What is said to a host


def action_text(action: CareAction, service: str, *, from_within: bool = False) -> str:
    """One line for a POSIX shell on Linux, which says by its exit code whether it was done; what
    ends its own caller is only begun. `from_within`: the caller is the service itself. Refused with
    Invalid."""
    if not _SERVICE.fullmatch(service):
        raise Invalid("service must be the name of a service", field="service")
    if action is CareAction.REBOOT:
        return f"{_PATH}; command -v reboot >/dev/null || exit 64; {_later('reboot')}"
    if action is CareAction.ALERT:
        raise Invalid("an alert is for people, not for a host", field="action")
    done = {CareAction.RESTART: _restart, CareAction.KILL_START: _kill_start}[action]
    systemd, openrc = done(service)
    if from_within:
        systemd, openrc = _later(systemd), _later(openrc)
    there = f"[ -x /etc/init.d/{service} ] || rc-service -e {service} >/dev/null 2>&1"
    none = f"echo 'no service {service} here' >&2; exit 64"
    return (
        f"{_PATH}; if [ -d /run/systemd/system ]; then"
        f" systemctl cat {service} >/dev/null 2>&1 || {{ {none}; }}; {systemd};"
        f" elif command -v rc-service >/dev/null; then {there} || {{ {none}; }}; {openrc};"
        " else echo 'neither systemd nor OpenRC runs here' >&2; exit 64; fi"
    )


_PATH = "LC_ALL=C; PATH=$PATH:/usr/sbin:/sbin:/usr/bin:/bin; export LC_ALL PATH"
# What comes of it is not waited for: the connection, or the caller, may not live to hear of it.
_LATER_S = 2


def _later(text: str) -> str:
    quoted = text.replace("'", "'\\''")
    return (
        "s=; command -v setsid >/dev/null && s=setsid;"
        f" $s sh -c 'sleep {_LATER_S}; {quoted}' </dev/null >/dev/null 2>&1 & :"
    )


def _restart(service: str) -> tuple[str, str]:
    return f"systemctl restart {service}", f"rc-service {service} restart"


def _kill_start(service: str) -> tuple[str, str]:
    """Whatever state it is in; of OpenRC's, all that is in its cgroup or named by its pidfile, but
    for this shell, which is there too where the service itself has begun it. What of systemd's is
    killed so comes back by its unit's Restart=."""
    systemd = (
        f"systemctl kill --signal=SIGKILL {service}; systemctl reset-failed {service};"
        f" systemctl start {service}"
    )
    groups = " ".join(
        f"/sys/fs/cgroup/{folder}{service}/cgroup.procs"
        for folder in ("openrc.", "openrc/", "openrc/openrc.")
    )
    kill = "case $p in ''|0|1|$$|*[!0-9]*) ;; *) kill -9 $p 2>/dev/null;; esac"
    openrc = (
        f"for f in {groups} /run/{service}.pid /run/{service}/{service}.pid; do"
        f' [ -r "$f" ] && for p in $(head -n 1000 "$f"); do {kill}; done; done;'
        f" rc-service {service} zap; rc-service {service} start"
    )
    return systemd, openrc
