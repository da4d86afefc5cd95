"""What a job left when it ended: its exit, and what it printed, cut to what is kept of it.

No end is lost because there is no room for its output.
"""

from __future__ import annotations

from pathlib import Path

import trio

from swarmd.agent.launch import error_of
from swarmd.agent.output import cut_file
from swarmd.cluster.handle import Cluster
from swarmd.cluster.patience import propose_patiently
from swarmd.domain.actors import Actor
from swarmd.domain.errors import SwarmError
from swarmd.domain.jobs import INLINE_BYTES_MAX, JobSpec, Output, Result
from swarmd.drivers.frames import Ended
from swarmd.state.commands import AddBlob


async def result_of(
    cluster: Cluster, actor: Actor, spec: JobSpec, ended: Ended, directory: Path
) -> Result:
    """What is too long for the result becomes a blob."""
    outputs = []
    for stream, size in (("stdout", ended.stdout_size), ("stderr", ended.stderr_size)):
        hole = ended.cuts.get(stream)
        found = await _output(cluster, actor, directory / stream, hole) if size else Output()
        outputs.append(found)
    return Result(
        exit_code=ended.exit_code,
        error=error_of(ended, spec),
        stdout=outputs[0],
        stderr=outputs[1],
        notes=tuple(ended.notes),
    )


async def _output(
    cluster: Cluster, actor: Actor, path: Path, hole: tuple[int, int] | None
) -> Output:
    small = _read_small(path, hole)
    if small is not None:
        return Output(inline=small, size=len(small))
    data = await trio.to_thread.run_sync(lambda: cut_file(path, cut=hole))
    if len(data) <= INLINE_BYTES_MAX:
        return Output(inline=data, size=len(data))
    try:
        info = await cluster.blobs.put_bytes(data)
    except SwarmError as refusal:
        note = f"\n[the output could not be stored: {refusal.message}]\n".encode()
        kept = data[: INLINE_BYTES_MAX - len(note)] + note
        return Output(inline=kept, size=len(kept))
    added = AddBlob(info.sha256, info.size_bytes, cluster.node.id)
    await propose_patiently(cluster, added, actor)
    return Output(blob=info.sha256, size=len(data))


def _read_small(path: Path, hole: tuple[int, int] | None) -> bytes | None:
    """What fits into a result; read on the spot, since a thread would cost more than the read.
    None where there is more."""
    if hole is not None:
        return None
    try:
        with path.open("rb", buffering=0) as file:
            data = file.read(INLINE_BYTES_MAX + 1) or b""
    except OSError:
        return b""
    return None if len(data) > INLINE_BYTES_MAX else data
