"""From a duty to an order: what the runner is told for a job, and what becomes of its end."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from swarmd.domain.errors import Invalid
from swarmd.domain.jobs import AttemptStatus, Fetch, JobSpec
from swarmd.drivers.frames import AttemptOrder, Ended
from swarmd.state.queries import Duty

JOB_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_ACCOUNT = "nobody"


@dataclass(frozen=True, slots=True)
class Account:
    """The account that jobs run as; ids are None where it is the daemon's own."""

    name: str
    uid: int | None = None
    gid: int | None = None


def find_account(user: str | None) -> Account:
    """As root an unprivileged account, unless the configuration names another. Invalid: there is
    no such account, or a daemon that is not root was told to use another than its own."""
    own = os.geteuid()
    if own == 0:
        try:
            entry = pwd.getpwnam(user or DEFAULT_ACCOUNT)
        except KeyError:
            raise Invalid(
                f"there is no account {user or DEFAULT_ACCOUNT!r} to run jobs as; set jobs.user or"
                " SWARMD_JOBS_USER to one that exists",
                field="jobs.user",
            ) from None
        if entry.pw_uid == 0:
            return Account(entry.pw_name)
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    if user is not None and user not in _own_names(own):
        raise Invalid(
            f"only root can run jobs as {user!r}; start swarmd as root, or leave jobs.user out",
            field="jobs.user",
        )
    return Account(user or str(own))


def _own_names(uid: int) -> tuple[str, ...]:
    try:
        return (pwd.getpwuid(uid).pw_name, str(uid))
    except KeyError:
        return (str(uid),)


def reachable(directory: Path, account: Account) -> bool:
    """Whether the account can pass through all of the path."""
    if account.uid is None:
        return True
    for part in (directory, *directory.parents):
        facts = part.stat()
        bit = 0o001
        if facts.st_uid == account.uid:
            bit = 0o100
        elif facts.st_gid == account.gid:
            bit = 0o010
        if not facts.st_mode & bit:
            return False
    return True


def order_of(
    duty: Duty, program: str, directory: Path, account: Account, *, grace_s: float,
    log_bytes_max: int, reuse: Path | None, lease: tuple[int | None, int | None],
) -> AttemptOrder:  # fmt: skip
    """The environment is the job's alone, plus PATH, HOME and the devices it was granted."""
    spec, attempt = duty.spec, duty.attempt
    env = {"PATH": JOB_PATH, "HOME": f"{directory}/work", **spec.env}
    if spec.resources.gpus:
        numbers = (device.rpartition("gpu")[2] for device in attempt.devices)
        env["CUDA_VISIBLE_DEVICES"] = ",".join(numbers)
    need = spec.resources
    lease_ms, lease_from_ns = lease
    return AttemptOrder(
        id=attempt.id,
        dir=str(directory),
        reuse=None if reuse is None else str(reuse),
        argv=(program, *spec.arguments),
        env=env,
        uid=account.uid,
        gid=account.gid,
        timeout_ms=None if spec.timeout_s is None else max(1, int(spec.timeout_s * 1000)),
        grace_ms=int(grace_s * 1000),
        memory_bytes=need.memory_bytes,
        cpus=need.cpus,
        pids=need.pids,
        lease_ms=lease_ms,
        lease_from_ns=lease_from_ns,
        log_bytes_max=log_bytes_max,
    )


def find_program(spec: JobSpec, path: str) -> str:
    """Where an installed program is: looked up on the job's own PATH. Invalid: nowhere."""
    assert not isinstance(spec.source, Fetch)
    program = spec.source.program
    if "/" in program:
        return program
    for folder in path.split(":"):
        candidate = Path(folder) / program
        if folder.startswith("/") and os.access(candidate, os.X_OK) and candidate.is_file():
            return str(candidate)
    raise Invalid(f"failed to start: no program {program!r} on PATH {path}", program=program)


def status_of(ended: Ended) -> AttemptStatus:
    match ended.reason:
        case "exit" if ended.exit_code == 0:
            return AttemptStatus.COMPLETED
        case "lost" | "lease":
            return AttemptStatus.LOST
        case "stopped":
            return AttemptStatus.REVOKED  # by the node, which went down: the job is not to blame
        case _:
            return AttemptStatus.FAILED


def error_of(ended: Ended, spec: JobSpec) -> str | None:
    match ended.reason:
        case "timeout":
            # A package's limit is its builder's, and stands in the verdict on it.
            return "timed out" + (f" after {spec.timeout_s:g} s" if spec.timeout_s else "")
        case "oom":
            size = spec.resources.memory_bytes
            return "out of memory" + (f": it used all of its {size} bytes" if size else "")
        case "lease":
            return "its lease ran out"
        case "stopped":
            return "stopped"
        case "lost":
            return ended.error or "the runner lost it"
        case "start_failed":
            return ended.error or "failed to start"
    if ended.signal:
        return f"killed by signal {ended.signal}"
    return None if ended.exit_code == 0 else f"exit code {ended.exit_code}"
