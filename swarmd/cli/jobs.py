"""Jobs that are there already: list them, read what they wrote, end them, ask why they wait."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from swarmd.cli import options, show
from swarmd.cli.client import Daemon, Refused, find_daemon, job_path

STATUSES = ("pending", "assigned", "running", "completed", "failed", "cancelled")
STREAMS = ("stdout", "stderr")
EXIT_NO_STATUS = 125
job_id = click.argument("job_id", metavar="JOB")


@click.command("jobs")
@click.option(
    "--status", "statuses", multiple=True, type=click.Choice(STATUSES), help="Repeatable."
)
@click.option("--type", "type_", metavar="T", help="Only of this type.")
@click.option("--kind", metavar="K", help="Only of this kind, such as binary.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--offset", type=click.IntRange(0), default=0, help="Leave out so many first.")
@options.as_json
@options.data_dir
def jobs(
    statuses: tuple[str, ...],
    type_: str | None,
    kind: str | None,
    limit: int,
    offset: int,
    as_json: bool,
    data_dir: Path | None,
) -> None:
    """Jobs, the newest first."""
    seen = find_daemon(data_dir).get(
        "/api/v1/jobs",
        {"status": statuses, "type": type_, "kind": kind, "limit": limit, "offset": offset},
    )
    if as_json:
        show.emit_json(seen)
        return
    show.emit_table(
        ["JOB", "TYPE", "STATUS", "PRIORITY", "NODE", "EXIT", "TOOK", "CREATED"],
        [
            [j["id"], j.get("type"), j.get("status"), j.get("priority"), j.get("node"),
             j.get("exit_code"), show.span(j.get("duration_ms")),
             f"{show.ago(j.get('created_at'))} ago"]
            for j in seen.get("jobs", [])
        ],
    )  # fmt: skip


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@click.option("--stream", type=click.Choice([*STREAMS, "both"]), default="both", show_default=True)
@options.as_json
@options.data_dir
@job_id
def logs(follow: bool, stream: str, as_json: bool, data_dir: Path | None, job_id: str) -> None:
    """What a job wrote: its stdout on stdout, its stderr on stderr."""
    daemon = find_daemon(data_dir)
    wanted = STREAMS if stream == "both" else (stream,)
    if as_json:
        found = {
            name: b"".join(_chunks(daemon, job_id, name, follow)).decode(errors="replace")
            for name in wanted
        }
        show.emit_json({"id": job_id} | found)
    else:
        copy_logs(daemon, job_id, wanted, follow=follow)


@click.command("cancel")
@options.as_json
@options.data_dir
@job_id
def cancel(as_json: bool, data_dir: Path | None, job_id: str) -> None:
    """End a job, whether it waits or runs."""
    job = find_daemon(data_dir).post(job_path(job_id, "cancel"))
    if as_json:
        show.emit_json(job)
    else:
        click.echo(f"{show.printable(job['id'])} {show.printable(job.get('status'))}")


@click.command("explain")
@options.as_json
@options.data_dir
@job_id
def explain(as_json: bool, data_dir: Path | None, job_id: str) -> None:
    """Why a job waits, node by node; of a package its name will do, and builders are told of."""
    told = find_daemon(data_dir).get(job_path(job_id, "explain"))
    if as_json:
        show.emit_json(told)
        return
    click.echo(show.printable(told.get("summary")))
    if told.get("nodes"):
        show.emit_table(
            ["NODE", "CAN RUN IT", "WHY NOT"],
            [[n.get("node"), bool(n.get("can_run")), "; ".join(n.get("reasons", []))]
             for n in told["nodes"]],
        )  # fmt: skip


def copy_logs(daemon: Daemon, job_id: str, streams: tuple[str, ...], *, follow: bool) -> None:
    """Each stream to our own of its name, both at once: neither may wait for the other."""
    problems: list[BaseException] = []

    def copy(name: str) -> None:
        out: BinaryIO = sys.stdout.buffer if name == "stdout" else sys.stderr.buffer
        try:
            for chunk in _chunks(daemon, job_id, name, follow):
                out.write(chunk)
                out.flush()
        except (click.ClickException, OSError) as problem:
            problems.append(problem)

    threads = [threading.Thread(target=copy, args=(name,), daemon=True) for name in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        # Short joins, so that Ctrl-C is heard in between.
        while thread.is_alive():
            thread.join(0.5)
    if problems:
        raise problems[0]


def _chunks(daemon: Daemon, job_id: str, stream: str, follow: bool) -> Iterator[bytes]:
    return daemon.stream(job_path(job_id, "logs"), {"stream": stream, "follow": int(follow)})


def exit_status(job: dict[str, Any]) -> int:
    """The job's own exit status; 128+N after signal N, 125 where it has none."""
    code = job.get("exit_code")
    if job.get("status") == "completed":
        return int(code or 0)
    killed = re.match(r"killed by signal (\d{1,2})\b", str(job.get("error")))
    if killed:
        return 128 + int(killed[1])
    return min(code, 255) if isinstance(code, int) and code > 0 else EXIT_NO_STATUS


def find_file(path: Path) -> tuple[BinaryIO, int]:
    """A local file that can be run, opened, with its size."""
    if not path.is_file() or not os.access(path, os.X_OK):
        raise Refused(f"{path} is no file that can be run; `chmod +x {path}` if it should be")
    try:
        file = path.open("rb")
    except OSError as problem:
        raise Refused(f"{path} cannot be read: {problem.strerror}") from problem
    return file, os.fstat(file.fileno()).st_size
