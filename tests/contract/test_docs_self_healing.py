"""Every command of docs/self-healing.md runs as it stands there, and does what the page says."""

from __future__ import annotations

from pathlib import Path

from swarmd.domain.care import LADDER
from swarmd.domain.probes import ProbeStatus
from tests.contract.pages import DOCS, run_page

PAGE = DOCS / "self-healing.md"


def test_every_command_of_the_page_runs(tmp_path: Path) -> None:
    shown = run_page(PAGE, tmp_path, jobs={"executor": False})
    for said in (
        '"status":"registered"', '"status":"not_probed"', '"pinged":0', '"monitor_running":true',
        '"escalation_level":0', '"drone_type":"lxc"', '"previous_level":0', '"events":[]',
    ):  # fmt: skip
        assert said in shown, said
    assert '"error":' not in shown


def test_the_page_has_every_status_and_every_level() -> None:
    text = PAGE.read_text()
    assert [status for status in ProbeStatus if f"| `{status.value}` |" not in text] == []
    assert [action for action in LADDER if f"| {action.level} | " not in text] == []
