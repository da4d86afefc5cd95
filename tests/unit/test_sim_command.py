"""`swarmd sim` before anything is simulated: what it says to who waits, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmd.cli import sim
from swarmd.domain.errors import Invalid
from swarmd.sim.scenario import Progress, Scenario, estimate
from swarmd.sim.topology import equal_nodes


def test_more_nodes_than_fit_into_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sim, "MEMINFO", tmp_path / "meminfo")
    sim._check_memory(5000, 60.0)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2097152 kB\n")
    sim._check_memory(300, 60.0)
    with pytest.raises(Invalid, match=r"1000 nodes need about .* GiB of memory, and 2 GiB are"):
        sim._check_memory(1000, 60.0)
    (tmp_path / "meminfo").write_text("MemAvailable: 1024 kB\n")
    with pytest.raises(Invalid, match=r"^1 node needs about .* MiB of memory, and 1"):
        sim._check_memory(1, 60.0)
    (tmp_path / "meminfo").write_text("MemAvailable: much\n")
    sim._check_memory(5000, 60.0)


def test_who_waits_is_told_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    said = sim.Said(Scenario(equal_nodes(5), "five", seconds=60.0))
    progress = Progress(5, 60.0, met=2)
    said(progress)
    now = 111.0
    said(progress)
    progress.lived_s = 0.5
    said(progress)
    now, progress.lived_s = 131.0, 20.0
    said(progress)
    said.over()
    first, met, lived = (line.strip() for line in capsys.readouterr().err.splitlines())
    assert first.startswith("simulated: 5 nodes for 1 min; it takes about ")
    assert met == "simulated: 2 of 5 nodes have met"
    assert lived == "simulated: 20 of 60 s lived in 20.0 s, about 40.0 s to go"


def test_the_estimate_grows_with_the_swarm() -> None:
    small, large = estimate(5, 60.0), estimate(1000, 60.0)
    assert small[0] < large[0]
    assert small[1] < large[1]
    assert estimate(5, 120.0)[0] > small[0]
