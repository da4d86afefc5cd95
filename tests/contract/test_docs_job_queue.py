"""Every command of docs/job-queue.md runs as it stands there, and does what the page says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.contract.jobqueue import OPERATIONS
from tests.daemon import SURFACES, running_daemon
from tests.parts import need

PAGE = Path(__file__).parents[2] / "docs" / "job-queue.md"


def test_every_command_of_the_page_runs(tmp_path: Path) -> None:
    need("bash", "curl")
    script = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL))
    with running_daemon(tmp_path / "node") as daemon:
        for name, port in SURFACES.items():
            script = script.replace(f"http://127.0.0.1:{port}", daemon.url(name))
        ran = subprocess.run(
            ["bash", "-eux", "-o", "pipefail", "-c", script], cwd=tmp_path, text=True, timeout=60,
            capture_output=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
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
            assert said in ran.stdout, said


def test_the_page_names_every_operation_and_its_answers() -> None:
    rows = re.findall(r"^\| `([A-Z]+)` \| `(\S+)` \| ([\d, ]+) \|$", PAGE.read_text(), re.M)
    named = {(method, path): {int(s) for s in answers.split(",")} for method, path, answers in rows}
    assert named == {(o.method, o.path): {*o.answers, *o.refusals} for o in OPERATIONS}
