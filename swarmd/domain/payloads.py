"""Payloads: files that builders have from the swarm, in versions. A version is never changed, and
what lies on a builder is what was last seen there, or put there and verified."""

from __future__ import annotations

import re
import shlex
from enum import StrEnum

import msgspec

from swarmd.domain.actors import Actor
from swarmd.domain.errors import Conflict, Invalid
from swarmd.domain.jobs import NodeId

VERSION_CHARS_MAX = 64
NOTE_CHARS_MAX = 2000
ERROR_CHARS_MAX = 2000
PERSON_CHARS_MAX = 128
VERSIONS_MAX = 500
"""Of one sort."""
DEPLOYMENTS_MAX = 20_000
"""In the log; the oldest go."""
HOLDS_MAX = 1000
HOLD_MS_MAX = 10 * 60_000
ROLLED_MAX = 1000
"""Builders of one roll."""
ROLL_MS_MAX = 24 * 3600_000
TAKES_MAX = 8
"""By so many other nodes a roll is gone on with, one after the other."""
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~\-]{0,63}")
_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@\-]{0,63}")


class PayloadSort(StrEnum):
    BINARY = "binary"
    """The builder's program."""
    INIT_SCRIPT = "init_script"
    CONFIG = "config"
    PORTAGE_CONFIG = "portage_config"

    @property
    def restarts(self) -> bool:
        """It takes effect when the service is started again."""
        return self in (PayloadSort.BINARY, PayloadSort.INIT_SCRIPT)


class Payload(msgspec.Struct, frozen=True, omit_defaults=True):
    """One version of a sort; its bytes are a blob."""

    sort: PayloadSort
    version: str
    sha256: str
    size_bytes: int
    description: str = ""
    notes: str = ""
    created_by: str = ""
    created_at: int = 0
    id: int = 0
    """The higher, the newer."""


class PlaceStatus(StrEnum):
    DEPLOYING = "deploying"
    """It was begun, and its end is not known."""
    DEPLOYED = "deployed"
    FAILED = "failed"
    """The last deployment failed; the version is what lies there all the same."""
    CHANGED = "changed"
    """Something else lies there than what was put there."""


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """What lies on a builder of one sort, as last seen."""

    node_id: NodeId
    sort: PayloadSort
    status: PlaceStatus
    version: str | None = None
    """None: nothing of ours."""
    sha256: str | None = None
    at: int = 0


class Step(StrEnum):
    BEGIN = "begin"
    DEPLOY = "deploy"
    RESTART = "restart"
    HEALTH = "health"
    ROLLBACK = "rollback"
    VERIFY = "verify"


class Deployment(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of a deployment that ended so."""

    node_id: NodeId
    node_name: str
    sort: PayloadSort
    version: str
    step: Step
    ok: bool
    duration_ms: int = 0
    error: str | None = None
    by: str = ""
    via: str = ""
    """The node that did it."""
    at: int = 0
    id: int = 0


class Roll(msgspec.Struct, frozen=True, omit_defaults=True):
    """That a version is to go to builders, one after the other: what was asked for. Whichever node
    is at it, the swarm goes by this."""

    id: str
    sort: PayloadSort
    version: str
    node_ids: tuple[NodeId, ...]
    """In the order of their turns."""
    health_check: bool = True
    rollback_on_fail: bool = True
    by: str = ""
    actor: Actor | None = None
    begun_at: int = 0


class Before(msgspec.Struct, frozen=True):
    """What lay on a builder when its turn began."""

    sha256: str | None
    """None: nothing."""
    version: str | None


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a roll has come."""

    turn: int = 0
    """Whose turn it is: those before had theirs, and are done with."""
    before: Before | None = None
    """None: the turn did not begin."""
    undoing: str = ""
    """Why it gets back what it had before; empty: it does not."""
    failed: int = 0
    """Of those that had their turn."""


class Rolling(msgspec.Struct, frozen=True, omit_defaults=True):
    """A roll that did not end yet."""

    roll: Roll
    progress: Progress = Progress()
    takes: int = 0
    """How often another node took it over."""
    held_until: int = 0
    """By whoever deploys the sort, to all or to one; 0: nobody does."""


def check_version(version: str) -> str:
    if not _VERSION.fullmatch(version):
        raise Invalid(
            f"version must be up to {VERSION_CHARS_MAX} letters, digits and . _ + ~ -, such as"
            " 0.4.0",
            field="version",
        )
    return version


def check_room(versions: int) -> None:
    """Conflict: no more versions of a sort than these."""
    if versions >= VERSIONS_MAX:
        raise Conflict(f"there are {versions} versions of it; forget some that nobody has first")


def restart_command(service: str) -> str:
    """A line for a POSIX shell that starts a service again, by OpenRC, systemd or its script."""
    if not _SERVICE.fullmatch(service):
        raise Invalid("service must be the name of a service", field="service")
    name = shlex.quote(service)
    return (
        f"if command -v rc-service >/dev/null 2>&1; then rc-service {name} restart;"
        f" elif [ -d /run/systemd/system ]; then systemctl restart {name};"
        f" elif [ -x /etc/init.d/{name} ]; then /etc/init.d/{name} restart;"
        f" else echo no service manager is known here >&2; exit 127; fi"
    )


def syslog_command(lines: int, bytes_max: int) -> str:
    """The last lines of what a host logs, wherever it does; of much, the end."""
    assert lines > 0 and bytes_max > 0
    cut = f"tail -c {bytes_max}"
    return (
        "if command -v journalctl >/dev/null 2>&1 && journalctl -q -n 1 2>/dev/null | grep -q .;"
        f" then journalctl -q --no-pager -o short -n {lines} | {cut}; else"
        " for f in /var/log/messages /var/log/syslog; do if [ -r $f ];"
        f" then tail -n {lines} $f | {cut}; exit; fi; done;"
        " echo there is no log that this account may read >&2; exit 66; fi"
    )
