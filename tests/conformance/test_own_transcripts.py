"""Our own transcripts, for what etcd's do not cover: disks and networks that fail, and Figure 8."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.raft import trace
from tests.conformance.datadriven import replay
from tests.conformance.environment import Environment
from tests.conformance.log_lines import LINES

TRANSCRIPTS = Path(__file__).parent / "transcripts"


@pytest.mark.parametrize("name", sorted(path.name for path in TRANSCRIPTS.glob("*.txt")), ids=str)
def test_own_transcript(name: str) -> None:
    assert replay(TRANSCRIPTS / name, Environment().handle) > 0


def test_every_event_has_its_line() -> None:
    events = {kind for kind in vars(trace).values() if _is_event(kind)}
    assert events == set(LINES)


def _is_event(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, trace.Event) and kind is not trace.Event
