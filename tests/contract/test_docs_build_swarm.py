"""Every command of docs/build-swarm.md runs as it stands there, and does what the page says."""

from __future__ import annotations

from pathlib import Path

from tests.contract.pages import DOCS, run_page


def test_every_command_of_the_page_runs(tmp_path: Path) -> None:
    shown = run_page(DOCS / "build-swarm.md", tmp_path)
    for said in (
        '"queued":2', '"needed":2', '"status":"active"', '"status":"registered"',
        '{"package":"app-misc/hello-1.0"', '"accepted":true', '"error_message":"no gcc"',
        "drone-01 failed app-misc/hello-1.0: no gcc", '"message":"Queue paused"',
        '"drone":"drone-01","paused":true', "PACKAGES: 0",
    ):  # fmt: skip
        assert said in shown, said
    assert '"error":' not in shown.replace('"error":null', "").replace('"error":"no gcc"', "")
