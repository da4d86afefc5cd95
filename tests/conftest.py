"""What every test shares: a clean environment, and the closing list of parts that were missing."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import parts

# How quick examples come depends on what else the machine does; it says nothing of the product.
settings.register_profile("swarmd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("swarmd")
_OWN_BASETEMP = pytest.StashKey[Path]()
_BYTECODE = pytest.StashKey[Path]()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may depend on the settings of whoever runs it."""
    kept = {parts.REQUIRE, "SWARMD_CONFORMANCE"}
    for name in [*os.environ]:
        if (name.startswith("SWARMD_") and name not in kept) or name == "ADMIN_KEY":
            monkeypatch.delenv(name)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Temporary directories of this run's own. In the place that pytest takes by itself, each
    further run closes the way for the accounts that jobs of a run under way have."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As for what a shell runs in the background; what tests start would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "needs(*parts): the real parts of tests/parts.py")
    if config.option.basetemp is None and not hasattr(config, "workerinput"):
        config.option.basetemp = tempfile.mkdtemp(prefix="swarmd-tests-")
        config.stash[_OWN_BASETEMP] = Path(config.option.basetemp)
    if sys.dont_write_bytecode and not hasattr(config, "workerinput"):
        # Hundreds of daemons are started, and a third of what a start takes is to compile. Where
        # nobody wants the results in the tree, they are kept beside it, for as long as this lasts.
        config.stash[_BYTECODE] = Path(tempfile.mkdtemp(prefix="swarmd-bytecode-"))
        os.environ["PYTHONPYCACHEPREFIX"] = str(config.stash[_BYTECODE])
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Tests that share a fixture of their module run in one process, where it is made once."""
    if not isinstance(item, pytest.Function) or item.get_closest_marker("xdist_group"):
        return
    defined = item._fixtureinfo.name2fixturedefs.values()
    if any(each.scope == "module" for fixtures in defined for each in fixtures):
        item.add_marker(pytest.mark.xdist_group(item.module.__name__))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """pytest-xdist 3.8 tells a test's group by its node id, and sets that in a way that pytest 9.2
    no longer has: without this no group would be kept together."""
    if not getattr(config.option, "loadgroup", False) or not hasattr(config, "workerinput"):
        return
    for item in items:
        mark = item.get_closest_marker("xdist_group")
        if mark is not None and not item.nodeid.endswith(f"@{mark.args[0]}"):
            item._id = type(item._id).parse(f"{item.nodeid}@{mark.args[0]}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        parts.need(*mark.args)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """What failed tests left stays to be looked at."""
    own = session.config.stash.get(_OWN_BASETEMP, None)
    if own is not None and exitstatus == 0:
        shutil.rmtree(own, ignore_errors=True)
    if (bytecode := session.config.stash.get(_BYTECODE, None)) is not None:
        shutil.rmtree(bytecode, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        words = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _, found, part = words.partition(parts.MISSING)
        if found:
            missing[part] += 1
        else:
            others[words] += 1
    for reason, count in sorted(others.items()):
        terminalreporter.write_line(f"skipped for another reason, {count}: {reason}")
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
