"""The version after this one, made from its text: what a release that brings something new changes.

Each change has to find the words that it replaces, or making it fails: a copy that is this version
under another number would prove nothing.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from swarmd.state.commands import VERSION
from tests.daemon import ROOT

NEXT = VERSION + 1
PACKAGES = ("swarmd", "mesh", "api")
RELEASE = "99.0.0"
NOTICES = "notices"
"""The table that comes with it."""

_COMMAND = '''
class PutNotice(Command[int], frozen=True):
    """Came with the next version."""

    text: str


AnyCommand = ('''
_TABLE = f"CREATE TABLE {NOTICES}(revision INTEGER PRIMARY KEY, text TEXT NOT NULL)"
_RULE = """

def put_notice(tx: Tx, command) -> int:
    tx.execute("INSERT INTO notices VALUES (?,?)", (tx.revision, command.text))
    return tx.revision
"""
_WRITES = """
        # In every look, also before the version is in force: then it has to wait.
        try:
            await cluster.propose(PutNotice(cluster.node.name), SYSTEM)
            log.info("a notice was put")
        except Unavailable as refusal:
            log.info("a notice waits", extra={"reason": refusal.message})
"""
_LOOK = "        # A node that has only just joined is in the state within moments.\n"

_REPLACED: tuple[tuple[str, str, str], ...] = (
    # The state: a command, its rule, its table, and a leader that writes it whenever it may.
    ("swarmd/state/commands.py", "\nAnyCommand = (", _COMMAND),
    ("swarmd/state/commands.py", "\n    | RaiseVersion\n",
     "\n    | RaiseVersion\n    | PutNotice\n"),
    ("swarmd/state/commands.py", "\n    RaiseVersion: int,\n",
     "\n    RaiseVersion: int,\n    PutNotice: int,\n"),
    ("swarmd/state/commands.py", "    HoldAttempts: 2,\n",
     f"    HoldAttempts: 2,\n    PutNotice: {NEXT},\n"),
    ("swarmd/state/machine.py", "    c.RaiseVersion: nodes.raise_version,\n",
     "    c.RaiseVersion: nodes.raise_version,\n    c.PutNotice: nodes.put_notice,\n"),
    ("swarmd/state/schema.py", '    ("trust", 1, _TRUST),\n',
     f'    ("trust", 1, _TRUST),\n    ("{NOTICES}", {NEXT}, "{_TABLE}"),\n'),
    ("swarmd/control/members.py", _LOOK, _WRITES + _LOOK),
    ("swarmd/control/members.py", "import VERSION, RaiseVersion\n",
     "import VERSION, PutNotice, RaiseVersion\nfrom swarmd.domain.errors import Unavailable\n"),
    # The gossip: members say more of themselves.
    ("mesh/swim/messages.py", "    version: Version\n\n\nclass Suspect(",
     '    version: Version\n    hue: Tag = "none"\n\n\nclass Suspect('),
    ("mesh/swim/core.py", "            VERSION_OLDEST, VERSION,\n",
     '            VERSION_OLDEST, VERSION, "blue",\n'),
    # Between nodes: a hello has one more field.
    ("mesh/frames.py", "    process: int = 0\n",
     '    process: int = 0\n    hue: str = "blue"\n'),
    # The runner: both say more in their greeting.
    ("swarmd/drivers/process.py", '"slots": self._settings.slots}',
     '"slots": self._settings.slots, "hue": "blue"}'),
    ("swarmd/runner/loop.py", '"trouble": core.trouble,\n',
     '"trouble": core.trouble,\n                "hue": "blue",\n'),
)  # fmt: skip
_RAISED = (
    "swarmd/state/commands.py", "mesh/frames.py", "mesh/swim/messages.py", "swarmd/runner/wire.py",
    "swarmd/drivers/frames.py",
)  # fmt: skip
"""Each has a number of its own."""


def next_version(folder: Path) -> Path:
    """The folder, which has its packages from then on."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    for name, old, new in _REPLACED:
        _replace(folder / name, re.escape(old), new)
    for name in _RAISED:
        (number,) = re.findall(r"^VERSION = (\d+)$", (folder / name).read_text(), re.MULTILINE)
        _replace(folder / name, r"^VERSION = \d+$", f"VERSION = {int(number) + 1}")
    _replace(folder / "swarmd/__init__.py", r'^__version__ = ".*"$', f'__version__ = "{RELEASE}"')
    rules = folder / "swarmd/state/rules/nodes.py"
    rules.write_text(rules.read_text() + _RULE)
    return folder


def _replace(file: Path, old: str, new: str) -> None:
    text, count = re.subn(old, lambda _: new, file.read_text(), flags=re.MULTILINE)
    assert count == 1, f"{file.name} has {count} of {old!r}: the next version cannot be made"
    file.write_text(text)
