"""docs/scale.md shows what bench.scale makes of the figures beside it: no more, no less."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bench.scale import TABLES, markdown, pictures
from tests.cli import ROOT

PAGE = ROOT / "docs" / "scale.md"
FIGURES = json.loads((ROOT / "docs" / "scale" / "figures.json").read_text())


def test_the_page_shows_every_picture_and_no_other(tmp_path: Path) -> None:
    pictures(FIGURES, tmp_path)
    shown = set(re.findall(r"!\[[^\]]*\]\(scale/([^)]+\.svg)\)", PAGE.read_text()))
    drawn = {picture.name: picture.read_text() for picture in tmp_path.iterdir()}
    kept = {picture.name: picture.read_text() for picture in PAGE.with_suffix("").glob("*.svg")}
    assert shown == drawn.keys()
    assert kept == drawn


def test_the_page_has_every_table() -> None:
    page = PAGE.read_text()
    for part, rows in FIGURES.items():
        assert markdown(rows, TABLES[part]) in page, part
