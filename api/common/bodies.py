"""JSON bodies into typed values; what is wrong is refused by the name of the field.

No body holds the event loop: one that is large is taken apart first (`json_slices`), and decoded
a piece at a time.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
import trio

from api.common import json_slices
from api.common.limits import KIB
from api.common.surface import Request
from api.common.texts import Text, text_hook
from swarmd.domain.errors import Invalid, TooLarge

if TYPE_CHECKING:
    import quart

T = TypeVar("T")

WHOLE_BYTES_MAX = 64 * KIB
"""Up to this size one call of the decoder is far below the 5 ms that a request may take."""
ELEMENT_BYTES_MAX = 256 * KIB
DEPTH_MAX = 64
_NODES_A_TURN = 2000
_NUL = b"\\u0000"
_SEARCHED_A_TURN = 1024 * 1024
_CHECKED_A_TURN = 256 * KIB
_ELEMENTS_A_TURN = 50
_BYTES_A_TURN = 64 * KIB
_NONE: frozenset[str] = frozenset()

_AT = re.compile(r"(?s)(.*?)(?: in key of .*)? - at (?:key in )?`\$?\.?(.*)`")
_MISSING = re.compile(r"Object missing required field `(.*)`")
_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\";\s]*)", re.IGNORECASE)


async def read_json(
    request: Request | quart.Request,
    kind: type[T],
    *,
    bytes_max: int | None = None,
    texts: frozenset[str] = _NONE,
) -> T:
    """The body as a `kind`, strictly. NUL characters are refused but in members named in `texts`,
    which are of type Text: what nobody executes may hold any character, and megabytes of them."""
    return await decode_body(await _read(request, bytes_max), kind, texts=texts)


async def decode_body(body: bytes, kind: type[T], *, texts: frozenset[str] = _NONE) -> T:
    """The same for a body that was read."""
    await _refuse_other_encodings(body)
    if len(body) <= WHOLE_BYTES_MAX:
        value = decode(body, kind)
    else:
        await trio.lowlevel.checkpoint()
        value = await _decode_large(body, kind)
        await trio.lowlevel.checkpoint()
    if await _may_hold_nul(body):
        await refuse_nul(value, texts)
    return value


async def read_json_array(
    request: Request | quart.Request,
    kind: type[T],
    *,
    count_max: int,
    bytes_max: int | None = None,
) -> list[T | Invalid]:
    """A top-level array, each element decoded by itself: one that is wrong stands as an Invalid
    in its place, with its `index`. Only a body that is no array is refused as a whole."""
    body = await _read(request, bytes_max)
    await _refuse_other_encodings(body)
    parts = await json_slices.split_array(
        body, count_max=count_max, element_bytes_max=ELEMENT_BYTES_MAX
    )
    return await decode_each(parts, kind)


async def decode_each(parts: Sequence[bytes | msgspec.Raw], kind: type[T]) -> list[T | Invalid]:
    """Each part decoded by itself, some at a time between the turns of other tasks."""
    outcomes: list[T | Invalid] = []
    bytes_in_turn = 0
    for index, part in enumerate(parts):
        data = bytes(part)
        bytes_in_turn += len(data)
        if index % _ELEMENTS_A_TURN == _ELEMENTS_A_TURN - 1 or bytes_in_turn > _BYTES_A_TURN:
            bytes_in_turn = 0
            await trio.lowlevel.checkpoint()
        try:
            value = decode(data, kind)
            if _NUL in data:
                await refuse_nul(value)
        except Invalid as refusal:
            refusal.facts["index"] = index
            outcomes.append(refusal)
        else:
            outcomes.append(value)
    return outcomes


def decode(body: bytes, kind: type[T]) -> T:
    """One call of the decoder, its complaints as Invalid."""
    try:
        value: T = _decoder(cast(Hashable, kind)).decode(body)
    except msgspec.ValidationError as error:
        raise _refusal(error) from None
    except msgspec.DecodeError as error:
        raise Invalid(f"the body is not JSON: {_malformed(body, str(error))}") from None
    except RecursionError:
        raise Invalid(f"the body is nested too deeply; at most {DEPTH_MAX} levels") from None
    except ValueError as error:  # bytes that are no UTF-8, numbers of thousands of digits
        raise Invalid(f"the body is not JSON in UTF-8: {_lower(str(error))}") from None
    return value


def _malformed(body: bytes, said: str) -> str:
    """What is wrong: in the decoder's words where we have no better ones."""
    if half := json_slices.half_character(body):
        return half
    if said == "Input data was truncated":
        return "it ends in the middle"
    return _lower(said.removeprefix("JSON is malformed: "))


async def _refuse_other_encodings(body: bytes) -> None:
    """A body is UTF-8 as a whole: the decoder looks at what somebody reads, and at no more."""
    if body.isascii():
        return
    at = 0
    while at < len(body):
        if at:
            await trio.lowlevel.checkpoint()
        piece = body[at : at + _CHECKED_A_TURN]
        try:
            at += codecs.utf_8_decode(piece, "strict", at + len(piece) == len(body))[1]
        except UnicodeDecodeError as error:
            at += error.start
            raise Invalid(
                f"the body is not UTF-8: byte {at} is 0x{body[at]:02x}; send JSON in UTF-8"
            ) from None


async def _may_hold_nul(body: bytes) -> bool:
    for start in range(0, len(body), _SEARCHED_A_TURN):
        if start:
            await trio.lowlevel.checkpoint()
        if body.find(_NUL, start, start + _SEARCHED_A_TURN + len(_NUL)) >= 0:
            return True
    return False


async def refuse_nul(value: object, texts: frozenset[str] = _NONE) -> None:
    """Raise Invalid for the first text with a NUL character: no argument, path or name of a
    process can hold one, and what cut it off silently would run something else."""
    stack: list[tuple[str, object]] = [("", value)]
    nodes = 0
    while stack:
        path, node = stack.pop()
        if isinstance(node, str):
            _refuse_nul_text(path, node)
            continue
        for name, held in json_slices.members_of(node):
            nodes += 1
            if nodes % _NODES_A_TURN == 0:
                await trio.lowlevel.checkpoint()
            if isinstance(name, str):
                if name in texts:
                    continue
                _refuse_nul_text(f"a name in {path or 'the body'}", name)
            if isinstance(held, str):
                if "\0" in held:
                    _refuse_nul_text(_join(path, name), held)
            elif isinstance(held, Text):
                for piece in held.pieces:
                    _refuse_nul_text(_join(path, name), piece)
            elif not isinstance(held, (int, float, type(None))):
                stack.append((_join(path, name), held))


def _join(path: str, name: str | int) -> str:
    return f"{path}[{name}]" if isinstance(name, int) else f"{path}.{name}".lstrip(".")


def _refuse_nul_text(path: str, text: str) -> None:
    if "\0" in text:
        raise Invalid(
            f"{path or 'the text'} holds a NUL character, which is not possible there", field=path
        )


async def _read(request: Request | quart.Request, bytes_max: int | None) -> bytes:
    if isinstance(request, Request):
        _check_content_type(request.header(b"content-type"))
        body = await request.body()
    else:
        _check_content_type(request.headers.get("Content-Type"))
        body = cast(bytes, await request.get_data(cache=False))
    if bytes_max is not None and len(body) > bytes_max:
        raise TooLarge(f"the body has {len(body)} bytes; at most {bytes_max} are taken")
    if not body:
        raise Invalid("a JSON body is expected, and none came")
    return body


def _check_content_type(value: str | None) -> None:
    """A missing type passes, and so does the one that curl -d sends unasked, since stock clients
    do not set it; a page that sends a form from another site is known by its Origin (`auth`)."""
    if value is None:
        return
    media = value.partition(";")[0].strip().lower()
    if media not in ("application/json", "application/x-www-form-urlencoded") and not (
        media.startswith("application/") and media.endswith("+json")
    ):
        raise Invalid(
            f"Content-Type is {media[:80] or 'empty'}; send application/json", field="Content-Type"
        )
    charset = _CHARSET.search(value)
    if charset and charset[1].lower() not in ("utf-8", "utf8"):
        raise Invalid(f"charset is {charset[1][:40]}; send UTF-8", field="Content-Type")


async def _decode_large(body: bytes, kind: type[T]) -> T:
    """Long strings are decoded by themselves, a slice at a time; what is left has to be small.
    What a `kind` asks of the length or form of a string is not asked of the long ones."""
    folded = await json_slices.fold(body)
    if len(folded.skeleton) > ELEMENT_BYTES_MAX:
        raise TooLarge(
            f"the body has {len(folded.skeleton)} bytes besides its long strings;"
            f" at most {ELEMENT_BYTES_MAX} are taken",
        )
    if not folded.long_strings:
        return decode(body, kind)
    value = decode(folded.skeleton, kind)
    await trio.lowlevel.checkpoint()
    return cast(T, await folded.unfold(value))


@lru_cache(maxsize=256)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, dec_hook=text_hook)


def _refusal(error: msgspec.ValidationError) -> Invalid:
    """The decoder's complaint with the field's path apart: `type: Expected str, got int`."""
    text = str(error)
    field = ""
    if found := _AT.fullmatch(text):
        text, field = found[1], found[2]
    if missing := _MISSING.fullmatch(text):
        field = f"{field}.{missing[1]}".lstrip(".")
        return Invalid(f"{field} is required", field=field)
    text = text.replace("`", "")
    if field:
        return Invalid(f"{field}: {_lower(text)}", field=field)
    return Invalid(f"the body is wrong: {_lower(text)}")


def _lower(text: str) -> str:
    """As what follows a colon; an acronym stays one."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
