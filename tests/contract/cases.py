"""Answers held against a table: each operation in each of its statuses, with a case of its own."""

from __future__ import annotations

from collections.abc import Iterable

from tests.contract.kinds import Shape, faults
from tests.contract.table import Operation
from tests.daemon import Response

Key = tuple[str, str, int]
"""Method, path, status."""


def statuses(operation: Operation) -> list[int]:
    return [*operation.answers, *operation.refusals]


def promised(operations: Iterable[Operation]) -> set[Key]:
    return {(o.method, o.path, status) for o in operations for status in statuses(o)}


def check_answer(
    answer: Response, operation: Operation, status: int, envelope: dict[str, Shape]
) -> None:
    assert answer.status == status, answer.body
    refused = status not in operation.answers
    media_type = "application/json" if refused else operation.media_type
    if status == 204:
        assert answer.body == b""
        return
    assert answer.headers["content-type"].startswith(media_type)
    if media_type in ("application/octet-stream", "application/gzip"):
        return
    value = answer.json if media_type == "application/json" else answer.body.decode()
    assert faults(value, envelope if refused else operation.answers[status]) == []
