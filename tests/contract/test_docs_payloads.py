"""Every command of docs/payloads.md that needs no host runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from tests.daemon import SURFACES, running_daemon
from tests.parts import need

PAGE = Path(__file__).parents[2] / "docs" / "payloads.md"
KEY = "a-key-for-tests"


def test_every_command_of_the_page_runs(tmp_path: Path) -> None:
    need("bash", "curl")
    script = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL))
    with running_daemon(tmp_path / "node", environment={"ADMIN_KEY": KEY}) as daemon:
        deadline = time.monotonic() + 20
        while daemon.request("GET", "/api/v1/status", surface="buildswarm").status == 503:
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
        '"payload_type":"config","version":"1.0"', '"description":"four jobs"',
        '"notes":"first"', '"status":"ok","payload_type":"drone_binary","version":"0.4.0"',
        '"latest_versions":{"config":{"version":"1.0"', '"history":[]', '"v2_gateway_url":null',
        '"lines":[',
    ):  # fmt: skip
        assert said in ran.stdout, said
    assert '"error":' not in ran.stdout
