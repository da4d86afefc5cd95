"""Builds the one-file binary: the same tree, Python and place of the build give the same bytes.

`python packaging/build.py [--out FILE] [--work DIR]`, with the requirements of the dev lock file
installed. It serves hosts whose C library is as new as the one here, or newer.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPEC = ROOT / "packaging" / "swarmd.spec"
EPOCH = "946684800"
"""2000-01-01, where neither the environment nor the history tells of a time."""
BUILD_S_MAX = 600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "swarmd")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "pyinstaller")
    asked = parser.parse_args()
    if importlib.util.find_spec("PyInstaller") is None:
        print("PyInstaller is missing; install requirements-dev.lock", file=sys.stderr)
        return 1
    out = build(asked.out.resolve(), asked.work.resolve())
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    libc = " ".join(platform.libc_ver())
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, for {libc} or newer\nsha256 {digest}")
    return 0


def build(out: Path, work: Path) -> Path:
    """Whoever runs the old binary goes on doing so: the new one takes its name when it is whole."""
    settled = {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": _epoch(), "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=ERROR",
         f"--distpath={work / 'dist'}", f"--workpath={work / 'work'}", str(SPEC)],
        check=True, timeout=BUILD_S_MAX, env=os.environ | settled,
    )  # fmt: skip
    made = work / "dist" / "swarmd"
    said = subprocess.run([made, "--version"], check=True, timeout=60, capture_output=True)
    assert said.stdout.strip(), "the binary does not tell its version"
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(f"{out.name}.new")
    shutil.copy2(made, fresh)
    fresh.replace(out)
    return out


def _epoch() -> str:
    """The time that the build claims to be made at: of the last commit, unless it is told."""
    told = os.environ.get("SOURCE_DATE_EPOCH")
    if told:
        return told
    done = subprocess.run(
        ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    return done.stdout.strip() or EPOCH


if __name__ == "__main__":
    sys.exit(main())
