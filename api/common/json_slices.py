"""JSON text taken apart without decoding it, so that no body is decoded in one long call.

Nothing here judges whether a part is valid: each part goes through the decoder afterwards, and
every loop lets other tasks run after 64 KiB or what costs as much.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from api.common.texts import Text
from swarmd.domain.errors import Invalid, TooLarge

_DEPTH_MAX = 64
_WINDOW_BYTES = 64 * 1024
_TOKEN_COST_BYTES = 64
"""What looking at one bracket or quote costs, in bytes of plain scanning."""
_NODES_A_TURN = 2000
_SPACE = b" \t\r\n"
_MARK = "\ufdd0swarmd-long:"

STRING_CHARS_MAX = 512 * 1024
"""Of one string that is no Text: no name, argument or the like may be nearly as long."""
AT_ONCE_BYTES_MAX = 1024 * 1024
"""Up to here the decoder finds the elements of an array in at most 2 ms."""
_parts_of = msgspec.json.Decoder(list[msgspec.Raw]).decode
_STRUCTURE = re.compile(rb'["\[\]{}]')
_STRUCTURE_OR_COMMA = re.compile(rb'["\[\]{},]')
# Whole characters only: an escape, or a pair of surrogates, is never cut in two.
_STRING_PART = re.compile(
    rb'(?:[^"\\]++|\\[^u]|\\u(?![dD][89abAB])....|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)*+', re.DOTALL
)
_TO_A_HALF = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?![dD][89a-fA-F])|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)*+", re.DOTALL
)
_HALF = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_HALF_BYTES = len(rb"\ud800")


async def split_array(body: bytes, *, count_max: int, element_bytes_max: int) -> list[bytes]:
    """The elements of a top-level array, as they were written."""
    if len(body) <= AT_ONCE_BYTES_MAX and (whole := _split_at_once(body)) is not None:
        if len(whole) > count_max:
            raise TooLarge(f"the array has more than {count_max} elements", limit=count_max)
        if all(len(part) <= element_bytes_max for part in whole):
            return whole
    scan = _Scan(body)
    start = scan.skip_space(0)
    if body[start : start + 1] != b"[":
        raise Invalid("the body has to be a JSON array")
    parts: list[bytes] = []
    depth, at, begin = 1, start + 1, start + 1
    while True:
        at = await scan.find(_STRUCTURE_OR_COMMA if depth == 1 else _STRUCTURE, at)
        token = body[at]
        at += 1
        if token == 0x22:
            at, _ = await scan.string(at)
            continue
        if token in b"[{":
            depth = _deeper(depth)
            continue
        if token != 0x2C:
            depth -= 1
            if depth:
                continue
        if at - 1 - begin > element_bytes_max + len(_SPACE):
            raise TooLarge(
                f"element {len(parts)} has more than {element_bytes_max} bytes",
                index=len(parts),
            )
        part = body[begin : at - 1].strip(_SPACE)
        if not part and (parts or token == 0x2C):
            raise Invalid(f"the body is not JSON: element {len(parts)} is missing")
        if part:
            if len(parts) == count_max:
                raise TooLarge(f"the array has more than {count_max} elements", limit=count_max)
            parts.append(part)
        begin = at
        if not depth:
            break
    if token != 0x5D or scan.skip_space(at) != len(body):
        raise Invalid("the body is not JSON: something follows the array")
    return parts


def _split_at_once(body: bytes) -> list[bytes] | None:
    """By the decoder, a hundred times as quick. None where it does not like the body: the way that
    takes its time says what is wrong with it."""
    try:
        parts = [bytes(part) for part in _parts_of(body)]
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    may_be_deep = any(part.count(b"[") + part.count(b"{") > _DEPTH_MAX for part in parts)
    return None if may_be_deep else parts


@dataclass(slots=True)
class Folded:
    """A text whose long strings were taken out and stand apart, decoded, in pieces."""

    skeleton: bytes
    long_strings: list[list[str]]

    async def unfold(self, value: object) -> object:
        """`value`, decoded from the skeleton, with each long string back in its place, once.
        Raises TooLarge for one that is no Text and too long for anything else."""
        left = {f"{_MARK}{at}": pieces for at, pieces in enumerate(self.long_strings)}
        top = [value]
        stack: list[Any] = [top]
        nodes = 0
        while stack and left:
            node = stack.pop()
            for key, held in members_of(node):
                nodes += 1
                if nodes % _NODES_A_TURN == 0:
                    await trio.lowlevel.checkpoint()
                text = held.pieces[0] if isinstance(held, Text) else held
                if isinstance(text, str):
                    if text.startswith(_MARK) and (pieces := left.pop(text, None)) is not None:
                        is_text = isinstance(held, Text)
                        _put(node, key, Text(pieces) if is_text else _joined(pieces))
                elif not isinstance(held, (int, float, type(None))):
                    stack.append(held)
        return top[0]


def members_of(node: object) -> Iterable[tuple[Any, object]]:
    """What a decoded value holds, by name or place; nothing in what holds nothing."""
    if isinstance(node, msgspec.Struct):
        return ((name, getattr(node, name)) for name in node.__struct_fields__)
    if isinstance(node, dict):
        return node.items()
    return enumerate(node) if isinstance(node, (list, tuple)) else ()


def _put(node: Any, key: Any, text: str | Text) -> None:
    if isinstance(node, msgspec.Struct):
        msgspec.structs.force_setattr(node, key, text)  # nobody has seen it yet
    else:
        node[key] = text


def _joined(pieces: list[str]) -> str:
    chars = sum(map(len, pieces))
    if chars > STRING_CHARS_MAX:
        raise TooLarge(f"a string has {chars} characters; at most {STRING_CHARS_MAX} are taken")
    return "".join(pieces)


async def fold(body: bytes) -> Folded:
    """Take out each string longer than a window."""
    scan = _Scan(body)
    skeleton: list[bytes] = []
    long_strings: list[list[str]] = []
    depth, at, kept = 0, 0, 0
    while (found := await scan.find(_STRUCTURE, at, required=False)) >= 0:
        token = body[found]
        at = found + 1
        if token in b"[{":
            depth = _deeper(depth)
        elif token != 0x22:
            depth -= 1
        else:
            at, cuts = await scan.string(at)
            if at - found > _WINDOW_BYTES:
                skeleton += (body[kept:found], f'"{_MARK}{len(long_strings)}"'.encode())
                kept = at
                long_strings.append(await _decode_string(body, [found + 1, *cuts]))
    skeleton.append(body[kept:])
    return Folded(b"".join(skeleton), long_strings)


def half_character(text: bytes) -> str | None:
    """Of JSON text, where it is malformed because an escape of a surrogate stands alone: so."""
    before = _TO_A_HALF.match(text)
    half = _HALF.match(text, before.end() if before else 0)
    return None if half is None else f"{half[0].decode()} is half of a character"


async def _decode_string(body: bytes, cuts: list[int]) -> list[str]:
    decode = msgspec.json.Decoder(str).decode
    pieces: list[str] = []
    for begin, end in itertools.pairwise(cuts):
        try:
            pieces.append(decode(b'"%b"' % body[begin:end]))
        except (msgspec.DecodeError, ValueError):
            why = half_character(body[begin:end]) or "a string is malformed"
            raise Invalid(f"the body is not JSON: {why} near byte {begin}") from None
        await trio.lowlevel.checkpoint()
    return pieces


def _deeper(depth: int) -> int:
    if depth >= _DEPTH_MAX:
        raise Invalid(f"the body is nested too deeply; at most {_DEPTH_MAX} levels")
    return depth + 1


class _Scan:
    """Finds quotes and brackets, and yields to other tasks by what that cost."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._cost = 0

    def skip_space(self, at: int) -> int:
        body = self._body
        while at < len(body) and body[at] in _SPACE:
            at += 1
            if at > 4096 and body[at - 4096 : at].isspace():
                raise Invalid("the body is not JSON: thousands of spaces in a row")
        return at

    async def find(self, what: re.Pattern[bytes], at: int, *, required: bool = True) -> int:
        body = self._body
        while at < len(body):
            found = what.search(body, at, at + _WINDOW_BYTES)
            reached = found.start() if found else min(at + _WINDOW_BYTES, len(body))
            await self._pay(reached - at + _TOKEN_COST_BYTES)
            if found:
                return reached
            at = reached
        if required:
            raise Invalid("the body is not JSON: it ends in the middle")
        return -1

    async def string(self, at: int) -> tuple[int, list[int]]:
        """`at` is behind the opening quote: the place behind the closing one, and the places
        where the string may be cut, the closing quote the last of them."""
        body = self._body
        cuts: list[int] = []
        while True:
            found = _STRING_PART.match(body, at, at + _WINDOW_BYTES)
            end = found.end() if found else at
            await self._pay(end - at + _TOKEN_COST_BYTES)
            if body[end : end + 1] == b'"':
                cuts.append(end)
                return end + 1, cuts
            while end > at and end < len(body) and 0x80 <= body[end] < 0xC0:
                end -= 1  # back to the first byte of a character
            if end == at or end >= len(body):
                why = half_character(body[end : end + _HALF_BYTES]) or "a string is malformed"
                raise Invalid(f"the body is not JSON: {why} near byte {end}")
            cuts.append(end)
            at = end

    async def _pay(self, cost: int) -> None:
        self._cost += cost
        if self._cost > _WINDOW_BYTES:
            self._cost = 0
            await trio.lowlevel.checkpoint()
