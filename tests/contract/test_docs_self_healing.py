"""Every command of docs/self-healing.md runs as it stands there, and does what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from swarmd.domain.care import LADDER
from swarmd.domain.probes import ProbeStatus
from tests.daemon import SURFACES, running_daemon
from tests.parts import need

PAGE = Path(__file__).parents[2] / "docs" / "self-healing.md"
KEY = "a-key-for-tests"


def test_every_command_of_the_page_runs(tmp_path: Path) -> None:
    need("bash", "curl")
    script = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL))
    with running_daemon(
        tmp_path / "node", jobs={"executor": False}, environment={"ADMIN_KEY": KEY}
    ) as daemon:
        deadline = time.monotonic() + 20
        while daemon.request("GET", "/api/v1/ping", surface="buildswarm").status == 503:
            assert time.monotonic() < deadline
            time.sleep(0.05)  # until the state is of the version that has builds
        for name, port in SURFACES.items():
            script = script.replace(f"http://127.0.0.1:{port}", daemon.url(name))
        ran = subprocess.run(
            ["bash", "-eux", "-o", "pipefail", "-c", script], cwd=tmp_path, text=True, timeout=60,
            capture_output=True, check=False, env={**os.environ, "ADMIN_KEY": KEY},
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for said in (
        '"status":"registered"', '"status":"not_probed"', '"pinged":0', '"monitor_running":true',
        '"escalation_level":0', '"drone_type":"lxc"', '"previous_level":0', '"events":[]',
    ):  # fmt: skip
        assert said in ran.stdout, said
    assert '"error":' not in ran.stdout


def test_the_page_has_every_status_and_every_level() -> None:
    text = PAGE.read_text()
    assert [status for status in ProbeStatus if f"| `{status.value}` |" not in text] == []
    assert [action for action in LADDER if f"| {action.level} | " not in text] == []
