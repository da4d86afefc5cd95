"""`swarmd` as a real process, as a person calls it: its status, its stdout and its stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 120.0
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, less what would choose a node or a setting."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SWARMD_") and k != "ADMIN_KEY"}
    return kept | {"PYTHONPATH": str(ROOT)} | dict(extra or {})


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "swarmd", *map(str, args)]


def swarmd(*args: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Said:
    done = subprocess.run(
        command(*args), env=environment(env), cwd=cwd, timeout=TIMEOUT_S, check=False,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    return Said(done.returncode, done.stdout, done.stderr)
