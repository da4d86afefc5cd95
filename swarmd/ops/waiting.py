"""Waiting for a job to end, on its event rather than by asking again."""

from __future__ import annotations

import trio

from swarmd.cluster.feed import FellBehind, Wanted
from swarmd.cluster.handle import Cluster
from swarmd.domain.events import JobEnded
from swarmd.domain.jobs import Job
from swarmd.ops import jobs


async def ended(cluster: Cluster, job_id: str, timeout_s: float) -> Job:
    """The job once it has ended, or as it stands when the time is up. NotFound."""
    wants = Wanted.of(JobEnded, about=job_id)
    with trio.move_on_after(timeout_s):
        while True:
            try:
                async with cluster.watch(wants=wants) as events:
                    job = await jobs.find(cluster, job_id)
                    if job.status.ended:
                        return job
                    await anext(events)
            except FellBehind:
                continue
    return await jobs.find(cluster, job_id)
