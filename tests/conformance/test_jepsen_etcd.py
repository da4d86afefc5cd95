"""The checker of histories agrees with every verdict on the registers that others recorded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.linearize import Register, check, read_jepsen
from tests.parts import conformance_dir, need

HISTORIES = 50
ROOT = Path(__file__).resolve().parents[2]


def data_dir() -> Path | None:
    folder = conformance_dir()
    data = folder / "jepsen-etcd" if folder else None
    return data if data is not None and data.is_dir() else None


def verdicts() -> Mapping[str, str]:
    data = data_dir()
    if data is None:
        return {}
    lines = (data / "verdicts.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines if line)


if data_dir() is None:

    def test_jepsen_histories() -> None:
        need("conformance")

else:

    @pytest.mark.parametrize("name", verdicts(), ids=str)
    def test_verdict(name: str) -> None:
        data = data_dir()
        assert data is not None
        history = read_jepsen((data / name).read_text(encoding="utf-8").splitlines())
        assert str(bool(check(history, Register()))).lower() == verdicts()[name]

    def test_no_history_is_missing() -> None:
        data = data_dir()
        assert data is not None
        assert sorted(verdicts()) == sorted(path.name for path in data.glob("etcd_*.log"))
        assert len(verdicts()) == HISTORIES

    def test_the_command_says_the_same_with_the_standard_library_alone() -> None:
        data = data_dir()
        assert data is not None
        files = [str(data / name) for name in verdicts()]
        told = subprocess.run(
            [sys.executable, "-S", "-E", "-m", "tests.linearize", *files],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        expected = [f"{data / name} {verdict}" for name, verdict in verdicts().items()]
        assert told.stdout.splitlines() == expected
