"""What a dialect describes: envelopes are total, routes are found, labels are bounded."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest

from api.common.faults import MethodNotAllowed
from api.common.metrics import RequestMetrics
from api.common.surface import Envelope, HotRoute, Request, Response, Router, template_of
from swarmd.domain.errors import ALL_ERRORS, Busy, Conflict, Invalid, SwarmError
from tests.surfaces import ENVELOPE


async def nothing(request: Request) -> Response:
    return Response()


def test_an_envelope_has_a_status_for_every_error() -> None:
    statuses: dict[type[SwarmError], int] = dict.fromkeys(ALL_ERRORS, 400)
    del statuses[Busy]
    with pytest.raises(ValueError, match="Busy"):
        Envelope(statuses, lambda *_: {})


def test_a_refusal_wears_its_headers_and_facts() -> None:
    class Special(Conflict):
        pass

    assert ENVELOPE.answer(Special("no", job_id="7", at={1})).status == 409
    assert ("Retry-After", "9") in ENVELOPE.answer(Busy("later", retry_after_s=9)).headers
    assert ("Allow", "GET, PUT") in ENVELOPE.answer(
        MethodNotAllowed("POST", "/", {"PUT", "GET"})
    ).headers
    assert ENVELOPE.answer(Invalid("no", field="a")).body == (
        b'{"error":"no","code":"invalid","context":{"field":"a"}}'
    )


def test_literal_paths_win_over_templates() -> None:
    routes = (
        HotRoute("GET", "/jobs/{id}", nothing),
        HotRoute("DELETE", "/jobs/{id}", nothing),
        HotRoute("POST", "/jobs/bulk", nothing),
        HotRoute("POST", "/jobs/{id}/beat", nothing),
    )
    router = Router(routes)
    found = router.find(b"/jobs/bulk")
    assert found is not None and found[0].keys() == {"POST"}
    found = router.find(b"/jobs/a%2Fb%00")
    assert (
        found is not None and found[1] == {"id": "a/b\0"} and found[0].keys() == {"GET", "DELETE"}
    )
    assert router.find(b"/jobs/") is None and router.find(b"/jobs/a/b") is None
    with pytest.raises(ValueError, match="twice"):
        Router((routes[0], routes[0]))


def test_rules_become_templates() -> None:
    assert template_of("/a/<string(length=2):b>/<c>") == "/a/{b}/{c}"


def test_labels_are_bounded() -> None:
    metrics = RequestMetrics("x_")
    for n in range(100):
        metrics.count(f"M{n}", "other", 404, 0.1)
    text = generate_latest(metrics.registry).decode()
    assert 'x_api_requests_total{endpoint="other",method="other",status="404"} 100.0' in text
    assert "M1" not in text
