"""Every command of docs/job-queue.md runs as it stands there, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path

from tests.contract.jobqueue import OPERATIONS
from tests.contract.pages import DOCS, run_page

PAGE = DOCS / "job-queue.md"


def test_every_command_of_the_page_runs(tmp_path: Path) -> None:
    shown = run_page(PAGE, tmp_path)
    for said in (
        '"status":"pending"',
        "hello world, in /",
        '"status":"completed"',
        "node.labels.disk==ssd",
        '"status":"cancelled"',
        '"status":"rejected"',
        '{"cancelled":0,"failed":1,',
        '"status":"healthy"',
        "executr_jobs_submitted_total",
    ):
        assert said in shown, said


def test_the_page_names_every_operation_and_its_answers() -> None:
    rows = re.findall(r"^\| `([A-Z]+)` \| `(\S+)` \| ([\d, ]+) \|$", PAGE.read_text(), re.M)
    named = {(method, path): {int(s) for s in answers.split(",")} for method, path, answers in rows}
    assert named == {(o.method, o.path): {*o.answers, *o.refusals} for o in OPERATIONS}
