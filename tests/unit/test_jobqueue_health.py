"""Health answers 503 with the same fields where the node cannot serve."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import msgspec
import pytest

from api.common.metrics import RequestMetrics
from api.common.surface import Request
from api.jobqueue.routes import Queue, health
from swarmd.cluster.handle import Leadership
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from tests.cluster import open_alone
from tests.contract.jobqueue import HEALTH
from tests.contract.kinds import faults


async def test_health_of_a_node_that_knows_no_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(NodeId("a"), "a")
    nothing_asked = cast("Request", None)
    async with open_alone(tmp_path, node, now_ms=lambda: 0) as cluster:
        queue = Queue(cluster, RequestMetrics("executr_"))
        answer = await health(queue, nothing_asked)
        assert answer.status == 200
        assert faults(msgspec.json.decode(answer.body), HEALTH) == []
        monkeypatch.setattr(cluster, "leadership", lambda: Leadership(None, 1))
        answer = await health(queue, nothing_asked)
    assert answer.status == 503
    body = msgspec.json.decode(answer.body)
    assert faults(body, HEALTH) == []
    assert (body["status"], body["leader"]) == ("unhealthy", None)
