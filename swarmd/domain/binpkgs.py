"""Binary packages: what is known of each, the index of a binhost, and why none of them fits.

What a package says of itself was written by who built it. `described` lets through only names and
values that can stand in a path, in a line of the index and on a terminal, each within its bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from swarmd.domain.errors import Invalid, TooLarge
from swarmd.domain.packages import split

VALUE_BYTES_MAX = 64 * 1024
METADATA_BYTES_MAX = 96 * 1024
"""All that is kept of one package: an entry of the log holds it."""
DEPTH_MAX = 64
EXPLAINED_MAX = 20
INDEX_VERSION = "0"

Format = Literal["gpkg", "xpak"]
SUFFIXES: dict[Format, tuple[str, str]] = {
    "gpkg": (".gpkg.tar", ".gpkg.tar"),
    "xpak": (".tbz2", ".xpak"),
}
"""Of a file's name: where a version has one instance, and where it may have several."""

DEPENDENCIES = ("BDEPEND", "DEPEND", "IDEPEND", "PDEPEND", "RDEPEND")
_CONDITIONAL = (*DEPENDENCIES, "LICENSE", "PROPERTIES", "RESTRICT")
_DISPENSABLE = ("PROVIDES", "REQUIRES")
"""Libraries by soname. Portage asks for them only where it is told to, and they may be very many:
one over the bound is left out rather than the package refused."""
_SHOWN = (*_CONDITIONAL, *_DISPENSABLE, "CHOST", "DEFINED_PHASES", "EAPI", "IUSE", "KEYWORDS",
          "SLOT", "USE", "USER_PATCHES", "repository")  # fmt: skip
FLAGS = ("CFLAGS", "CXXFLAGS", "LDFLAGS")
"""Not in the index; kept to explain."""
KEPT = frozenset({*_SHOWN, *FLAGS})
WANTED_KEYS = KEPT | {"CATEGORY", "PF", "BUILD_ID", "BUILD_TIME"}

_SILENT = {"EAPI": "0", "SLOT": "0"}
"""Values that Portage's index leaves out, as it does empty ones."""
_INHERITED = {"CHOST": "CHOST", "repository": "REPO"}
"""Left out where the header says the same."""

_SLOT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9+_.-]{0,63}(?:/[A-Za-z0-9_][A-Za-z0-9+_.-]{0,63})?")
_HEADER_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


class BinPkg(msgspec.Struct, frozen=True, omit_defaults=True):
    """One binary package: a blob, and what the index says of it."""

    category: str
    name: str
    version: str
    """With its revision."""
    format: Format
    sha256: str
    """The blob it is."""
    size_bytes: int
    md5: str
    sha1: str
    mtime_s: int = 0
    build_id: int = 0
    """Instances of one version are told apart by it; 0: there is one alone."""
    build_time_s: int = 0
    metadata: dict[str, str] = {}
    """By Portage's keys, only such as are kept and have a value."""

    @property
    def pf(self) -> str:
        return f"{self.name}-{self.version}"

    @property
    def cpv(self) -> str:
        return f"{self.category}/{self.name}-{self.version}"

    @property
    def package(self) -> str:
        """Category and name."""
        return f"{self.category}/{self.name}"

    @property
    def use(self) -> frozenset[str]:
        """The flags of its own that are on; the profile's, such as elibc_glibc, are not here."""
        return frozenset(self.metadata.get("USE", "").split()) & self.flags

    @property
    def flags(self) -> frozenset[str]:
        """The flags it has."""
        return frozenset(flag.lstrip("+-") for flag in self.metadata.get("IUSE", "").split())

    @property
    def slot(self) -> str:
        return self.metadata.get("SLOT", "0")


class Measured(msgspec.Struct, frozen=True):
    """What the file is, whatever it says of itself."""

    format: Format
    sha256: str
    size_bytes: int
    md5: str
    sha1: str
    mtime_s: int


def described(said: Mapping[str, str], file: Measured) -> BinPkg:
    """The package that a file's metadata describes. Invalid: a key is missing, or a value cannot
    be. TooLarge: more is said than is kept of one."""
    values = {key: " ".join(said[key].split()) for key in sorted(WANTED_KEYS & said.keys())}
    for key, value in values.items():
        # A line of the index ends at any kind of line end; a terminal obeys its control codes.
        if not value.isprintable():
            raise Invalid(f"the package's {key} holds characters that cannot be printed")
    cpv = split(f"{values.pop('CATEGORY', '')}/{values.pop('PF', '')}")
    if not _SLOT.fullmatch(values.get("SLOT", "")):
        raise Invalid("the package's SLOT must be a slot's name, such as 0 or 0/1.1")
    build_id, build_time_s = (
        _number(key, values.pop(key, "") or "0") for key in ("BUILD_ID", "BUILD_TIME")
    )
    use = frozenset(values.get("USE", "").split())
    for key in _CONDITIONAL:
        if key in values:
            values[key] = reduced(values[key], use)
    for key in _DISPENSABLE:
        if len(values.get(key, "").encode()) > VALUE_BYTES_MAX:
            del values[key]
    kept = {key: value for key, value in values.items() if value}
    for key, value in kept.items():
        if len(value.encode()) > VALUE_BYTES_MAX:
            raise TooLarge(f"the package's {key} has more than {VALUE_BYTES_MAX} bytes")
    for key in _DISPENSABLE:
        if sum(len(value.encode()) for value in kept.values()) > METADATA_BYTES_MAX:
            kept.pop(key, None)
    if sum(len(value.encode()) for value in kept.values()) > METADATA_BYTES_MAX:
        raise TooLarge(f"the package says more than {METADATA_BYTES_MAX} bytes of itself")
    return BinPkg(
        cpv.category, cpv.name, cpv.version, file.format, file.sha256, file.size_bytes, file.md5,
        file.sha1, file.mtime_s, build_id, build_time_s, kept,
    )  # fmt: skip


def path_of(pkg: BinPkg) -> str:
    """Where it lies in the binhost, as Portage lays out several instances of a version."""
    alone, of_several = SUFFIXES[pkg.format]
    if pkg.build_id:
        return f"{pkg.category}/{pkg.name}/{pkg.pf}-{pkg.build_id}{of_several}"
    return f"{pkg.category}/{pkg.pf}{alone}"


def placed(pkg: BinPkg, others: Iterable[BinPkg]) -> BinPkg:
    """The package with a build id of its own among the others: builders count for themselves, so
    two of them build a first instance. It keeps the one it came with where that is free."""
    taken = {other.build_id for other in others if other.cpv == pkg.cpv}
    if pkg.build_id and pkg.build_id not in taken:
        return pkg
    return msgspec.structs.replace(pkg, build_id=max(taken, default=0) + 1)


def index(pkgs: Iterable[BinPkg], header: Mapping[str, str], timestamp_s: int) -> Iterator[bytes]:
    """The file `Packages`, a package a piece, the same for the same packages on every node. A host
    takes a new one only if its time is later: whoever changes the packages raises it, also twice
    within a second. Invalid: a header that no line can hold."""
    ordered = sorted(pkgs, key=_order)
    head = {key: value for key, value in header.items() if value}
    head |= {"PACKAGES": str(len(ordered)), "TIMESTAMP": str(timestamp_s), "VERSION": INDEX_VERSION}
    for key, value in head.items():
        if not _HEADER_KEY.fullmatch(key) or not value.isprintable():
            raise Invalid(f"{key[:64]!r} and its value cannot be a line of the index")
    # Portage sorts by its own names: it calls REPO "repository".
    lines = sorted(head.items(), key=lambda line: "repository" if line[0] == "REPO" else line[0])
    yield _paragraph(lines)
    for pkg in ordered:
        yield _paragraph(_entry(pkg, head))


def _order(pkg: BinPkg) -> tuple[str, int, int, str]:
    return pkg.cpv, pkg.build_id, pkg.build_time_s, pkg.sha256


def _entry(pkg: BinPkg, head: Mapping[str, str]) -> list[tuple[str, str]]:
    lines = {key: pkg.metadata.get(key, "") for key in _SHOWN}
    lines |= {
        "BUILD_ID": str(pkg.build_id or ""),
        "BUILD_TIME": str(pkg.build_time_s or ""),
        "CPV": pkg.cpv,
        "MD5": pkg.md5,
        "PATH": path_of(pkg),
        "SHA1": pkg.sha1,
        "SIZE": str(pkg.size_bytes),
        "_mtime_": str(pkg.mtime_s),
    }
    for key, name in _INHERITED.items():
        if lines[key] == head.get(name):
            lines[key] = ""
    names = {"_mtime_": "MTIME", "repository": "REPO"}
    return [
        (names.get(key, key), value)
        for key, value in sorted(lines.items())
        if value and value != _SILENT.get(key)
    ]


def _paragraph(lines: Iterable[tuple[str, str]]) -> bytes:
    return "".join(f"{key}: {value}\n" for key, value in [*lines]).encode() + b"\n"


def _number(key: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise Invalid(f"the package's {key} must be a number")
    return int(text)


def reduced(text: str, use: frozenset[str]) -> str:
    """A dependency with its conditions on USE flags decided, as Portage's index holds it; one
    without conditions stays as it is. Invalid: its parentheses do not match."""
    tokens = text.split()
    if not any(len(token) > 1 and token.endswith("?") and token != "??" for token in tokens):
        return text
    stack: list[tuple[str, list[str]]] = [("", [])]
    ahead = ""
    for token in tokens:
        if ahead and token != "(":
            raise Invalid(f"{ahead!r} in a dependency must be followed by a parenthesis")
        if token == "(":
            if len(stack) > DEPTH_MAX:
                raise Invalid(f"a dependency may be nested {DEPTH_MAX} deep")
            stack.append((ahead, []))
            ahead = ""
        elif token == ")":
            operator, group = stack.pop()
            if not stack:
                raise Invalid("a dependency closes a parenthesis that it did not open")
            stack[-1][1].extend(_decided(operator, group, use))
        elif token.endswith("?") or token in ("||", "^^"):
            ahead = token
        else:
            stack[-1][1].append(token)
    if ahead or len(stack) > 1:
        raise Invalid("a dependency opens a parenthesis that it does not close")
    return " ".join(stack[0][1])


def _decided(operator: str, group: list[str], use: frozenset[str]) -> list[str]:
    """What a group becomes for what it stands in."""
    if operator in ("||", "^^", "??"):
        # The alternatives of one are a whole; their parentheses stay.
        return [f"{operator} ( {' '.join(group)} )"] if group else []
    if operator:
        flag = operator[:-1]
        return group if (flag[1:] not in use if flag[0] == "!" else flag in use) else []
    return [f"( {' '.join(group)} )"] if len(group) > 1 else group


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a host wants to install. What is None or empty is any to it."""

    package: str
    """Category and name."""
    accepts: Callable[[str], bool] | None = None
    """Of versions, such as an atom with an operator takes; the words then say what it is."""
    version: str = ""
    """One version; or, where accepts is given, its words: `>=3.2`."""
    slot: str = ""
    use: Mapping[str, bool] = field(default_factory=dict)
    """The flags that the host has set, on or off. Flags that a package lacks do not matter."""
    named: Mapping[str, bool | None] = field(default_factory=dict)
    """Those of them that the atom names, which a package has to have; or else what it counts as."""
    repository: str = ""
    chost: str = ""
    keywords: frozenset[str] | None = None
    """ACCEPT_KEYWORDS."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """CFLAGS and its like. Portage takes a package whatever these are; its code may not run."""

    def takes(self, version: str) -> bool:
        if self.accepts is not None:
            return self.accepts(version)
        return not self.version or version == self.version


def explain(wanted: Wanted, pkgs: Iterable[BinPkg]) -> list[str]:
    """Why none of the packages fits, in words: nothing if one does, else a line for each that
    comes near, the nearest first."""
    of_name = sorted((pkg for pkg in pkgs if pkg.package == wanted.package), key=_order)
    if not of_name:
        return [f"there is no binary package of {wanted.package}"]
    of_version = [pkg for pkg in of_name if wanted.takes(pkg.version)]
    if not of_version:
        there = list(dict.fromkeys(pkg.version for pkg in of_name))
        more = f" and {len(there) - EXPLAINED_MAX} more" if len(there) > EXPLAINED_MAX else ""
        return [
            f"there is no binary package of {wanted.package} in version {wanted.version}, "
            f"only in {', '.join(there[:EXPLAINED_MAX])}{more}"
        ]
    found = [(differences(wanted, pkg), pkg) for pkg in of_version]
    if any(not words for words, _ in found):
        return []
    found.sort(key=lambda one: (len(one[0]), _order(one[1])))
    lines = [f"{_instance(pkg)}: {'; '.join(words)}" for words, pkg in found[:EXPLAINED_MAX]]
    if len(found) > EXPLAINED_MAX:
        lines.append(f"and {len(found) - EXPLAINED_MAX} more that differ further")
    return lines


def differences(wanted: Wanted, pkg: BinPkg) -> list[str]:
    """In what a package is not the one that is wanted: USE flags one by one."""
    words = []
    if wanted.slot and wanted.slot not in (pkg.slot, pkg.slot.split("/")[0]):
        words.append(f"it is for slot {pkg.slot}, wanted is {wanted.slot}")
    for flag in sorted(pkg.flags & wanted.use.keys()):
        on = flag in pkg.use
        if on != wanted.use[flag]:
            words.append(f"USE flag {flag} is {_switch(on)}, wanted {_switch(not on)}")
    # A profile's own flags, such as elibc_glibc, are in USE alone.
    own = pkg.flags | frozenset(pkg.metadata.get("USE", "").split())
    for flag in sorted(wanted.named.keys() - own):
        counts = wanted.named[flag]
        if counts != wanted.use.get(flag):
            words.append(f"it has no USE flag {flag}, wanted {_switch(wanted.use[flag])}")
    repository = pkg.metadata.get("repository", "")
    if wanted.repository and repository != wanted.repository:
        of = f"repository {repository}" if repository else "no repository that is known"
        words.append(f"it is of {of}, wanted is {wanted.repository}")
    chost = pkg.metadata.get("CHOST", "")
    if wanted.chost and chost != wanted.chost:
        words.append(f"it is built for CHOST {chost or 'none'}, the host is {wanted.chost}")
    if wanted.keywords is not None and not _accepted(pkg, wanted.keywords):
        has = pkg.metadata.get("KEYWORDS", "") or "none"
        accepted = " ".join(sorted(wanted.keywords)) or "none"
        words.append(f"its keywords are {has}, accepted are {accepted}")
    for key in FLAGS:
        built = pkg.metadata.get(key, "")
        if key in wanted.flags and built.split() != wanted.flags[key].split():
            words.append(
                f'it is built with {key} "{built}", the host has "{wanted.flags[key]}" '
                "(Portage would install it all the same)"
            )
    return words


def _accepted(pkg: BinPkg, accepted: frozenset[str]) -> bool:
    if "**" in accepted:
        return True
    keywords = {word for word in pkg.metadata.get("KEYWORDS", "").split() if word[0] != "-"}
    if "~*" in accepted and keywords:
        return True
    stable = {word for word in keywords if word[0] != "~"}
    return bool(
        keywords & accepted
        or ("*" in accepted and stable)
        or stable & {word.removeprefix("~") for word in accepted}
    )


def _switch(on: bool) -> str:
    return "on" if on else "off"


def _instance(pkg: BinPkg) -> str:
    return f"{pkg.cpv} (build {pkg.build_id})" if pkg.build_id else pkg.cpv
