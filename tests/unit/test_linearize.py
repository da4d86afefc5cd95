"""The checker of histories: what has an order, what has none, and that it finds what there is."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.linearize import (
    MODELS,
    UNKNOWN,
    Job,
    Model,
    Operation,
    Queue,
    Register,
    Setting,
    Undecided,
    Unreadable,
    check,
    main,
    read,
    read_jepsen,
    write,
)

Told = tuple[str, Any, Any, float, float]


def history(*told: Told, key: str = "") -> list[Operation]:
    """Kind, argument, result, beginning and end of each."""
    return [
        Operation(f"c{n}", kind, argument, result, began, ended, key)
        for n, (kind, argument, result, began, ended) in enumerate(told)
    ]


def lost(kind: str, argument: Any, began: float) -> Told:
    return (kind, argument, UNKNOWN, began, math.inf)


@pytest.mark.parametrize(
    ("model", "told", "expected"),
    [
        (Register(), [("write", 1, True, 0, 1), ("read", None, 1, 2, 3)], True),
        (Register(), [("write", 1, True, 0, 1), ("read", None, None, 2, 3)], False),
        # Concurrent ones may go either way, but not back again.
        (Register(), [("write", 1, True, 0, 9), ("read", None, None, 1, 2),
                      ("read", None, 1, 3, 4)], True),
        (Register(), [("write", 1, True, 0, 9), ("read", None, 1, 1, 2),
                      ("read", None, None, 3, 4)], False),
        # Both at one moment: they were there together.
        (Register(), [("write", 1, True, 0, 1), ("read", None, None, 1, 2)], True),
        # Nobody was told: it was done late, or never, but not before it was asked.
        (Register(), [lost("write", 1, 0), ("read", None, None, 5, 6),
                      ("read", None, 1, 7, 8)], True),
        (Register(), [("read", None, 1, 0, 1), lost("write", 1, 2)], False),
        (Register(), [lost("write", 1, 0), ("read", None, 1, 1, 2), ("read", None, None, 3, 4)],
         False),
        # A compare-and-set that failed has compared.
        (Register(), [("write", 1, True, 0, 1), ("cas", (1, 2), False, 2, 3)], False),
        (Register(), [("write", 1, True, 0, 1), ("cas", (2, 3), False, 2, 3)], True),
        (Register(), [("cas", (None, 1), True, 0, 1), ("read", None, 1, 2, 3)], True),
        (Register(), [("cas", (0, 1), True, 0, 1)], False),
        (Setting(), [("keep", 1, 1, 0, 1), ("keep", 2, 1, 2, 3), ("read", None, 1, 4, 5)], True),
        (Setting(), [("keep", 1, 1, 0, 1), ("keep", 2, 2, 2, 3)], False),
        (Setting(), [lost("keep", 1, 0), ("keep", 2, 2, 1, 2), ("read", None, 1, 3, 4)], False),
        (Queue(), [("enqueue", 1, True, 0, 1), ("enqueue", 2, True, 2, 3),
                   ("dequeue", None, 1, 4, 5), ("dequeue", None, 2, 6, 7)], True),
        (Queue(), [("enqueue", 1, True, 0, 1), ("enqueue", 2, True, 2, 3),
                   ("dequeue", None, 2, 4, 5)], False),
        (Queue(), [("enqueue", 1, True, 0, 3), ("enqueue", 2, True, 1, 2),
                   ("dequeue", None, 2, 4, 5)], True),
        (Queue(), [("enqueue", 1, True, 0, 1), lost("dequeue", None, 2),
                   ("dequeue", None, None, 3, 4)], True),
        (Queue(), [("enqueue", 1, True, 0, 1), ("dequeue", None, None, 2, 3)], False),
        (Queue(), [("enqueue", 1, True, 0, 1), ("dequeue", None, 1, 2, 5),
                   ("dequeue", None, 1, 3, 4)], False),
        (Job(), [("submit", None, True, 0, 1), ("see", None, (1, "running"), 2, 3),
                 ("see", None, (1, "pending"), 4, 5), ("see", None, (2, "running"), 6, 7),
                 ("see", None, (2, "completed"), 8, 9)], True),
        (Job(), [("submit", None, True, 0, 1), ("see", None, None, 2, 3)], False),
        (Job(), [("submit", None, True, 0, 1), ("see", None, (1, "running"), 2, 3),
                 ("see", None, (0, "pending"), 4, 5)], False),
        (Job(), [("submit", None, True, 0, 1), ("see", None, (2, "running"), 2, 3),
                 ("see", None, (1, "completed"), 4, 5)], False),
        (Job(), [("submit", None, True, 0, 1), ("cancel", None, True, 2, 3),
                 ("see", None, (1, "completed"), 4, 5)], False),
        (Job(), [("submit", None, True, 0, 1), ("cancel", None, False, 2, 3),
                 ("see", None, (1, "running"), 4, 5)], False),
        (Job(), [("submit", None, True, 0, 1), ("see", None, (1, "failed"), 2, 3),
                 ("cancel", None, True, 4, 5)], False),
        (Job(), [("submit", None, True, 0, 1), lost("cancel", None, 2),
                 ("see", None, (1, "running"), 3, 4), ("see", None, (1, "cancelled"), 5, 6)], True),
        (Job(), [lost("submit", None, 0), ("see", None, None, 1, 2),
                 ("see", None, (0, "pending"), 3, 4), ("see", None, None, 5, 6)], False),
    ],
)  # fmt: skip
def test_what_has_an_order(model: Model, told: list[Told], expected: bool) -> None:
    verdict = check(history(*told), model)
    assert bool(verdict) is expected, str(verdict)


def test_keys_do_not_hinder_each_other() -> None:
    one = history(("write", 1, True, 0, 1), ("read", None, 1, 2, 3), key="a")
    other = history(("read", None, None, 2, 3), key="b")
    assert check(one + other, Register())
    wrong = history(("read", None, 1, 4, 5), key="b")
    verdict = check(one + other + wrong, Register())
    assert (bool(verdict), verdict.key, verdict.stuck) == (False, "b", wrong[0])
    assert "not linearizable at b" in str(verdict)


def test_the_words_name_the_longest_order_and_who_has_no_place() -> None:
    told = history(
        ("write", 1, True, 0, 1), ("write", 2, True, 2, 3), ("read", None, 1, 4, 5),
    )  # fmt: skip
    verdict = check(told, Register())
    assert verdict.order == told[:2]
    assert verdict.stuck == told[2]
    assert "no place for c2: read -> 1 [4, 5]" in str(verdict)


def by_trying_all(told: Sequence[Operation], model: Model) -> bool:
    """What it means, word for word: for histories of a handful of operations."""
    sure = [each for each in told if each.known]
    unsure = [each for each in told if not each.known]
    for count in range(len(unsure) + 1):
        for done in itertools.combinations(unsure, count):
            for order in itertools.permutations([*sure, *done]):
                in_time = all(
                    not later.ended < earlier.began
                    for at, earlier in enumerate(order)
                    for later in order[at + 1 :]
                )
                if in_time and told_so(order, model):
                    return True
    return False


def told_so(order: Sequence[Operation], model: Model) -> bool:
    states: set[Hashable] = {model.first}
    for operation in order:
        states = {new for state in states for new in model.after(state, operation)}
    return bool(states)


_asked: dict[str, st.SearchStrategy[tuple[str, Any, Any]]] = {
    "register": st.one_of(
        st.tuples(st.just("read"), st.none(), st.sampled_from([None, 1, 2])),
        st.tuples(st.just("write"), st.sampled_from([1, 2]), st.just(True)),
        st.tuples(
            st.just("cas"), st.tuples(st.sampled_from([None, 1]), st.sampled_from([1, 2])),
            st.booleans(),
        ),
    ),
    "setting": st.one_of(
        st.tuples(st.just("read"), st.none(), st.sampled_from([None, 1, 2])),
        st.tuples(st.just("keep"), st.sampled_from([1, 2]), st.sampled_from([1, 2])),
    ),
    "queue": st.one_of(
        st.tuples(st.just("enqueue"), st.sampled_from([1, 2]), st.just(True)),
        st.tuples(st.just("dequeue"), st.none(), st.sampled_from([None, 1, 2])),
    ),
    "job": st.one_of(
        st.tuples(st.just("submit"), st.none(), st.just(True)),
        st.tuples(st.just("cancel"), st.none(), st.sampled_from([None, True, False])),
        st.tuples(
            st.just("see"), st.none(),
            st.sampled_from([None, (0, "pending"), (1, "running"), (1, "pending"),
                             (1, "completed"), (1, "cancelled")]),
        ),
    ),
}  # fmt: skip


@st.composite
def _histories(draw: st.DrawFn) -> tuple[list[Operation], str]:
    name = draw(st.sampled_from(sorted(_asked)))
    told = []
    for n in range(draw(st.integers(1, 5))):
        kind, argument, result = draw(_asked[name])
        began = draw(st.integers(0, 8))
        if draw(st.integers(0, 4)) == 0:
            told.append(Operation(f"c{n}", kind, argument, began=began))
        else:
            ended = began + draw(st.integers(0, 6))
            told.append(Operation(f"c{n}", kind, argument, result, began, ended))
    return told, name


@given(_histories())
def test_it_agrees_with_trying_every_order(drawn: tuple[list[Operation], str]) -> None:
    told, name = drawn
    assert bool(check(told, MODELS[name])) is by_trying_all(told, MODELS[name])


@given(_histories())
def test_a_history_comes_back_from_its_file_as_it_was(drawn: tuple[list[Operation], str]) -> None:
    told, name = drawn
    file = io.StringIO()
    write(told, name, file)
    assert read(file.getvalue().splitlines()) == (told, name)


def test_it_gives_up_where_there_are_too_many_orders() -> None:
    told = history(
        *(lost("write", n, 0) for n in range(30)), ("read", None, 99, 1, 2),
    )  # fmt: skip
    with pytest.raises(Undecided):
        check(told, Register(), steps_max=1000)


JEPSEN = """INFO  jepsen.util - 0	:invoke	:write	1
INFO  jepsen.util - 0	:info	:write	:timed-out
something else
INFO  jepsen.util - 1	:invoke	:cas	[1 2]
INFO  jepsen.util - 1	:fail	:cas	[1 2]
INFO  jepsen.util - 2	:invoke	:read	nil
INFO  jepsen.util - 2	:ok	:read	1
INFO  jepsen.util - 3	:invoke	:read	nil
INFO  jepsen.util - 3	:fail	:read	:timed-out
""".splitlines()


def test_jepsens_log() -> None:
    told = read_jepsen(JEPSEN)
    assert [(each.kind, each.argument, each.known) for each in told] == [
        ("write", 1, False), ("cas", (1, 2), True), ("read", None, True),
    ]  # fmt: skip
    assert (told[1].result, told[2].result) == (False, 1)
    assert check(told, Register())


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["hello"], "neither a log"),
        ([], "neither a log"),
        (['{"form": "swarmd-history", "model": "stack"}'], "its model is 'stack'"),
        (["INFO jepsen.util - 0 :ok :read 1"], "had not begun"),
        (JEPSEN[:1] * 2, "begins anew"),
        (["INFO jepsen.util - 0 :invoke :write x"], "no value"),
        (["INFO jepsen.util - 0 :invoke :write 1", "INFO jepsen.util - 0 :odd :write 1"],
         "nobody knows"),
        ([*JEPSEN[:6], "INFO  jepsen.util - 2\t:ok\t:read"], "line 7: a damaged event"),
        ([*JEPSEN[:6], "INFO  jepsen.util - 2\t:ok\t:read\t\t\n"], "line 7: a damaged event"),
        ([*JEPSEN[:6], "INF jepsen.util - 2 :ok :read 1"], "line 7: a damaged event"),
        ([*JEPSEN[:6], "INFO jepsen.util - 2 :"], "line 7: a damaged event"),
    ],
)  # fmt: skip
def test_what_is_no_history(lines: list[str], words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        read(lines)


OURS = '{"form": "swarmd-history", "model": "register"}'
WHOLE = '{"client": "a", "kind": "write", "argument": 1, "began": 1, "ended": 2, "result": true}'


def test_what_a_log_tells_beside_its_events_is_passed_over() -> None:
    beside = ["INFO jepsen.util - :nemesis :info :start", "WARN jepsen.core - 3 :x", "jepsen.util"]
    assert read_jepsen([*beside, *JEPSEN[5:7]])[0].result == 1


def test_a_damaged_event_is_not_taken_for_one_that_nobody_was_told_of(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    told = [
        "INFO jepsen.util - 0 :invoke :write 1", "INFO jepsen.util - 0 :ok :write 1",
        "INFO jepsen.util - 1 :invoke :read nil", "INFO jepsen.util - 1 :ok :read 2",
    ]  # fmt: skip
    log = tmp_path / "log"
    log.write_text("\n".join(told))
    assert (main([str(log)]), capsys.readouterr().out) == (0, f"{log} false\n")
    log.write_text("\n".join(told).removesuffix(" 2"))
    assert main([str(log)]) == 2
    out, err = capsys.readouterr()
    assert (out, "line 4" in err) == ("", True)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('"began": 2, "ended": 1, "result": true', "ended at 1, before it began at 2"),
        ('"began": NaN, "ended": 1, "result": true', "began is nan"),
        ('"began": 1, "ended": NaN, "result": true', "ended is nan"),
        ('"began": -Infinity, "ended": 1, "result": true', "began is -inf"),
        ('"began": 1, "ended": Infinity, "result": true', "ended is inf"),
        ('"began": 1e999', "began is inf"),
        ('"began": "1"', "began is '1'"),
        ('"began": true', "began is True"),
        ('"began": 1, "ended": null, "result": true', "ended is None"),
        ('"ended": 1, "result": true', "has no began$"),
        ('"began": 1, "ended": 1', "has no result$"),
        # It was told, so it had ended: else what it was told would go unheard.
        ('"began": 1, "result": true', "has no ended$"),
        ("", "has no began$"),
    ],
)
def test_what_is_no_operation(line: str, words: str) -> None:
    asked = '{"client": "b", "kind": "write", "argument": 1'
    with pytest.raises(Unreadable, match=f"^line 4: .*{words}"):
        read([OURS, WHOLE, "\n", f"{asked}, {line}}}" if line else f"{asked}}}", WHOLE])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"kind": "read", "began": 1}', "line 3: the operation has no client$"),
        ('{"client": "b", "ended": 1}', "line 3: the operation has no kind, began, result$"),
        ("[]", "line 3: it is no operation"),
        ("null", "line 3: it is no operation"),
    ],
)
def test_what_an_operation_lacks(line: str, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        read([OURS, WHOLE, line])


def test_times_of_whole_numbers_have_no_bound() -> None:
    late = f'{{"client": "b", "kind": "read", "began": {10**400}, "ended": {10**400}, "result": 1}}'
    told, _ = read([OURS, WHOLE, late])
    assert check(told, Register())


def test_what_is_nested_too_deeply_keeps_no_other_from_being_judged(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good"
    good.write_text("\n".join(JEPSEN))
    deep = "[" * 100_000 + "]" * 100_000
    asked = f'{{"client": "a", "kind": "write", "argument": {deep}, "began": 1}}'
    file = tmp_path / "deep"
    for at, text in (1, deep), (2, f"{OURS}\n{asked}"):
        file.write_text(text)
        assert main([str(file), str(good)]) == 2
        out, err = capsys.readouterr()
        assert (out, err) == (f"{good} true\n", f"{file}: line {at}: it is nested too deeply\n")


def test_the_command(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, other = tmp_path / "good", tmp_path / "bad", tmp_path / "other"
    good.write_text("\n".join(JEPSEN))
    with bad.open("w") as file:
        write(history(("enqueue", 1, True, 0, 1), ("dequeue", None, None, 2, 3)), "queue", file)
    other.write_text("x\n")
    assert main([str(good), str(bad)]) == 0
    assert capsys.readouterr().out == f"{good} true\n{bad} false\n"
    assert main([str(other), str(tmp_path / "none"), str(good)]) == 2
    told = capsys.readouterr()
    assert told.out == f"{good} true\n"
    assert "neither a log" in told.err and "No such file" in told.err
    assert main([]) == 2
