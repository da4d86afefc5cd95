"""What is said of why a job waits, whatever its kind: in words, and of each who might take it."""

from __future__ import annotations

import msgspec

from swarmd.domain.jobs import JobStatus


class NodeVerdict(msgspec.Struct, frozen=True):
    node: str
    """Its name; of a package, a builder's."""
    can_run: bool
    reasons: tuple[str, ...]


class Explanation(msgspec.Struct, frozen=True):
    job_id: str
    status: JobStatus
    summary: str
    waits_for: tuple[str, ...]
    nodes: tuple[NodeVerdict, ...]
