"""What every test shares: a clean environment, and the closing list of parts that were missing."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests import parts


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may depend on the settings of whoever runs it."""
    kept = {parts.REQUIRE, "SWARMD_CONFORMANCE"}
    for name in [*os.environ]:
        if (name.startswith("SWARMD_") and name not in kept) or name == "ADMIN_KEY":
            monkeypatch.delenv(name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        words = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _, found, part = words.partition(parts.MISSING)
        if found:
            missing[part] += 1
    if not missing:
        terminalreporter.write_line("parts missing: none")
        return
    terminalreporter.section("parts missing")
    for part, count in sorted(missing.items()):
        terminalreporter.write_line(f"{part}: {count} {'test' if count == 1 else 'tests'} skipped")
    terminalreporter.write_line(
        f"parts missing: {', '.join(sorted(part.split()[0] for part in missing))}"
        f" ({sum(missing.values())} tests skipped)"
    )
