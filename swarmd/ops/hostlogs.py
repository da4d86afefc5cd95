"""What a builder's host logs, read from there over ssh."""

from __future__ import annotations

import trio

from swarmd.cluster.handle import Cluster
from swarmd.domain.errors import SwarmError, Unavailable
from swarmd.domain.payloads import syslog_command
from swarmd.ops.builds import find_builder
from swarmd.ops.reach import Reach, of_host

LINE_CHARS_MAX = 4000
OUTPUT_BYTES_MAX = 1024 * 1024
TIMEOUT_S = 20.0


async def read_syslog(cluster: Cluster, reach: Reach, name: str, lines: int) -> list[str]:
    """The last lines, oldest first. Refusals of the host come as Unavailable and Conflict."""
    view = await find_builder(cluster, name)
    try:
        target = await reach.target(view)
        command = syslog_command(lines, OUTPUT_BYTES_MAX)
        ran = await reach.ssh.exec(
            target, command, timeout_s=TIMEOUT_S, output_bytes_max=OUTPUT_BYTES_MAX
        )
    except SwarmError as refusal:
        raise of_host(refusal, name) from refusal
    if ran.exit_code:
        said = plain(ran.stderr[-1000:].decode("utf-8", "replace"))
        raise Unavailable(f"{name}: its log cannot be read: {said or ran.exit_code}")
    return await trio.to_thread.run_sync(_lines, ran.stdout, lines)


def _lines(output: bytes, count: int) -> list[str]:
    text = output.decode("utf-8", "replace")
    return [plain(line) for line in text.split("\n") if line][-count:]


def plain(line: str) -> str:
    """Nothing in it that moves a cursor."""
    line = line[:LINE_CHARS_MAX].replace("\t", "    ").strip()
    return line if line.isprintable() else "".join(c if c.isprintable() else "�" for c in line)
