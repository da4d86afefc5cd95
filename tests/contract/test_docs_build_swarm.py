"""Every command of docs/build-swarm.md runs as it stands there, and does what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from tests.daemon import SURFACES, running_daemon
from tests.parts import need

PAGE = Path(__file__).parents[2] / "docs" / "build-swarm.md"
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
        '"queued":2', '"needed":2', '"status":"active"', '"status":"registered"',
        '{"package":"app-misc/hello-1.0"', '"accepted":true', '"error_message":"no gcc"',
        "drone-01 failed app-misc/hello-1.0: no gcc", '"message":"Queue paused"',
        '"drone":"drone-01","paused":true', "PACKAGES: 0",
    ):  # fmt: skip
        assert said in ran.stdout, said
    assert '"error":' not in ran.stdout.replace('"error":null', "").replace('"error":"no gcc"', "")
