"""The one-file binary, built once for all tests of a run, whichever worker comes first."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import ROOT
from tests.parts import PARTS, Part

BUILD_TIMEOUT_S = 500.0
"""Within what a test as a whole may take."""


def can_build() -> bool:
    return importlib.util.find_spec("PyInstaller") is not None


PARTS.setdefault("pyinstaller", Part(can_build, "install requirements-dev.lock"))


def built_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SWARMD_TEST_BINARY names one that is there already."""
    ready = os.environ.get("SWARMD_TEST_BINARY")
    if ready:
        return Path(ready)
    base = tmp_path_factory.getbasetemp()
    # Of a worker it lies in the whole run's.
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "binary"
    place.mkdir(exist_ok=True)
    out = place / "swarmd"
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            subprocess.run(
                [sys.executable, str(ROOT / "packaging" / "build.py"),
                 "--out", str(out), "--work", str(place / "work")],
                check=True, timeout=BUILD_TIMEOUT_S, stdin=subprocess.DEVNULL,
            )  # fmt: skip
    return out
