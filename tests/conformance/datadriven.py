"""Files of directives: `command args`, input lines, `----`, the expected output, a blank line.

Lines that begin with # are comments between directives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SEPARATOR = "----"


@dataclass(frozen=True)
class Arg:
    """`key`, `key=value` or `key=(value, value)`."""

    key: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Directive:
    line: int
    """Where it begins, counted from 1."""
    command: str
    args: tuple[Arg, ...]
    input: str
    expected: str

    def values(self, key: str) -> tuple[str, ...] | None:
        for arg in self.args:
            if arg.key == key:
                return arg.values
        return None

    def value(self, key: str, default: str = "") -> str:
        values = self.values(key)
        return values[0] if values else default

    def flag(self, key: str) -> bool:
        return self.value(key) == "true"

    def number(self, key: str, default: int = 0) -> int:
        return int(self.value(key) or default)

    @property
    def bare(self) -> tuple[str, ...]:
        """The arguments that have no value."""
        return tuple(arg.key for arg in self.args if not arg.values)

    @property
    def nodes(self) -> tuple[int, ...]:
        return tuple(int(key) for key in self.bare)


def parse(text: str) -> Iterator[Directive]:
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        line = lines[at].strip()
        begin = at + 1
        at += 1
        if not line or line.startswith("#"):
            continue
        command, args = parse_line(line)
        until = lines.index(SEPARATOR, at)
        given = "\n".join(lines[at:until])
        at = until + 1
        end = at
        while end < len(lines) and lines[end].strip():
            end += 1
        yield Directive(begin, command, args, given, "\n".join(lines[at:end]))
        at = end


def parse_line(line: str) -> tuple[str, tuple[Arg, ...]]:
    words = list(_words(line))
    return words[0], tuple(_arg(word) for word in words[1:])


def replay(path: Path, handle: Callable[[Directive], str]) -> int:
    """Every directive of the file, compared to the letter. Returns how many there were."""
    count = 0
    for directive in parse(path.read_text(encoding="utf-8")):
        said = handle(directive).rstrip("\n")
        where = f"{path.name}:{directive.line}: {directive.command}"
        assert said == directive.expected, (
            f"{where}\n--- expected\n{directive.expected}\n--- said\n{said}"
        )
        count += 1
    return count


def _words(line: str) -> Iterator[str]:
    """Split at blanks, but for those in parentheses."""
    word, depth = "", 0
    for char in line:
        depth += (char == "(") - (char == ")")
        if char.isspace() and depth == 0:
            if word:
                yield word
            word = ""
        else:
            word += char
    if word:
        yield word


def _arg(word: str) -> Arg:
    key, equals, value = word.partition("=")
    if not equals:
        return Arg(key)
    if value.startswith("(") and value.endswith(")"):
        return Arg(key, tuple(item.strip() for item in value[1:-1].split(",")))
    return Arg(key, (value,))
