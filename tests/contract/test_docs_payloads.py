"""Every command of docs/payloads.md that needs no host runs as it stands there."""

from __future__ import annotations

from pathlib import Path

from tests.contract.pages import DOCS, run_page


def test_every_command_of_the_page_runs(tmp_path: Path) -> None:
    shown = run_page(DOCS / "payloads.md", tmp_path)
    for said in (
        '"payload_type":"config","version":"1.0"', '"description":"four jobs"',
        '"notes":"first"', '"status":"ok","payload_type":"drone_binary","version":"0.4.0"',
        '"latest_versions":{"config":{"version":"1.0"', '"history":[]', '"v2_gateway_url":null',
        '"lines":[',
    ):  # fmt: skip
        assert said in shown, said
    assert '"error":' not in shown
