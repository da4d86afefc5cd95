"""JSON into typed values: strict, by name of the field, and never holding the event loop."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from api.common import bodies, json_slices
from api.common.bodies import decode_each, read_json, read_json_array
from api.common.surface import Request
from api.common.texts import Text, answer_with_texts
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Invalid, SwarmError, TooLarge
from tests.steps import measured

HOLD_MAX = 3.0
STDOUT = frozenset({"stdout"})


class Inner(msgspec.Struct):
    stdout: Text | None = None
    count: int = 0


class Job(msgspec.Struct):
    type: str
    arguments: list[str] = []
    env: dict[str, str] = {}
    output: Inner | None = None


class Source:
    def __init__(self, *chunks: bytes) -> None:
        self._chunks = list(chunks)

    async def next_chunk(self) -> bytes:
        return self._chunks.pop(0) if self._chunks else b""


def request(body: bytes | str, content_type: str | None = "application/json") -> Request:
    data = body.encode() if isinstance(body, str) else body
    headers = [] if content_type is None else [(b"content-type", content_type.encode())]
    cut = len(data) // 2
    source = Source(*(part for part in (data[:cut], data[cut:]) if part))
    actor = Actor("anonymous", "test")
    return Request("POST", "/", {}, b"", headers, actor, "/", 1 << 24, source)


async def read(body: bytes | str, kind: Any = Job, **options: Any) -> Any:
    return await read_json(request(body), kind, **options)


async def test_a_body_is_read() -> None:
    job = await read('{"type": "a", "arguments": ["b"], "unknown": [1, {"x": 2}]}')
    assert job == Job("a", ["b"])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"arguments": []}', "type"),
        ('{"type": 1}', "type"),
        ('{"type": null}', "type"),
        ('{"type": "a", "arguments": ["b", 3]}', "arguments[1]"),
        ('{"type": "a", "output": {"count": "3"}}', "output.count"),
        ('{"type": "a", "output": {"count": 1e400}}', "output.count"),
        ('{"type": "a\\u0000b"}', "type"),
        ('{"type": "a", "arguments": ["b", "\\u0000"]}', "arguments[1]"),
        ('{"type": "a", "output": {"stdout": "\\u0000"}}', "output.stdout"),
    ],
)
async def test_a_refusal_names_the_field(body: str, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        await read(body)
    assert refused.value.facts["field"] == field
    assert field in refused.value.message


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"3", b'{"type": "a"} x', b'{"type": "\xff\xfe"}', b"\xff\xfe{}",
     b'{"type": "\\ud800"}', b'{"type": "a",}', b"{'type': 'a'}", b'{"type": "a\nb"}', b"NaN",
     b'{"type": "a", "output": {"count": ' + b"9" * 6000 + b"}}",
     b'{"type": "a", "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
     b"[" * 10_000, b'{"a":' * 10_000, b"[" * 300_000, b'{"a":' * 100_000,
     b'{"type": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"],
)  # fmt: skip
async def test_what_is_not_a_job_is_refused(body: bytes) -> None:
    with pytest.raises(SwarmError):
        await read(body)


@pytest.mark.parametrize(
    "body",
    [b'{"type": "a", "x": "\xff"}', b'{"type": "a", "\xff": 1}', b'{"type": "a", "x": "\xe2\x82"}',
     b'{"type": "a", "x": "\xed\xa0\x80"}', b'{"type": "a", "x": "' + b"y" * 70_000 + b'\xff"}',
     b'{"type": "a", "x": "' + "\u00e4".encode() * 300_000 + b'\xc3"}'],
)  # fmt: skip
async def test_a_body_is_utf8_whoever_reads_it(body: bytes) -> None:
    for kind in (Job, dict[str, Any], dict[str, msgspec.Raw]):
        with pytest.raises(Invalid, match=r"is not UTF-8: byte \d+ is 0x..; send JSON in UTF-8"):
            await read(body, kind)
    with pytest.raises(Invalid, match="the body is not UTF-8"):
        await read_json_array(request(b"[{}, " + body + b"]"), Job, count_max=10)


async def test_a_character_may_lie_across_what_is_looked_at_in_one_turn() -> None:
    for shift in range(4):
        body = '{"type": "a", "x": "' + "y" * shift + "\U0001f600" * 200_000 + '"}'
        assert await read(body) == Job("a")


LONG = b"y" * 300_000


@pytest.mark.parametrize(
    ("body", "why"),
    [(b'{"type": "\\ud800"}', r"\ud800 is half of a character"),
     (b'{"type": "a\\\\\\udc00bcdefghijk"}', r"\udc00 is half of a character"),
     (b'{"x": "\\ud83d\\ude00\\ud83dbcdefghijk"}', r"\ud83d is half of a character"),
     (b'{"x": "' + LONG + b'\\ud800"}', r"\ud800 is half of a character near byte 300007"),
     (b'{"x": "' + LONG + b'\\udc00"}', r"\udc00 is half of a character near byte 262151"),
     (b'{"x": "\\\\ud800"', "it ends in the middle"),
     (b'{"x": "\\ud83d\\ude00", "y"', "it ends in the middle"),
     (b"nonsense", "invalid character (byte 4)"),
     (b'{"type": "a",}', "trailing comma in object (byte 13)")],
)  # fmt: skip
async def test_what_is_not_json_is_told_in_plain_words(body: bytes, why: str) -> None:
    with pytest.raises(Invalid) as refused:
        await read(body)
    assert refused.value.message == f"the body is not JSON: {why}"


async def test_a_deep_body_that_is_wanted_as_anything_is_refused_too() -> None:
    for depth in (10_000, 100_000):
        for kind in (object, dict[str, object], list[object]):
            with pytest.raises(SwarmError):
                await read(b"[" * depth + b"]" * depth, kind)


async def test_output_may_hold_any_character() -> None:
    body = '{"type": "a", "output": {"stdout": "x\\u0000y"}}'
    job = await read(body, texts=STDOUT)
    assert job.output.stdout.pieces == ("x\0y",)


async def test_a_long_text_comes_in_pieces_and_a_long_string_whole() -> None:
    text = "ab\u20ac\0\U0001f600\n" * 30_000
    body = json.dumps({"type": "a", "arguments": ["x" * 70_000], "output": {"stdout": text}})
    job = await read(body, texts=STDOUT)
    assert job.arguments == ["x" * 70_000]
    stdout = job.output.stdout
    assert len(stdout.pieces) > 1 and "".join(stdout.pieces) == text
    for chars in (0, 1, 70_000, 10**9):
        assert stdout.start(chars) == text[:chars]


async def test_a_string_that_is_far_too_long_is_refused_but_in_what_is_not_known() -> None:
    long = "x" * (json_slices.STRING_CHARS_MAX + 1)
    with pytest.raises(TooLarge, match="a string has 524289 characters"):
        await read(json.dumps({"type": long}))
    assert await read(json.dumps({"type": "a", "unknown": {"x": [long]}})) == Job("a")


@pytest.mark.parametrize("kind", [3, [], {}])
async def test_a_text_is_a_string(kind: object) -> None:
    with pytest.raises(Invalid, match=r"output\.stdout: expected str"):
        await read(json.dumps({"type": "a", "output": {"stdout": kind}}), texts=STDOUT)


@pytest.mark.parametrize("length", [0, 1, 40_000, 200_000])
async def test_texts_of_any_length_stand_in_their_places(length: int) -> None:
    texts = ['"\\\0\u20ac' * length, "\n\U0001f600<" * (length // 3)]
    pieces = [[text[at : at + 50_000] for at in range(0, len(text), 50_000)] for text in texts]
    response = await answer_with_texts(
        lambda first, second: {"a": 1, "first": first, "b": {"second": second}}, *pieces
    )
    data = response.body
    if response.stream is not None:
        data = b"".join([part async for part in response.stream])
        assert len(data) == response.length
    assert json.loads(data) == {"a": 1, "first": texts[0], "b": {"second": texts[1]}}


@pytest.mark.parametrize(
    ("content_type", "taken"),
    [(None, True), ("application/json", True), ("Application/JSON; charset=UTF-8", True),
     ("application/problem+json", True), ("text/plain", False), ("", False),
     ("application/x-www-form-urlencoded", True), ("multipart/form-data; boundary=x", False),
     ("application/json; charset=utf-16", False), ('application/json; charset="latin-1"', False)],
)  # fmt: skip
async def test_the_content_type_is_json(content_type: str | None, taken: bool) -> None:
    asked = request('{"type": "a"}', content_type)
    if taken:
        assert await read_json(asked, Job) == Job("a")
    else:
        with pytest.raises(Invalid, match="send "):
            await read_json(asked, Job)


async def test_a_body_has_the_bound_of_its_caller() -> None:
    with pytest.raises(TooLarge):
        await read('{"type": "aaaaaaaaaaaaaaa"}', bytes_max=10)


async def test_an_array_keeps_outcomes_in_their_places() -> None:
    body = '[{"type":"a"}, {"type":3} , {"type":"c\\u0000"},{}, {"type":"e,]}\\"["}, nonsense]'
    found = await read_json_array(request(body), Job, count_max=10)
    assert [f.type if isinstance(f, Job) else f.facts["index"] for f in found] == [
        "a", 1, 2, 3, 'e,]}"[', 5,
    ]  # fmt: skip
    assert await read_json_array(request(" [ ] "), Job, count_max=10) == []


@pytest.mark.parametrize(
    "body",
    ["{}", "[", "[1", "[1,]", "[,1]", "[1,,2]", "[1] 2", "[1}", '["a', '["a\\', '["\\u12', "]",
     "", " ", '"a"', "[" * 70 + "]" * 70, "[" + '"' * 3],
)  # fmt: skip
async def test_what_is_no_array_is_refused_as_a_whole(body: str) -> None:
    with pytest.raises(SwarmError):
        await read_json_array(request(body), int, count_max=10)


async def test_an_array_has_a_count_and_elements_a_size() -> None:
    with pytest.raises(TooLarge, match="more than 10"):
        await read_json_array(request("[" + "1," * 10 + "1]"), int, count_max=10)
    assert len(await read_json_array(request("[" + "1," * 9 + "1]"), int, count_max=10)) == 10
    big = "[" + '"' + "x" * (bodies.ELEMENT_BYTES_MAX + 10) + '"]'
    with pytest.raises(TooLarge, match="element 0"):
        await read_json_array(request(big), str, count_max=10)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(values=st.lists(JSON, max_size=8), ascii_only=st.booleans(), indent=st.none() | st.just(1))
def test_any_array_falls_into_its_elements(
    values: list[Any], ascii_only: bool, indent: int | None
) -> None:
    body = json.dumps(values, ensure_ascii=ascii_only, indent=indent).encode()

    async def split() -> list[bytes]:
        return await json_slices.split_array(body, count_max=100, element_bytes_max=10_000)

    assert [json.loads(part) for part in trio.run(split)] == values


@settings(max_examples=120, deadline=None)
@given(
    text=st.text(alphabet='a\\"\n\u00e9\u20ac\U0001f600\x7f ', min_size=1, max_size=60),
    ascii_only=st.booleans(),
    window=st.integers(13, 40),
)
def test_a_long_string_survives_any_cut(text: str, ascii_only: bool, window: int) -> None:
    value = {"a": text * 5, "b": [text * 9, 1, {"c": text * 3}], "d": "short"}
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    was = json_slices._WINDOW_BYTES
    json_slices._WINDOW_BYTES = window
    try:
        folded = trio.run(json_slices.fold, body)
    finally:
        json_slices._WINDOW_BYTES = was
    assert trio.run(folded.unfold, json.loads(folded.skeleton)) == value


async def test_a_mark_in_a_body_cannot_multiply_a_long_string() -> None:
    mark = json.dumps("\ufdd0swarmd-long:0")
    long = "x" * 100_000
    body = f'{{"type": "a", "arguments": [{mark}, {mark}, "{long}"]}}'
    job = await read(body)
    assert sum(len(argument) for argument in job.arguments) < 2 * len(long)


YARD = b"[" + b"{}," * 87_000 + b"1]"
"""What one step may decode at most, of the kind that takes longest."""


def yardstick() -> float:
    """How long this machine takes for it: a step is held against that, not against a clock."""

    def once() -> float:
        began = time.thread_time()
        msgspec.json.decode(YARD)
        return time.thread_time() - began

    return min(once() for _ in range(5))


async def longest_hold(body: bytes, kind: Any, array: bool) -> float:
    """In yards, of which each try has its own: another process may take the core, or its caches,
    for seconds. Of ten the first that is short enough will do."""
    best = math.inf
    # What a session of thousands of tests has on its heap is no part of a body: a collection in the
    # middle of a step would go through all of it.
    gc.collect()
    gc.freeze()
    try:
        for _ in range(10):
            before, held = yardstick(), await _hold(body, kind, array)
            best = min(best, held / max(before, yardstick()))
            if best < HOLD_MAX:
                break
    finally:
        gc.unfreeze()
    return best


async def _hold(body: bytes, kind: Any, array: bool) -> float:
    source = Source(body)
    actor = Actor("anonymous", "test")
    asked = Request("POST", "/", {}, b"", [], actor, "/", 1 << 24, source)
    await trio.lowlevel.checkpoint()
    with measured() as steps:
        try:
            await trio.lowlevel.checkpoint()
            if array:
                await read_json_array(asked, kind, count_max=50_000)
            else:
                await read_json(asked, kind, texts=STDOUT)
        except SwarmError:
            pass
        finally:
            await trio.lowlevel.checkpoint()  # so that the last step is measured too
    return steps.longest_s


MIB = 1024 * 1024
JOB = b'{"type":"x","arguments":["a","bb"],"env":{"A":"b"},"unknown":[1,2,3]}'


def hostile() -> Iterator[Any]:
    def case(name: str, body: bytes, kind: Any = Job, array: bool = False) -> Any:
        return pytest.param(body, kind, array, id=name)

    half = b"x" * 4 * MIB
    yield case(
        "8 MiB of output", b'{"type":"a","x":"' + half + b'","output":{"stdout":"' + half + b'"}}'
    )
    yield case("escapes", b'{"type":"a","output":{"stdout":"' + b"\\n" * 3 * MIB + b'"}}')
    yield case("unicode", b'{"type":"a","output":{"stdout":"' + b"\\u00e9" * MIB + b'"}}')
    yield case("wide", b'{"type":"a","output":{"stdout":"' + "€".encode() * 2 * MIB + b'"}}')
    yield case("one character of four bytes", b'{"type":"a","output":{"stdout":"'
               + b"x" * 8 * MIB + "\U0001f600".encode() + b'"}}')  # fmt: skip
    yield case("no UTF-8", b'{"type":"a","x":"' + "€".encode() * 2 * MIB + b'\xff"}')
    yield case("half a character", b'{"type":"' + b"\\\\" * 30_000 + b'\\ud800"}')
    yield case("half a character unknown", b'{"x":"\\ud800"' + b',"":""' * 43_000 + b"}")
    yield case("8 MiB unknown", b'{"type":"a","x":"' + b"x" * 8 * MIB + b'"}')
    yield case("long text and many members", b'{"type":"a","output":{"stdout":"' + half
               + b'"},"x":[' + b"1," * 125_000 + b"1]}")  # fmt: skip
    yield case("long text and many lists", b'{"type":"a","output":{"stdout":"' + half
               + b'"},"x":[' + b"[]," * 83_000 + b"1]}")  # fmt: skip
    yield case("nul", b'{"type":"a","arguments":["' + b'","'.join([b"\\u0000"] * 20_000) + b'"]}')
    yield case("numbers", b'{"type":"a","x":[' + b"1," * 2 * MIB + b"1]}")
    yield case("numbers 250 KiB", b'{"type":"a","x":[' + b"1," * 125_000 + b"1]}")
    yield case("arguments 250 KiB", b'{"type":"a","arguments":[' + b'"",' * 83_000 + b'""]}')
    yield case("anything 250 KiB", b"[" + b"{}," * 83_000 + b"1]", object)
    yield case("quotes", b'{"type":"a","x":[' + b'"",' * MIB + b'""]}')
    yield case("brackets", b"[" + b"[]," * MIB + b"1]", int, True)
    yield case("many numbers", b"[" + b"1," * 2 * MIB + b"1]", int, True)
    yield case("jobs", b"[" + b",".join([JOB] * 20_000) + b"]", Job, True)
    yield case("one long element", b'["' + b"x" * 8 * MIB + b'"]', str, True)
    yield case("spaces", b" " * 4 * MIB + b"[1]", int, True)
    yield case("spaces within", b"[" + b" " * 4 * MIB + b"1]", int, True)


@pytest.mark.parametrize(("body", "kind", "array"), list(hostile()))
async def test_no_body_holds_the_loop(body: bytes, kind: Any, array: bool) -> None:
    held = await longest_hold(body, kind, array)
    assert held < HOLD_MAX, f"held for {held:.1f} times what the most that may be held takes"


async def test_parts_of_another_array_are_decoded_each() -> None:
    class Bulk(msgspec.Struct):
        jobs: list[msgspec.Raw]

    bulk = await read('{"jobs": [{"type": "a"}, 3]}', Bulk)
    first, second = await decode_each(bulk.jobs, Job)
    assert first == Job("a") and isinstance(second, Invalid)
