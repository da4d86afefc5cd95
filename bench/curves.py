"""Curves as pictures: log-log axes, one line a series, drawn by hand as SVG, for light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 680, 400
LEFT, RIGHT, TOP, BOTTOM = 76, 176, 44, 56
COLOURS = 6
STYLE = """
text{font:13px system-ui,sans-serif;fill:#24292f}
.title{font-size:15px;font-weight:600}
.ground{fill:#ffffff}.grid{stroke:#d8dee4;stroke-width:1}.axis{stroke:#57606a;stroke-width:1}
.line{fill:none;stroke-width:2}.aim{stroke-dasharray:6 4}
.c0{stroke:#0969da;color:#0969da}.c1{stroke:#bc4c00;color:#bc4c00}.c2{stroke:#1a7f37;color:#1a7f37}
.c3{stroke:#8250df;color:#8250df}.c4{stroke:#bf3989;color:#bf3989}.c5{stroke:#57606a;color:#57606a}
.dot{fill:currentColor;stroke:none}
@media (prefers-color-scheme:dark){
text{fill:#e6edf3}.ground{fill:#0d1117}.grid{stroke:#30363d}.axis{stroke:#8b949e}
.c0{stroke:#58a6ff;color:#58a6ff}.c1{stroke:#f0883e;color:#f0883e}.c2{stroke:#3fb950;color:#3fb950}
.c3{stroke:#bc8cff;color:#bc8cff}.c4{stroke:#f778ba;color:#f778ba}.c5{stroke:#8b949e;color:#8b949e}}
""".strip()


class _Axis:
    """From one power of ten to another, around what is to be shown."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self._low = math.floor(math.log10(min(values)))
        self._high = max(self._low + 1, math.ceil(math.log10(max(values))))
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def powers(self) -> list[float]:
        return [10.0**power for power in range(self._low, self._high + 1)]


def draw(
    path: Path, title: str, across: str, up: str, series: Mapping[str, Points], *,
    aim: tuple[str, float] | None = None,
) -> None:  # fmt: skip
    """`aim` is a line across at what was wanted. What is not above 0 is left out."""
    shown = {n: [(x, y) for x, y in points if x > 0 and y > 0] for n, points in series.items()}
    shown = {name: points for name, points in shown.items() if points}
    assert shown, f"nothing to draw of {title}"
    assert len(shown) <= COLOURS, f"more than {COLOURS} curves of {title}"
    every = [point for points in shown.values() for point in points]
    ys = [y for _, y in every] + ([aim[1]] if aim else [])
    x = _Axis([x for x, _ in every], LEFT, WIDTH - RIGHT)
    y = _Axis(ys, HEIGHT - BOTTOM, TOP)
    parts = [*_grid(x, y), *_words(title, across, up)]
    labels: list[tuple[float, str, str]] = []
    if aim is not None:
        level = y.at(aim[1])
        parts.append(
            f'<line class="axis aim" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level:.1f}"'
            f' y2="{level:.1f}"/>'
        )
        labels.append((level, aim[0], ""))
    for number, (name, points) in enumerate(shown.items()):
        places = [(x.at(a), y.at(b)) for a, b in points]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        dots = "".join(f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in places)
        parts.append(f'<g class="c{number}"><polyline class="line" points="{line}"/>{dots}</g>')
        labels.append((places[-1][1], name, f"c{number}"))
    parts += _labels(labels)
    body = "\n".join(parts)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
        f' height="{HEIGHT}" role="img" aria-label="{escape(title)}">\n<style>{STYLE}</style>\n'
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>\n{body}\n</svg>\n'
    )


def _grid(x: _Axis, y: _Axis) -> list[str]:
    parts = []
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    for value in x.powers():
        at = f"{x.at(value):.1f}"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" y2="{floor}"/>')
        parts.append(f'<text x="{at}" y="{floor + 18}" text-anchor="middle">{said(value)}</text>')
    for value in y.powers():
        at = f"{y.at(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at}" dy="4" text-anchor="end">{said(value)}</text>')
    parts.append(f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{floor}H{right}"/>')
    return parts


def _words(title: str, across: str, up: str) -> list[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return [
        f'<text class="title" x="{LEFT}" y="24">{escape(title)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 14}" text-anchor="middle">'
        f"{escape(across)}</text>",
        f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(up)}</text>",
    ]


def _labels(labels: Sequence[tuple[float, str, str]]) -> list[str]:
    """At the right ends of their lines, as far apart as it takes to read them."""
    parts, last = [], -math.inf
    for level, name, colour in sorted(labels):
        last = max(level, last + 16)
        at = WIDTH - RIGHT + 10
        if colour:
            parts.append(f'<circle class="dot {colour}" cx="{at}" cy="{last - 0.5:.1f}" r="4"/>')
        parts.append(f'<text x="{at + 9}" y="{last:.1f}" dy="4">{escape(name)}</text>')
    return parts


def said(value: float) -> str:
    """A power of ten, short."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
