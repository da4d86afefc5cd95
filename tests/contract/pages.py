"""The commands of a page of the documentation, run as they stand there against a real daemon.

They run as one script: where one of them fails, the rest does not go on.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.daemon import ROOT, SURFACES, await_builds, running_daemon
from tests.parts import need

DOCS = ROOT / "docs"
KEY = "a-key-for-tests"
SCRIPT_S = 60.0


def run_page(page: Path, folder: Path, **settings: Any) -> str:
    """What its commands write. The daemon is given these sections of a configuration; the pages
    speak of the documented ports, and the commands go to its own."""
    need("bash", "curl")
    script = "\n".join(re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL))
    with running_daemon(folder / "node", environment={"ADMIN_KEY": KEY}, **settings) as daemon:
        await_builds(daemon)
        for name, port in SURFACES.items():
            script = script.replace(f"http://127.0.0.1:{port}", daemon.url(name))
        ran = subprocess.run(
            ["bash", "-eux", "-o", "pipefail", "-c", script], cwd=folder, text=True,
            timeout=SCRIPT_S, capture_output=True, check=False,
            env={**os.environ, "ADMIN_KEY": KEY},
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
