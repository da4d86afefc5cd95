"""Packages by name: what users ask for, and versions in order, as the Package Manager Specification
has both. Whatever is not well formed is refused with a hint; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from swarmd.domain.errors import Invalid, TooLarge

ATOM_CHARS_MAX = 255
ATOMS_MAX = 1000
"""That one request may name; what its sets expand to is bounded where they are expanded."""

_VERSION = r"[0-9]+(?:\.[0-9]+)*[a-z]?(?:_(?:alpha|beta|pre|rc|p)[0-9]*)*(?:-r[0-9]+)?"
_TAIL = re.compile(rf"-({_VERSION})\Z")
_WHOLE_VERSION = re.compile(
    r"([0-9]+(?:\.[0-9]+)*)([a-z]?)((?:_(?:alpha|beta|pre|rc|p)[0-9]*)*)(?:-r([0-9]+))?"
)
_SUFFIX = re.compile(r"_(alpha|beta|pre|rc|p)([0-9]*)")
_CATEGORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9+_.\-]*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9+_\-]*")
_SLOT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9+_.\-]*")
_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]*")
_USE = re.compile(r"-?[A-Za-z0-9][A-Za-z0-9+_@\-]*(?:\([+\-]\))?")
_SET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9+_.\-]*")
_OPERATORS = (">=", "<=", "~", "=", ">", "<")
_RANKS = {"alpha": 0, "beta": 1, "pre": 2, "rc": 3, "p": 5}
_END = (4, 0)
"""Where the suffixes end: 1_rc comes before 1, and 1_p after it."""

EXAMPLES = (
    "write dev-libs/openssl, dev-libs/openssl-3.2.0, >=dev-libs/openssl-3:0, or a set: @world"
)


class Cpv(msgspec.Struct, frozen=True):
    """One version of a package."""

    category: str
    name: str
    version: str
    """With its revision, as it was written."""

    @property
    def key(self) -> str:
        """What its history is kept by."""
        return f"{self.category}/{self.name}"

    @property
    def file_stem(self) -> str:
        return f"{self.name}-{self.version}"

    @property
    def upstream(self) -> str:
        """The version without its revision."""
        return self.version.partition("-r")[0]

    @property
    def revision(self) -> int:
        return int(self.version.partition("-r")[2] or 0)

    def __str__(self) -> str:
        return f"{self.key}-{self.version}"


class Atom(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which versions of one package are wanted; without an operator, any."""

    category: str
    name: str
    operator: str = ""
    version: str | None = None
    glob: bool = False
    """`=cat/pkg-1.2*`: any version that begins so."""
    slot: str | None = None
    """With a sub-slot after a slash, where one was named."""
    repository: str | None = None
    use: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.category}/{self.name}"

    @property
    def literal(self) -> Cpv | None:
        """The one version that is meant, where it is one."""
        if self.version is None or self.operator != "=" or self.glob:
            return None
        return Cpv(self.category, self.name, self.version)

    def __str__(self) -> str:
        text = f"{self.operator}{self.key}"
        if self.version is not None:
            text += f"-{self.version}{'*' if self.glob else ''}"
        text += f":{self.slot}" if self.slot else ""
        text += f"::{self.repository}" if self.repository else ""
        return text + (f"[{','.join(self.use)}]" if self.use else "")


class PackageSet(msgspec.Struct, frozen=True):
    name: str

    def __str__(self) -> str:
        return f"@{self.name}"


Want = Atom | PackageSet


def parse_all(texts: Sequence[object]) -> tuple[Want, ...]:
    """TooLarge: more than ATOMS_MAX. Invalid: of the first that is none, with its index."""
    if len(texts) > ATOMS_MAX:
        raise TooLarge(
            f"{len(texts)} packages at once; at most {ATOMS_MAX} are taken: split them",
            field="packages",
        )
    wants = []
    for index, text in enumerate(texts):
        try:
            wants.append(parse(text))
        except Invalid as error:
            raise Invalid(error.message, **error.facts, index=index) from None
    return tuple(wants)


def parse(text: object) -> Want:
    """What a user wrote. `cat/pkg-1.2` means exactly that version. Invalid: it is nothing that the
    specification knows, or something that only an ebuild may write."""
    if not isinstance(text, str) or not text:
        raise _refusal(text, "is no package name")
    if len(text) > ATOM_CHARS_MAX:
        raise _refusal(text, f"is longer than {ATOM_CHARS_MAX} characters")
    if text.startswith("@"):
        if not _SET.fullmatch(text, 1):
            raise _refusal(text, "is no name of a set")
        return PackageSet(text[1:])
    if text.startswith("!"):
        raise _refusal(text, "is a blocker, which cannot be built")
    rest, use = _take_use(text)
    rest, colons, repository = rest.partition("::")
    if colons and (not _REPOSITORY.fullmatch(repository) or _TAIL.search(repository)):
        raise _refusal(text, "names no well-formed repository after ::")
    rest, slot = _take_slot(text, rest)
    operator = next((op for op in _OPERATORS if rest.startswith(op)), "")
    rest = rest.removeprefix(operator)
    glob = rest.endswith("*")
    if glob and operator != "=":
        raise _refusal(text, "has a * elsewhere than after =category/package-version")
    category, name, version = _split(text, rest.removesuffix("*"))
    if operator and version is None:
        raise _refusal(text, f"has the operator {operator}, and no version after the name")
    if operator == "~" and version is not None and "-r" in version:
        raise _refusal(text, "asks with ~ for any revision, and names one")
    if version is not None:
        operator = operator or "="
    return Atom(category, name, operator, version, glob, slot, repository or None, use)


def split(text: object) -> Cpv:
    """`category/package-version`, and nothing else. Invalid: it is something else."""
    if not isinstance(text, str) or not text or len(text) > ATOM_CHARS_MAX:
        raise _refusal(text, "is no category/package-version")
    category, name, version = _split(text, text)
    if version is None:
        raise _refusal(text, "has no version")
    return Cpv(category, name, version)


def version_key(version: str) -> tuple[object, ...]:
    """Sorts versions as the specification orders them. Invalid: it is no version."""
    match = _WHOLE_VERSION.fullmatch(version) if len(version) <= ATOM_CHARS_MAX else None
    if match is None:
        raise Invalid(f"{version[:80]!r} is no version; write for example 3.2.0 or 1.2_rc1-r2")
    numbers, letter, suffixes, revision = match.groups()
    first, *others = numbers.split(".")
    ranks = tuple((_RANKS[word], int(n or 0)) for word, n in _SUFFIX.findall(suffixes))
    components = (int(first), *map(_component_key, others))
    return (components, letter, (*ranks, _END), int(revision or 0))


def vercmp(one: str, other: str) -> int:
    """Below zero, zero, or above it: the first is older, of the same rank, or newer."""
    a, b = version_key(one), version_key(other)
    return (a > b) - (a < b)


def newest(versions: Iterable[str]) -> str | None:
    return max(versions, key=version_key, default=None)


def _component_key(digits: str) -> tuple[int, int, str]:
    """A leading zero makes a fraction of it, which comes before every whole number."""
    if digits.startswith("0"):
        return (0, 0, digits.rstrip("0"))
    return (1, int(digits), "")


def _take_use(text: str) -> tuple[str, tuple[str, ...]]:
    if not text.endswith("]"):
        return text, ()
    rest, bracket, inside = text[:-1].partition("[")
    flags = tuple(inside.split(","))
    if not bracket or not all(map(_USE.fullmatch, flags)):
        raise _refusal(text, "has USE flags that are not of the form [flag,-other]")
    return rest, flags


def _take_slot(text: str, rest: str) -> tuple[str, str | None]:
    rest, colon, slot = rest.partition(":")
    if not colon:
        return rest, None
    if slot.endswith(("=", "*")):
        raise _refusal(text, "has a slot operator, which only an ebuild may write")
    parts = slot.split("/")
    if len(parts) > 2 or not all(map(_SLOT.fullmatch, parts)):
        raise _refusal(text, "names no well-formed slot after :")
    return rest, slot


def _split(text: str, cpv: str) -> tuple[str, str, str | None]:
    category, slash, rest = cpv.partition("/")
    if not slash:
        raise _refusal(text, "names no category")
    if not _CATEGORY.fullmatch(category):
        raise _refusal(text, "has no well-formed category before the /")
    tail = _TAIL.search(rest)
    name = rest[: tail.start()] if tail else rest
    if not _NAME.fullmatch(name):
        raise _refusal(text, "has no well-formed package name after the /")
    if _TAIL.search(name):
        raise _refusal(text, "has a name that itself ends in a version")
    return category, name, tail[1] if tail else None


def _refusal(text: object, why: str) -> Invalid:
    shown = repr(text[:80]) if isinstance(text, str) else f"a value of type {type(text).__name__}"
    return Invalid(f"{shown} {why}; {EXAMPLES}", field="packages")
