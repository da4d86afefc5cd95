"""Texts of megabytes in requests and answers: always pieces, since to make one string of them, or
one piece of JSON, would hold the event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import msgspec
import trio

from api.common.streams import stream_answer
from api.common.surface import JSON, Response, encode_json, json_answer

WHOLE_CHARS_MAX = 64 * 1024
"""Up to here a text is cheap as one string; a piece has no more."""


class Text:
    """A text of a body, as the pieces that it was decoded in. It may hold any character."""

    __slots__ = ("pieces",)

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces = tuple(pieces)

    def start(self, chars: int) -> str:
        """So many characters of it, or all."""
        found = ""
        for piece in self.pieces:
            found += piece[: chars - len(found)]
            if len(found) >= chars:
                break
        return found


def text_hook(kind: type[object], value: object) -> object:
    """For decoders: a member of type Text, from a string."""
    if kind is not Text:
        return value  # the decoder judges whether it is of that kind
    if isinstance(value, str):
        return Text((value,))
    raise TypeError(f"Expected str, got {_JSON_NAMES.get(type(value), type(value).__name__)}")


_JSON_NAMES = {dict: "object", list: "array", type(None): "null"}

Held = str | msgspec.Raw
_MARKS = '"\\u0000first"', '"\\u0000second"'
"""They stand in the places of the texts; no other text of an answer may hold a NUL character."""


async def answer_with_texts(
    make: Callable[[Held, Held], object], first: Sequence[str], second: Sequence[str]
) -> Response:
    """The JSON of `make(first, second)`: encoded whole where they are short, else the rest of it
    first, and then the texts a piece at a time, put in their places."""
    if sum(map(len, first)) + sum(map(len, second)) <= WHOLE_CHARS_MAX:
        return json_answer(make("".join(first), "".join(second)))
    marks = tuple(mark.encode() for mark in _MARKS)
    shell = encode_json(make(msgspec.Raw(marks[0]), msgspec.Raw(marks[1])))
    head, _, rest = shell.partition(marks[0])
    middle, _, end = rest.partition(marks[1])
    parts = [head, *await _as_json(first), middle, *await _as_json(second), end]
    return stream_answer(_each(parts), content_type=JSON, length=sum(map(len, parts)))


async def _as_json(pieces: Iterable[str]) -> list[bytes]:
    parts = [b'"']
    for piece in pieces:
        for start in range(0, len(piece), WHOLE_CHARS_MAX):
            parts.append(msgspec.json.encode(piece[start : start + WHOLE_CHARS_MAX])[1:-1])
            await trio.lowlevel.checkpoint()
    return [*parts, b'"']


async def _each(parts: list[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
