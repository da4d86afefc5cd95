"""What is asked of Portage's own library: this file runs under the Python that has it, as a script
of its own, and imports nothing of ours. One JSON request on standard input, one JSON answer on
standard output; whatever Portage prints goes to standard error.

The library, and not `portageq` or `emerge --pretend`: one process answers for a thousand atoms, it
knows USE-conditional dependencies, and its words need no parsing. It is asked in a child, since on
Gentoo it belongs to another interpreter, keeps its configuration in globals, and runs ebuilds.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

SUGGESTIONS_MAX = 5
SEARCHES_MAX = 20
NOTES_MAX = 100
VIRTUAL_DEPTH_MAX = 4
BUILD_KEYS = ("DEPEND", "BDEPEND")
RUN_KEYS = ("RDEPEND", "IDEPEND")


def main() -> None:
    """Answer; a request that fails as a whole is answered with `error`."""
    out = os.dup(1)
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.read())
    verbs: dict[str, Callable[[dict[str, Any]], object]] = {
        "describe": describe, "plan": plan,
    }  # fmt: skip
    answer = verbs[request["do"]](request)
    data = json.dumps(answer).encode()
    while data:
        data = data[os.write(out, data) :]


def describe(_: dict[str, Any]) -> dict[str, Any]:
    portage = _portage()
    settings = portage.settings
    named = ("ARCH", "CHOST", "CFLAGS", "CXXFLAGS", "ACCEPT_KEYWORDS", "BINPKG_FORMAT", "FEATURES")
    database = portage.db[portage.root]["porttree"].dbapi
    return {
        "version": str(portage.VERSION),
        "profile": str(settings.profile_path or ""),
        "timestamp": _timestamp(database),
        "settings": {name: settings.get(name, "")[:4096] for name in named},
    }


def plan(request: dict[str, Any]) -> dict[str, Any]:
    """For each want: the packages that it stands for, or why there is none. And edges between these
    and what is queued: [needed, needing, needed for building]."""
    until = time.monotonic() + request["plan_s"]
    tree = _Tree()
    left = request["packages_max"]
    answers = []
    for want in request["wants"]:
        answer = tree.expand(want) if want.startswith("@") else tree.pick(want)
        left -= len(answer.get("packages", ()))
        if left < 0:
            answer = {"kind": "too_many"}
        answers.append(answer)
    given = [*request["queued"], *(cpv for one in answers for cpv in one.get("packages", ()))]
    order = _order(given, until) if left >= 0 else {}
    return {"answers": answers, "timestamp": _timestamp(tree.database), **order}


def _order(cpvs: list[str], until: float) -> dict[str, Any]:
    try:
        return {"edges": _Dependencies(cpvs).edges(until)}
    except Exception as error:  # of whatever ebuilds and profiles there are: it is only the order
        return {"unordered": f"{type(error).__name__}: {error}"[:300]}


class _Tree:
    """The ebuilds that the host sees, with what it accepts of them."""

    def __init__(self) -> None:
        self.portage = _portage()
        self.trees = self.portage.db[self.portage.root]
        self.database = self.trees["porttree"].dbapi
        self.settings = self.portage.settings
        self._sets: Any = None
        self._every: list[str] | None = None
        self._searches_left = SEARCHES_MAX

    def expand(self, want: str) -> dict[str, Any]:
        sets = importlib.import_module("portage._sets")
        if self._sets is None:
            self._sets = sets.load_default_config(self.settings, self.trees)
        name = want[1:]
        known = self._sets.getSets()
        if name not in known:
            return {"kind": "no_set", "others": _close(name, known)}
        try:
            atoms = sorted(map(str, self._sets.getSetAtoms(name)))
        except sets.PackageSetNotFound as error:
            return {"kind": "no_set", "others": [], "inner": str(error)[:200]}
        packages: list[str] = []
        notes = []
        for atom in atoms:
            picked = self.pick(atom)
            packages += picked.get("packages", [])
            if not picked.get("packages"):
                notes.append({"atom": atom, **picked})
        return {"packages": list(dict.fromkeys(packages)), "notes": notes[:NOTES_MAX]}

    def pick(self, want: str) -> dict[str, Any]:
        """The newest visible version; the one that was named even where it is masked."""
        dep = importlib.import_module("portage.dep")
        errors = importlib.import_module("portage.exception")
        try:
            atom = dep.Atom(want, allow_repo=True)
        except errors.InvalidAtom as error:
            return {"kind": "invalid", "why": str(error)[:200]}
        best = self.database.xmatch("bestmatch-visible", atom)
        if best:
            return {"packages": [str(best)]}
        found = list(self.database.xmatch("match-all", atom))
        if not found:
            return self._unknown(atom)
        newest = str(found[-1])
        why = [str(reason)[:200] for reason in self._masked_by(newest)]
        if atom.operator == "=":
            return {"packages": [newest], "masked": why}
        return {"kind": "masked", "newest": newest, "masked": why}

    def _masked_by(self, cpv: str) -> list[Any]:
        reasons = self.portage.getmaskingstatus(cpv, self.settings, self.database)
        return list(reasons or ["something that Portage does not name"])

    def _unknown(self, atom: Any) -> dict[str, Any]:
        versions = [str(cpv) for cpv in self.database.cp_list(atom.cp)]
        if versions:
            return {"kind": "no_version", "others": versions[-SUGGESTIONS_MAX:][::-1]}
        return {"kind": "no_package", "others": self._like(atom.cp)}

    def _like(self, key: str) -> list[str]:
        """Packages whose names are like that one's. It takes 0.1 s in a tree of Gentoo's size."""
        if self._searches_left == 0:
            return []
        self._searches_left -= 1
        if self._every is None:
            self._every = self.database.cp_all()
        names = {other.partition("/")[2] for other in self._every}
        close = _close(key.partition("/")[2], names)
        found = [other for other in self._every if other.partition("/")[2] in close]
        return sorted(found, key=lambda other: close.index(other.partition("/")[2]))[
            :SUGGESTIONS_MAX
        ]


class _Dependencies:
    """What the packages need of each other, with the USE flags that this host gives them."""

    def __init__(self, cpvs: Iterable[str]) -> None:
        self.portage = _portage()
        self.dep = importlib.import_module("portage.dep")
        self.errors = importlib.import_module("portage.exception")
        self.database = self.portage.db[self.portage.root]["porttree"].dbapi
        self.settings = self.portage.config(clone=self.portage.settings)
        self.given: dict[str, list[Any]] = {}
        self.packages: list[Any] = []
        for text in dict.fromkeys(cpvs):
            try:
                package = self.database._pkg_str(text, None)
            except (KeyError, self.errors.PortageException):
                continue
            self.packages.append(package)
            self.given.setdefault(package.cp, []).append(package)

    def edges(self, until: float) -> list[list[Any]]:
        found: dict[tuple[str, str], bool] = {}
        for package in self.packages:
            if time.monotonic() > until:
                raise TimeoutError("it takes too long to find who needs whom")
            for keys, build in ((BUILD_KEYS, True), (RUN_KEYS, False)):
                for other in self._needed(package, keys, VIRTUAL_DEPTH_MAX):
                    pair = (str(other), str(package))
                    found[pair] = found.get(pair, False) or build
        return [[before, after, build] for (before, after), build in sorted(found.items())]

    def _needed(self, package: Any, keys: tuple[str, ...], depth: int) -> Iterable[Any]:
        """Of the given packages, all that may satisfy a dependency: of alternatives each one. A
        virtual that is not among them stands for what it needs itself."""
        for atom in self._atoms(package, keys):
            given = self.given.get(atom.cp)
            if given is not None:
                yield from self.dep.match_from_list(atom.without_use, given)
            elif atom.cp.startswith("virtual/") and depth:
                best = self.database.xmatch("bestmatch-visible", atom.without_use)
                if best:
                    yield from self._needed(best, ("RDEPEND",), depth - 1)

    def _atoms(self, package: Any, keys: tuple[str, ...]) -> Iterable[Any]:
        try:
            metadata = self.database.aux_get(package, ["EAPI", "IUSE", *keys])
            self.settings.setcpv(package, mydb=self.database)
            atoms = self.dep.use_reduce(
                " ".join(metadata[2:]), uselist=self.settings["PORTAGE_USE"].split(),
                eapi=metadata[0], token_class=self.dep.Atom, flat=True,
            )  # fmt: skip
        except (KeyError, self.errors.PortageException):
            return []  # an ebuild that cannot be read is told of by its own build
        return [atom for atom in atoms if isinstance(atom, self.dep.Atom) and not atom.blocker]


def _portage() -> Any:
    return importlib.import_module("portage")


def _timestamp(database: Any) -> str:
    """When the main repository was last synchronized, in its own words."""
    main = database.repositories.mainRepo()
    if main is None:
        return ""
    try:
        with open(os.path.join(main.location, "metadata", "timestamp.chk")) as file:
            return file.readline(128).strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _close(name: str, others: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, list(others), n=SUGGESTIONS_MAX, cutoff=0.7)


if __name__ == "__main__":
    main()
