"""`submit`: a command becomes a job; a local file goes along as a blob.

With --wait or --follow the exit status is the job's own, and 125 for everything that is ours.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import click

from swarmd.cli import options, show
from swarmd.cli.client import Daemon, Refused, find_daemon, job_path
from swarmd.cli.jobs import EXIT_NO_STATUS, STREAMS, copy_logs, exit_status, find_file
from swarmd.cli.main import EXIT_INTERRUPTED, EXIT_REFUSED, tell
from swarmd.domain.errors import Invalid

WAIT_S = 30
HASH_CHUNK_BYTES = 1024 * 1024
PRIORITIES = ("foreground", "background", "best_effort")


def _priority(text: str) -> str | int:
    if text in PRIORITIES:
        return text
    if re.fullmatch(r"-?\d{1,9}", text):
        return int(text)
    raise Invalid(f"{text[:40]!r} is no priority; write {', '.join(PRIORITIES)} or a whole number")


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name:
        raise Invalid("write NAME=VALUE, or NAME to pass on your own")
    if not equals and name not in os.environ:
        raise Invalid(f"{name[:80]} is not set here; write {name[:80]}=VALUE")
    return name, value if equals else os.environ[name]


@click.command(
    "submit",
    # Whatever follows the command is the command's own, options too.
    context_settings={"allow_interspersed_args": False},
)
@click.option("--wait", is_flag=True, help="Until it has ended; exit with its exit status.")
@click.option("--follow", is_flag=True, help="--wait, and show what it writes as it comes.")
@click.option("--name", "--type", "type_", metavar="T",
              help="The job's type; the command's name where none is given.")  # fmt: skip
@click.option("--priority", type=options.Read("priority", _priority), default="background",
              show_default=True, metavar="P", help=f"{', '.join(PRIORITIES)} or a number."
              )  # fmt: skip
@click.option(
    "--timeout", type=options.DURATION, metavar="T", help="End it after so long: 30s, 2h."
)
@click.option("--disconnect", type=options.DURATION, metavar="T",
              help="Let it run on, and wait, so long while its node is cut off.")  # fmt: skip
@click.option("--retries", type=click.IntRange(0, 100), default=0, help="Try so often again.")
@click.option("--cpus", type=click.FloatRange(0, min_open=True), help="CPUs to have, and no more.")
@click.option("--memory", type=options.SIZE, metavar="SIZE", help="Memory to have: 512MiB, 2GB.")
@click.option("--gpus", type=click.IntRange(0), default=0, help="GPUs to have for itself.")
@click.option("--pids", type=click.IntRange(1), help="Processes it may have at once.")
@click.option("--env", "env", multiple=True, type=options.Read("variable", _variable),
              metavar="K[=V]", help="A variable for it; K alone passes yours on. Repeatable."
              )  # fmt: skip
@click.option("--constraint", "constraints", multiple=True, metavar="C",
              help="Only where it holds: node.labels.disk==ssd, node.name!=a. Repeatable."
              )  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Repeatable.")
@click.option("--after", "depends_on", multiple=True, metavar="JOB",
              help="Only once that job has completed. Repeatable.")  # fmt: skip
@click.option("--idempotency-key", metavar="K", help="The same key twice is one job.")
@click.option("--installed", is_flag=True, help="CMD is a program that the nodes have.")
@options.as_json
@options.data_dir
@click.argument("command", nargs=-1, required=True, metavar="-- CMD [ARG]...")
def submit(
    wait: bool, follow: bool, as_json: bool, data_dir: Path | None, command: tuple[str, ...],
    **wanted: Any,
) -> int:  # fmt: skip
    """Run a command somewhere in the swarm; its job's id goes to stdout.

    A local file is uploaded and runs on whatever node takes it; a command found on PATH runs as
    the program that the node has. With --wait the exit status is the job's own: 128+N after
    signal N, 125 where it has none (cancelled, timed out, never started) or swarmd failed.
    """
    try:
        daemon = find_daemon(data_dir)
        job = daemon.post("/api/v1/jobs", _order(daemon, command, wanted))
        if not (wait or follow):
            if as_json:
                show.emit_json(job)
            else:
                click.echo(job["id"])
            return 0
        return _see_through(daemon, job, follow=follow, as_json=as_json)
    except (Refused, Invalid) as problem:
        tell(f"error: {problem.message}")
        return EXIT_NO_STATUS if wait or follow else EXIT_REFUSED


def _order(daemon: Daemon, command: tuple[str, ...], wanted: dict[str, Any]) -> dict[str, Any]:
    program, *arguments = command
    file = None if wanted["installed"] else local_file(program)
    default_type = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(program).name).strip("-")[:128]
    order: dict[str, Any] = {
        "type": wanted["type_"] or default_type or "job",
        "arguments": arguments,
        "env": dict(wanted["env"]),
        "priority": wanted["priority"],
        "max_retries": wanted["retries"],
        "constraints": list(wanted["constraints"]),
        "depends_on": list(wanted["depends_on"]),
        "labels": dict(_label(text) for text in wanted["labels"]),
        "resources": {
            name: value
            for name, value in (
                ("cpus", wanted["cpus"]), ("memory_bytes", wanted["memory"]),
                ("gpus", wanted["gpus"] or None), ("pids", wanted["pids"]),
            )
            if value is not None
        },
    }  # fmt: skip
    if wanted["timeout"] is not None:
        order["timeout_seconds"] = wanted["timeout"]
    if wanted["disconnect"] is not None:
        order["disconnect_seconds"] = wanted["disconnect"]
    if wanted["idempotency_key"]:
        order["idempotency_key"] = wanted["idempotency_key"]
    # The upload last: what is refused for its words alone costs no upload.
    return order | ({"program": program} if file is None else {"binary": _upload(daemon, file)})


def local_file(program: str) -> Path | None:
    """The file that goes along, None where the node has the program."""
    path = Path(program)
    if "/" in program:
        if not path.exists():
            raise Refused(f"there is no file {program}; say --installed if the nodes have it")
        return path
    if shutil.which(program):
        return None
    if path.is_file() and os.access(path, os.X_OK):
        return path
    raise Refused(
        f"{program} is neither on PATH nor a file here that can be run;"
        " say --installed if the nodes have it"
    )


def _upload(daemon: Daemon, path: Path) -> dict[str, str]:
    file, size_bytes = find_file(path)
    with file:
        hashed = hashlib.sha256()
        while chunk := file.read(HASH_CHUNK_BYTES):
            hashed.update(chunk)
        sha256 = hashed.hexdigest()
        file.seek(0)
        stored = daemon.upload("/api/v1/blobs", file, size_bytes, sha256)["sha256"]
    return {"url": f"blob:sha256:{stored}", "sha256": stored}


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise Refused(f"--label {text[:80]!r}: write NAME=VALUE")
    return name, value


def _see_through(daemon: Daemon, job: dict[str, Any], *, follow: bool, as_json: bool) -> int:
    job_id = job["id"]
    try:
        if follow and not as_json:
            copy_logs(daemon, job_id, STREAMS, follow=True)
        while job.get("status") not in ("completed", "failed", "cancelled"):
            job = daemon.get(job_path(job_id, "wait"), {"timeout_s": WAIT_S}, WAIT_S + 15)
    except KeyboardInterrupt:
        tell(f"\njob {job_id} goes on; `swarmd cancel {job_id}` ends it")
        return EXIT_INTERRUPTED
    if as_json:
        show.emit_json(job)
    elif not follow:
        click.echo(job.get("stdout") or "", nl=False)
        click.echo(job.get("stderr") or "", nl=False, err=True)
    _tell_end(job)
    return exit_status(job)


def _tell_end(job: dict[str, Any]) -> None:
    for note in job.get("notes") or []:
        tell(f"note: {show.printable(note)}")
    if job.get("status") != "completed":
        why = job.get("error") or f"exit status {job.get('exit_code')}"
        tell(f"job {job['id']} {job.get('status')}: {show.printable(why)}")
