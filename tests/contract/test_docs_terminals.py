"""Every command of docs/terminals.md runs as it stands there, against a host of the test's own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.contract.pages import DOCS, run_page
from tests.daemon import ROOT
from tests.parts import need
from tests.sshd import running_sshd


def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("sshd")
    tools = tmp_path / "tools"
    tools.mkdir()
    swarmd = tools / "swarmd"
    swarmd.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m swarmd "$@"\n')
    swarmd.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SWARMD_DATA_DIR", str(tmp_path / "node" / "data"))
    with running_sshd(tmp_path / "host", env={"SHELL": "/bin/sh"}) as sshd:
        ssh = sshd.settings(tmp_path / "known")
        hosts = {"drone-01": f"{sshd.host}:{sshd.port}"}
        shown = run_page(
            DOCS / "terminals.md", tmp_path, ssh=ssh, ssh__hosts=hosts, care={"enabled": False}
        )
    for said in (
        "this is Linux\n", "it ended with 3", "exited 3", "drone        drone-01",
        '{"version":2,"width":80,"height":24,', '"title":',
    ):  # fmt: skip
        assert said in shown.replace("\r", ""), said
    assert shown.replace("\r", "").count("this is Linux\n") == 2
