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
        *(lost("enqueue", n, 0) for n in range(30)), ("dequeue", None, 99, 1, 2),
    )  # fmt: skip
    with pytest.raises(Undecided):
        check(told, Queue(), steps_max=1000)


@st.composite
def _idle_writes(draw: st.DrawFn) -> list[Operation]:
    """Of a register: many that nobody was told of, values that nobody found or nobody wrote, and
    compare-and-sets that differed."""
    written, named = st.sampled_from([1, 2, 3, 4]), st.sampled_from([None, 1, 2])
    told = []
    for n in range(draw(st.integers(1, 6))):
        began, argument, result = draw(st.integers(0, 6)), None, True
        match kind := draw(st.sampled_from(("read", "write", "write", "cas"))):
            case "read":
                result = draw(st.sampled_from([None, 1, 2, 5]))
            case "write":
                argument = draw(written)
            case "cas":
                argument, result = (draw(named), draw(written)), draw(st.booleans())
        operation = Operation(f"c{n}", kind, argument, began=began)
        if kind == "read" or draw(st.booleans()):
            operation.result, operation.ended = result, began + draw(st.integers(0, 4))
        told.append(operation)
    return told


@given(_idle_writes())
def test_what_is_not_searched_for_changes_no_verdict(told: list[Operation]) -> None:
    assert bool(check(told, Register())) is by_trying_all(told, Register())


def test_a_value_that_nobody_could_have_put_there_needs_no_search() -> None:
    told = history(
        *(lost("write", n, 0) for n in range(24)), ("read", None, 99, 1, 2),
        *(lost("write", 99, 3) for _ in range(2)), ("cas", (7, 99), False, 0, 4),
    )  # fmt: skip
    verdict = check(told, Register(), steps_max=1000)
    assert (bool(verdict), verdict.stuck) == (False, told[24])
    assert str(verdict) == f"not linearizable: there is no place for {told[24]}"
    swapped = [*told[:24], Operation("c", "cas", (99, 1), True, 1, 2)]
    assert check(swapped, Register(), steps_max=1000).stuck == swapped[24]
    assert check([*told[:24], Operation("c", "read", None, None, 1, 2)], Register())


def test_writes_that_nothing_tells_of_need_no_search() -> None:
    lone = [lost("write", n, 0) for n in range(24)]
    stale = [("write", 98, True, 1, 2), ("write", 99, True, 3, 4), ("read", None, 98, 5, 6)]
    assert not check(history(*lone, *stale), Register(), steps_max=1000)
    assert check(history(*lone, *stale[:2]), Register(), steps_max=1000)
    # Over before they began, it says nothing of them.
    over = ("cas", (7, 8), False, -2, -1)
    assert not check(history(over, *lone, *stale), Register(), steps_max=1000)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        # What differed differed from something: the write that nobody was told of.
        ([("write", 1, True, 0, 1), lost("write", 9, 0), ("cas", (1, 2), False, 2, 3)], True),
        ([("write", 1, True, 0, 1), lost("write", 9, 3), ("cas", (1, 2), False, 2, 3)], True),
        ([("write", 1, True, 0, 1), lost("write", 9, 4), ("cas", (1, 2), False, 2, 3)], False),
        ([lost("write", 9, 0), ("cas", (None, 2), False, 1, 2), ("read", None, None, 3, 4)], False),
        ([lost("write", 9, 0), ("cas", (9, 2), True, 1, 2), ("read", None, 2, 3, 4)], True),
        ([lost("write", 9, 0), lost("cas", (9, 2), 1), ("read", None, 2, 3, 4)], True),
    ],
)
def test_a_write_that_something_tells_of_is_kept(told: list[Told], expected: bool) -> None:
    assert bool(check(history(*told), Register())) is expected


def test_a_setting_gives_what_nobody_wrote() -> None:
    told = history(lost("keep", 1, 0), ("read", None, 1, 1, 2), ("keep", 2, 1, 3, 4))
    assert check(told, Setting())


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


def jepsens(*events: str) -> list[str]:
    return [f"INFO  jepsen.util - {event}" for event in events]


WRITTEN_3 = ("0\t:invoke\t:write\t3", "0\t:ok\t:write\t3")
READ_3 = ("2\t:invoke\t:read\tnil", "2\t:ok\t:read\t3")


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        ("[3 4]", False),  # it compared: it would not have differed
        ("[3 4]  ", False),
        ("[3 4]\t:timed-out", True),
        ('[3 4]\t[:timed-out "of [1 2]"]', True),
        ("[3 4] [:timed-out]", True),
        (":timed-out", True),
    ],
)
def test_a_compare_and_set_of_jepsens_that_failed_for_a_reason_did_not_compare(
    ended: str, expected: bool
) -> None:
    asked = ("1\t:invoke\t:cas\t[3 4]", f"1\t:fail\t:cas\t{ended}")
    told = read_jepsen(jepsens(*WRITTEN_3, *asked, *READ_3))
    assert len(told) == (2 if expected else 3)
    assert bool(check(told, Register())) is expected


def test_jepsens_log_of_a_register_for_each_key() -> None:
    told = read_jepsen(jepsens(
        "0 :invoke :write [3 1]", "0 :ok :write [3 1]",
        "1 :invoke :write [4 7]", "1 :ok :write [4 7]",
        "2 :invoke :read [3 nil]", "2 :ok :read [3 1]",
        "3 :invoke :cas [4 [7 nil]]", "3 :ok :cas [4 [7 nil]]",
        "4 :invoke :cas [4 [7 8]]", "4 :fail :cas [4 [7 8]]",
        "5 :invoke :cas [3 [1 8]]", "5 :fail :cas [3 [1 8]]\t:timed-out",
        "6 :invoke :read [4 nil]", "6 :ok :read [4 nil]",
        "7 :invoke :write [3 2]", "7 :info :write :timed-out",
    ))  # fmt: skip
    assert [(each.key, each.kind, each.argument, each.result) for each in told] == [
        ("3", "write", 1, True), ("4", "write", 7, True), ("3", "read", None, 1),
        ("4", "cas", (7, None), True), ("4", "cas", (7, 8), False), ("4", "read", None, None),
        ("3", "write", 2, UNKNOWN),
    ]  # fmt: skip
    assert check(told, Register())
    told[-2].result = 7
    assert check(told, Register()).key == "4"


@pytest.mark.parametrize(
    ("events", "words"),
    [
        (["0 :invoke :append 1", "0 :info :append :timed-out"],
         "line 1: a register does not know :append; it knows :read, :write, :cas$"),
        (["0 :invoke :cas 5", "0 :info :cas :timed-out"],
         r"line 1: '5' is no value .*:cas; it would be \[OLD NEW\], or \[KEY \[OLD NEW\]\]"),
        (["0 :invoke :cas [1 2 3]"], r"line 1: .* it would be \[OLD NEW\]"),
        (["0 :invoke :cas [3 1]", "0 :ok :cas [3 [1 2]]"], r"line 2: .* has a key, and none"),
        (["0 :invoke :write [1 [2 3]]"], r"line 1: .* it would be VALUE, or \[KEY VALUE\]"),
        (["0 :invoke :write [1 2 3]"], r"line 1: .* it would be VALUE, or \[KEY VALUE\]"),
        (["0 :invoke :write [1 x]"], "line 1: .* a whole number or nil$"),
        (["0 :invoke :read nil", "0 :ok :read 1\t:timed-out"], "line 2: '1.*' is no value"),
        (["0 :invoke :write 1", "0 :ok :write 2"],
         "line 2: '2' is not what was asked for; it would be '1'$"),
        (["0 :invoke :write [3 nil]", "0 :ok :write [3 2]"], r"it would be '\[3 nil\]'$"),
        (["0 :invoke :cas [1 nil]", "0 :ok :cas [1 3]"], r"it would be '\[1 nil\]'$"),
        (["0 :invoke :cas [1 2]", "0 :fail :cas [2 1]"], r"it would be '\[1 2\]'$"),
        (["0 :invoke :cas [1 2]", "0 :fail :cas [1]"], r"line 2: '\[1\]' is no value"),
        (["0 :invoke :cas [3 [1 2]]", "0 :ok :cas [3 [1 3]]"], r"it would be '\[3 \[1 2\]\]'$"),
        (["0 :invoke :read [3 nil]", "0 :ok :read [4 1]"], "line 2: .* of another key; it .* 3,"),
        (["0 :invoke :write [3 1]", "1 :invoke :write 1"],
         "line 2: '1' has no key, and those before have; in one log all .* one, or none$"),
        (["0 :invoke :write 1", "1 :invoke :read [3 nil]"],
         r"line 2: '\[3 nil\]' has a key, and none before it has one;"),
        (["0 :invoke :read nil", "0 :ok :read [3 1]"], "line 2: .* has a key"),
    ],
)  # fmt: skip
def test_what_is_no_log_of_a_register(
    events: list[str], words: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Unreadable, match=words) as refusal:
        read(jepsens(*events))
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.write_text("\n".join(jepsens(*events)))
    good.write_text("\n".join(JEPSEN))
    assert main([str(bad), str(good)]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == (f"{good} true\n", f"{bad}: {refusal.value}\n")
    assert str(refusal.value).startswith("line ")


def test_a_log_in_which_all_failed_is_a_history_of_nothing() -> None:
    told, model = read(jepsens("0 :invoke :read nil", "0 :fail :read :timed-out"))
    assert (told, model) == ([], "register")
    assert check(told, MODELS[model])


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
        ('{"client": "b", "kind": "append", "argument": 1, "began": 1}',
         "line 3: a register does not know 'append'; it knows read, write, cas$"),
        ('{"client": "b", "kind": "cas", "argument": 5, "began": 1}',
         r"line 3: a cas asks for 5; it would be \[from, to\]$"),
        ('{"client": "b", "kind": "cas", "argument": [1, 2, 3], "began": 1}', "line 3: a cas asks"),
        ("[]", "line 3: it is no operation"),
        ("null", "line 3: it is no operation"),
    ],
)  # fmt: skip
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
    other.write_bytes(b"\xff\xfe")
    assert main([str(other), str(good)]) == 2
    told = capsys.readouterr()
    assert told.out == f"{good} true\n"
    assert told.err.startswith(f"{other}: it is no text; it would be in UTF-8")
    other.write_text("x\n")
    assert main([str(good), str(bad)]) == 0
    assert capsys.readouterr().out == f"{good} true\n{bad} false\n"
    assert main([str(other), str(tmp_path / "none"), str(good)]) == 2
    told = capsys.readouterr()
    assert told.out == f"{good} true\n"
    assert "neither a log" in told.err and "No such file" in told.err


def test_the_command_says_what_its_exit_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, status in (["--help"], 0), ([], 2), (["--odd"], 2):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == status
    told = capsys.readouterr()
    words = " ".join(told.out.split())
    assert "exit status is 0 where every file was judged, also where a verdict is false" in words
    assert "and 2 where one could not be read" in words
    assert "usage: python -m tests.linearize" in told.err
