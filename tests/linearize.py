"""Is there one order? A checker of histories, after Wing and Gong, with Lowe's memory of failures.

A history says what each client asked, when it began and when it ended, and what it was told. It is
linearizable if every operation can be given one moment between its beginning and its end, so that
all of them, one after the other in that order, would have been told just that. An operation whose
outcome nobody learned may have taken effect at any moment since it began, or never.

Only the standard library is needed. `python -m tests.linearize FILE...` reads Jepsen's logs of a
register, or of one for each key, and our own records, and says `FILE true` or `FILE false`. Its
exit status is 0 where every file was judged, also where a verdict is false, and 2 where one could
not be read or decided: standard error says why, and the others are judged all the same. Memory
grows with the square of the operations of one key: 40,000 of them took 245 MiB.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

STEPS_MAX = 20_000_000
"""After so many moves the checker gives up on a key, and says so: the problem is NP-complete."""


class Unknown:
    """The outcome of an operation that nobody was told."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = Unknown()


@dataclass(slots=True)
class Operation:
    client: str
    kind: str
    argument: Any = None
    """What was asked; for a compare-and-set, the pair."""
    result: Any = UNKNOWN
    began: float = 0.0
    ended: float = math.inf
    key: str = ""

    @property
    def known(self) -> bool:
        return self.result is not UNKNOWN

    def __str__(self) -> str:
        asked = "" if self.argument is None else f" {self.argument!r}"
        told = f" -> {self.result!r}" if self.known else ", and was not told how it ended"
        key = f" {self.key}" if self.key else ""
        return f"{self.client}: {self.kind}{key}{asked}{told} [{self.began:g}, {self.ended:g}]"


class Model(Protocol):
    """What one thing does, were there only one client."""

    @property
    def kinds(self) -> Sequence[str]:
        """What it may be asked."""

    @property
    def first(self) -> Hashable:
        """Its state before anybody came."""

    def after(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        """The states that it may be in once it told the operation's result; none: it never does.
        Where the result is not known, whatever taking effect may lead to."""


# What is checked


class Register:
    """read, write, cas [from, to] -> whether it was done."""

    kinds: Sequence[str] = ("read", "write", "cas")
    first = None

    def after(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        match operation.kind:
            case "read":
                return (state,) if operation.result == state or not operation.known else ()
            case "write":
                return (operation.argument,)
            case "cas":
                expected, new = operation.argument
                if operation.result is False:
                    return () if state == expected else (state,)
                return (new,) if state == expected else ()
        raise ValueError(f"a register does not know {operation.kind!r}")


class Setting(Register):
    """A register that also keeps what was there: keep VALUE -> the value that it has then, or
    False: another one than this."""

    kinds = (*Register.kinds, "keep")

    def after(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        if operation.kind != "keep":
            return super().after(state, operation)
        kept = operation.argument if state is None else state
        if operation.result is False:
            return () if kept == operation.argument else (kept,)
        return (kept,) if operation.result == kept or not operation.known else ()


class Queue:
    """First in, first out: enqueue VALUE, dequeue -> the oldest, or None where it is empty."""

    kinds = ("enqueue", "dequeue")
    first: tuple[Hashable, ...] = ()

    def after(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        match operation.kind:
            case "enqueue":
                return ((*state, operation.argument),)
            case "dequeue":
                oldest = state[0] if state else None
                return (state[1:],) if operation.result == oldest or not operation.known else ()
        raise ValueError(f"a queue does not know {operation.kind!r}")


ENDED = ("completed", "failed", "cancelled")
"""What a job of ours comes to, once and for all."""


class Job:
    """One job of ours, which goes on by itself: it waits, runs, and waits again for a later
    attempt, until it ends. What has ended stays as it is, what was cancelled never completes, and
    nothing goes backwards.

    submit -> True where it is new, or the status of the one that is there; see -> [attempts begun,
    or None where that is not told, status]; cancel, and withdraw, which is for one that waits ->
    True where that ended it, or the status that stood in the way, or False: it had ended.
    """

    kinds = ("submit", "see", "cancel", "withdraw")
    # Attempts, status, and whether they are so many: else it is at least there already. How far it
    # has gone since somebody looked, whoever looks next will see.
    first: Hashable = None

    def after(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        result = operation.result
        match operation.kind:
            case "submit":
                if state is None:
                    fitting = result in (True, "pending") or not operation.known
                    return ((0, "pending", False),) if fitting else ()
                return () if result is True else self._seen(state, operation, (None, result))
            case "see":
                return self._seen(state, operation, result)
            case "cancel" | "withdraw":
                return self._stopped(state, operation)
        raise ValueError(f"a job does not know {operation.kind!r}")

    def _seen(self, state: Any, operation: Operation, told: Any) -> Iterable[Hashable]:
        if not operation.known:
            return (state,)
        if told is None or state is None:
            return (state,) if told is None and state is None else ()
        so_far, standing, sure = state
        attempts, status = told
        if standing in ENDED and status != standing:
            return ()
        if attempts is None:
            # As few as it can be: more would only say that it has come further.
            late = status not in ENDED and _turn(so_far, status) < _turn(so_far, standing)
            return ((so_far + late, status, sure),)
        if status not in ENDED:
            gone_on = _turn(attempts, status) >= _turn(so_far, standing)
            return ((attempts, status, False),) if gone_on else ()
        fitting = attempts == so_far if sure else attempts >= so_far
        return ((attempts, status, True),) if fitting else ()

    def _stopped(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        result = operation.result
        if state is None:
            return (state,) if result is None or not operation.known else ()
        so_far, standing, _ = state
        ended = standing in ENDED
        stopped = (so_far, "cancelled", False)
        if not operation.known:
            return (state,) if ended else (stopped,)
        if result is True:
            return () if ended else (stopped,)
        if result is False:
            by_itself = ((so_far, "completed", False), (so_far, "failed", False))
            return (state,) if ended else by_itself
        in_the_way = ENDED if operation.kind == "cancel" else (*ENDED, "running")
        return self._seen(state, operation, (None, result)) if result in in_the_way else ()


def _turn(attempts: int, status: str) -> int:
    """Waiting, running the first time, waiting again, running the second time, and so on."""
    return 2 * attempts - (status == "running")


class Lane:
    """Jobs that go to whoever comes for them: the most urgent first, and of those the oldest. At
    most one has each of them, and what has ended stays as it is.

    submit [JOB, priority] -> its status; claim EXECUTOR -> the job that it is given, or None; beat
    [JOB, EXECUTOR] -> whether it has the job; complete and fail [JOB, EXECUTOR] -> True, or the
    status that stands in the way, or "held": by another; cancel and withdraw JOB -> True, or the
    status that stands in the way; see JOB -> [status, who has or had it]; list -> [job, status,
    who] of each, the newest first. None: there is no such job. What nobody asks for, but may come
    to pass: silence EXECUTOR, after which a job that it had waits again.
    """

    kinds = (
        "submit", "claim", "beat", "complete", "fail", "cancel", "withdraw", "see", "list",
        "silence",
    )  # fmt: skip
    first: tuple[tuple[str, int, str, str | None], ...] = ()
    """Job, priority, status and who has or had it."""

    def after(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        argument = operation.argument
        match operation.kind:
            case "claim":
                waiting = [(-job[1], at) for at, job in enumerate(state) if job[2] == "pending"]
                if not waiting:
                    return _if_told(operation, None, state)
                _, at = min(waiting)
                given = _replaced(state, at, "running", argument)
                return _if_told(operation, state[at][0], given)
            case "list":
                rows = tuple((name, status, who) for name, _, status, who in reversed(state))
                return _if_told(operation, rows, state)
            case "silence":
                had = [at for at, job in enumerate(state) if job[2:] == ("running", argument)]
                return [_replaced(state, at, "pending", None) for at in had]
        name, *more = argument if isinstance(argument, tuple) else (argument,)
        at = next((at for at, job in enumerate(state) if job[0] == name), -1)
        if operation.kind == "submit":
            there = state if at >= 0 else (*state, (name, *more, "pending", None))
            return _if_told(operation, there[at][2], there)
        if at < 0:
            return _if_told(operation, None, state)
        return self._of_one(state, at, operation, *more)

    def _of_one(
        self, state: Any, at: int, operation: Operation, executor: str | None = None
    ) -> Iterable[Hashable]:
        _, _, status, who = state[at]
        has_it = status == "running" and who == executor
        match operation.kind:
            case "see":
                return _if_told(operation, (status, who), state)
            case "beat":
                return _if_told(operation, has_it, state)
            case "complete" | "fail":
                if not has_it:
                    why = "held" if status == "running" else status
                    return _if_told(operation, why, state)
                ended = "completed" if operation.kind == "complete" else "failed"
                return _if_told(operation, True, _replaced(state, at, ended, who))
            case "cancel" | "withdraw":
                if status in ENDED or (status == "running" and operation.kind == "withdraw"):
                    return _if_told(operation, status, state)
                return _if_told(operation, True, _replaced(state, at, "cancelled", who))
        raise ValueError(f"a lane does not know {operation.kind!r}")


def _if_told(operation: Operation, expected: Any, state: Hashable) -> Iterable[Hashable]:
    return (state,) if not operation.known or operation.result == expected else ()


def _replaced(state: Any, at: int, status: str, who: str | None) -> Hashable:
    name, priority, *_ = state[at]
    return (*state[:at], (name, priority, status, who), *state[at + 1 :])


MODELS: dict[str, Model] = {
    "register": Register(), "setting": Setting(), "queue": Queue(), "job": Job(), "lane": Lane(),
}  # fmt: skip


# The search


class Undecided(Exception):
    """Too many ways to try."""


@dataclass
class Verdict:
    linearizable: bool
    key: str = ""
    order: list[Operation] = field(default_factory=list)
    """One order; or as much of one as was found."""
    stuck: Operation | None = None
    """Had ended, and has no place after any of the orders that were tried."""

    def __bool__(self) -> bool:
        return self.linearizable

    def __str__(self) -> str:
        if self.linearizable:
            return "linearizable"
        where = f" at {self.key}" if self.key else ""
        if not self.order:
            return f"not linearizable{where}: there is no place for {self.stuck}"
        lines = [f"not linearizable{where}; the longest order:"]
        lines += [f"  {operation}" for operation in self.order]
        return "\n".join([*lines, f"  and then there is no place for {self.stuck}"])


def check(history: Iterable[Operation], model: Model, *, steps_max: int = STEPS_MAX) -> Verdict:
    """Whether it is linearizable: a history is if each key's part of it is."""
    parts: dict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        parts[operation.key].append(operation)
    verdict = Verdict(True)
    for key, part in parts.items():
        # Another model may give what a register does not, and remember what it forgets.
        if type(model) is Register:
            if (stuck := _found_by_nobody(part)) is not None:
                return Verdict(False, key, stuck=stuck)
            part = _without_idle_writes(part)
        verdict = _Search(part, model, steps_max).run()
        if not verdict:
            verdict.key = key
            return verdict
    return verdict


def _found_by_nobody(part: Iterable[Operation]) -> Operation | None:
    """One that found a value in a register that was not there at first, and that nobody could have
    put there before it ended. The search would say so too, after it tried every order."""
    since: dict[Hashable, float] = {Register.first: -math.inf}
    found: list[tuple[Hashable, Operation]] = []
    for each in part:
        if each.kind == "read" and each.known:
            found.append((each.result, each))
        elif each.kind == "write":
            since[each.argument] = min(each.began, since.get(each.argument, math.inf))
        elif each.kind == "cas" and each.result is not False:
            expected, new = each.argument
            since[new] = min(each.began, since.get(new, math.inf))
            if each.known:
                found.append((expected, each))
    return next((by for value, by in found if since.get(value, math.inf) > by.ended), None)


def _without_idle_writes(part: Sequence[Operation]) -> list[Operation]:
    """Without the writes to a register that nobody was told of, and that nothing tells of: no read
    found their value, and no compare-and-set asks for it. After such a one there is no place for
    any operation that found anything, until another write: so it may as well not have been. Only a
    compare-and-set that differed has a place there, and may owe it to this very write: one that had
    not ended when the write began keeps it."""
    compared = [each for each in part if each.kind == "cas"]
    named = {each.result for each in part if each.kind == "read" and each.known}
    named |= {each.argument[0] for each in compared}
    differed = max((each.ended for each in compared if each.result is False), default=-math.inf)
    return [
        each for each in part
        if each.known or each.kind != "write" or each.argument in named or each.began <= differed
    ]  # fmt: skip


class _Search:
    """Beginnings and ends stand in a list, by time. A beginning that comes before the first end may
    be the next in the order; it is taken out together with its end. At an end nothing more may be
    passed over: whoever stands there was left too long, and the last choice is taken back. What
    nobody was told of is tried after all that may be next by its end: as late as it can be, or it
    would have to be put off in every way there is."""

    def __init__(self, part: Sequence[Operation], model: Model, steps_max: int) -> None:
        self.model = model
        self.steps_left = steps_max
        self.operations = sorted(part, key=lambda each: each.began)
        marks: list[tuple[float, bool, int]] = []
        for n, operation in enumerate(self.operations):
            marks.append((operation.began, False, n))
            if operation.known:
                marks.append((operation.ended, True, n))
        marks.sort()  # of one moment, the beginnings come first: those were there together
        self.of = [-1] + [n for _, _, n in marks]
        """Whose mark it is; 0 is the list's head."""
        self.ends = [False] + [end for _, end, _ in marks]
        self.end_at = [0] * len(self.operations)
        for at, (n, end) in enumerate(zip(self.of, self.ends, strict=True)):
            if end:
                self.end_at[n] = at
        self.after = [*range(1, len(self.of)), 0]
        self.before = [len(self.of) - 1, *range(len(self.of) - 1)]

    def run(self) -> Verdict:
        left = sum(operation.known for operation in self.operations)
        state: Hashable = self.model.first
        placed, at = 0, self.after[0]
        failed: set[tuple[int, Hashable]] = set()
        order: list[tuple[int, int, Hashable, Iterator[Hashable]]] = []
        """Each choice: the mark, what was placed before it and the state then, and what else its
        operation may have led to."""
        best: list[int] = []
        stuck: int | None = None
        ways: Iterator[Hashable] | None = None
        unsure = False
        while left:
            if self.steps_left <= 0:
                raise Undecided(f"{len(self.operations)} operations have too many orders")
            self.steps_left -= 1
            n = self.of[at]
            if not self.ends[at]:
                if self.operations[n].known is unsure:
                    at = self.after[at]
                    continue
                if ways is None:
                    ways = iter(self._ways(state, self.operations[n]))
                chosen = next(
                    (way for way in ways if (placed | 1 << n, way) not in failed), UNKNOWN
                )
                if chosen is UNKNOWN:
                    at, ways = self.after[at], None
                    continue
                failed.add((placed | 1 << n, chosen))
                order.append((at, placed, state, ways))
                placed, state, ways = placed | 1 << n, chosen, None
                left -= self.operations[n].known
                self._take_out(at)
                at, unsure = self.after[0], False
                continue
            if not unsure:
                at, unsure = self.after[0], True
                continue
            if len(order) >= len(best):
                best, stuck = [self.of[mark] for mark, *_ in order], n
            if not order:
                return Verdict(False, order=self._told(best), stuck=self.operations[stuck or 0])
            at, placed, state, ways = order.pop()
            left += self.operations[self.of[at]].known
            unsure = not self.operations[self.of[at]].known
            self._put_back(at)
        return Verdict(True, order=self._told(self.of[mark] for mark, *_ in order))

    def _ways(self, state: Hashable, operation: Operation) -> Iterable[Hashable]:
        """What nobody was told of, and changed nothing, may as well not have been."""
        ways = self.model.after(state, operation)
        return ways if operation.known else [way for way in ways if way != state]

    def _told(self, numbers: Iterable[int]) -> list[Operation]:
        return [self.operations[n] for n in numbers]

    def _take_out(self, at: int) -> None:
        self._unlink(at)
        if end := self.end_at[self.of[at]]:
            self._unlink(end)

    def _put_back(self, at: int) -> None:
        if end := self.end_at[self.of[at]]:
            self._link(end)
        self._link(at)

    def _unlink(self, at: int) -> None:
        self.after[self.before[at]] = self.after[at]
        self.before[self.after[at]] = self.before[at]

    def _link(self, at: int) -> None:
        self.after[self.before[at]] = at
        self.before[self.after[at]] = at


# Histories in files

_JEPSEN = re.compile(r"^INFO\s+jepsen\.util\s+-\s+(\d+)\s+:(\w+)\s+:(\w+)\s+(\S.*?)\s*$")
_JEPSENS = re.compile(r"jepsen\.util\s+-\s+\d+\s+:")
"""What tells of a client, be it whole or damaged."""
_JEPSEN_EVENT = "INFO  jepsen.util - CLIENT :EVENT :KIND VALUE"
_JEPSEN_EVENTS = ("invoke", "ok", "fail", "info")
_WORD = r"[^\s\[\]]+"
_PAIR = rf"\[\s*{_WORD}\s+{_WORD}\s*\]"
_JEPSEN_VALUES = {
    kind: re.compile(rf"\[\s*(?P<key>{_WORD})\s+(?P<keyed>{value})\s*\]|(?P<plain>{value})")
    for kind, value in (("read", _WORD), ("write", _WORD), ("cas", _PAIR))
}
_BARE_VECTOR = re.compile(r"\[[^\[\]]*(\[[^\[\]]*\]\s*)?\]")
"""And nothing after it, such as why it failed."""
_FORM = "swarmd-history"


class Unreadable(Exception):
    """This is no history."""


def read_jepsen(lines: Iterable[str]) -> list[Operation]:
    """The log of a register, or of one for each key. What failed did nothing, but for a
    compare-and-set with no other word than its values: it compared."""
    log = _JepsensLog()
    for at, line in enumerate(lines):
        try:
            log.take(line, at)
        except Unreadable as error:
            raise Unreadable(f"line {at + 1}: {error}") from None
    return log.history


@dataclass
class _JepsensLog:
    history: list[Operation] = field(default_factory=list)
    under_way: dict[str, Operation] = field(default_factory=dict)
    keyed: bool | None = None
    """Whether each value has a key; None: there was no value yet."""

    def take(self, line: str, at: int) -> None:
        if (found := _JEPSEN.match(line)) is None:
            if _JEPSENS.search(line):
                right = f"it would be {_JEPSEN_EVENT!r}"
                raise Unreadable(f"a damaged event: {line.strip()!r}; {right}")
            return
        client, event, kind, words = found.groups()
        if kind not in Register.kinds:
            raise Unreadable(f"a register does not know :{kind}; it knows {_named(Register.kinds)}")
        if event not in _JEPSEN_EVENTS:
            raise Unreadable(f"nobody knows the event :{event}; it is {_named(_JEPSEN_EVENTS)}")
        if event == "invoke":
            if client in self.under_way:
                raise Unreadable(f"{client} begins anew before it has ended: it would do so after")
            key, value = self._value(kind, words)
            operation = Operation(client, kind, value, began=at, key=key)
            self.under_way[client] = operation
            self.history.append(operation)
            return
        ending = self.under_way.pop(client, None)
        if ending is None or ending.kind != kind:
            raise Unreadable(f"{client} ends what it had not begun; it would invoke :{kind} first")
        if event == "ok":
            told = self._told(ending, words)
            ending.result, ending.ended = told if kind == "read" else True, at
        elif event == "fail" and kind == "cas" and _BARE_VECTOR.fullmatch(words):
            self._told(ending, words)
            ending.result, ending.ended = False, at
        elif event == "fail":
            self.history.remove(ending)

    def _told(self, ending: Operation, words: str) -> Any:
        """The value at its end: of its key, and what it asked for unless it asked what is there."""
        key, value = self._value(ending.kind, words)
        if key != ending.key:
            raise Unreadable(f"{words!r} is of another key; it would be {ending.key}, as asked for")
        if ending.kind != "read" and value != ending.argument:
            right = _in_jepsens_words(ending)
            raise Unreadable(f"{words!r} is not what was asked for; it would be {right!r}")
        return value

    def _value(self, kind: str, words: str) -> tuple[str, Any]:
        """Its key, and itself."""
        if (found := _JEPSEN_VALUES[kind].fullmatch(words)) is None:
            raise _no_value(kind, words)
        keyed = found["key"] is not None
        if self.keyed not in (None, keyed):
            form = "a key, and none before it has one" if keyed else "no key, and those before have"
            raise Unreadable(f"{words!r} has {form}; in one log all values would have one, or none")
        self.keyed = keyed
        plain = found["keyed"] if keyed else found["plain"]
        try:
            numbers = tuple(
                None if word == "nil" else int(word) for word in plain.strip("[]").split()
            )
        except ValueError:
            raise _no_value(kind, words) from None
        return found["key"] or "", numbers if kind == "cas" else numbers[0]


def _no_value(kind: str, words: str) -> Unreadable:
    value = "[OLD NEW]" if kind == "cas" else "VALUE"
    right = f"it would be {value}, or [KEY {value}], and each value a whole number or nil"
    return Unreadable(f"{words!r} is no value of a register's :{kind}; {right}")


def _in_jepsens_words(operation: Operation) -> str:
    each = operation.argument if operation.kind == "cas" else (operation.argument,)
    plain = " ".join("nil" if value is None else str(value) for value in each)
    plain = f"[{plain}]" if operation.kind == "cas" else plain
    return f"[{operation.key} {plain}]" if operation.key else plain


def _named(words: Sequence[str]) -> str:
    return ", ".join(f":{word}" for word in words)


def write(history: Iterable[Operation], model: str, to: TextIO) -> None:
    """Our own form: a line that names the model, and a line of JSON for each operation."""
    to.write(json.dumps({"form": _FORM, "model": model}) + "\n")
    for each in history:
        line: dict[str, Any] = {"client": each.client, "kind": each.kind, "began": each.began}
        line |= {"key": each.key} if each.key else {}
        line |= {} if each.argument is None else {"argument": each.argument}
        line |= {"ended": each.ended, "result": each.result} if each.known else {}
        to.write(json.dumps(line) + "\n")


def read(lines: Iterable[str]) -> tuple[list[Operation], str]:
    """A history, and the name of its model, from either form."""
    text = list(lines)
    head = _our_head(text[0]) if text else None
    if head is None:
        history = read_jepsen(text)
        # One in which all failed is a history in which nothing was done.
        if not any(map(_JEPSEN.match, text)):
            ours = json.dumps({"form": _FORM, "model": "register"})
            right = f"there would be lines of {_JEPSEN_EVENT!r}, or a first line such as {ours}"
            raise Unreadable(f"it is neither a log of Jepsen's nor a record of ours; {right}")
        return history, "register"
    if (model := head.get("model")) not in MODELS:
        raise Unreadable(f"its model is {model!r}; there are {', '.join(MODELS)}")
    told = [(at, line) for at, line in enumerate(text[1:], 2) if line.strip()]
    return [_operation(line, at, model) for at, line in told], model


def _our_head(line: str) -> Mapping[str, Any] | None:
    try:
        head = json.loads(line)
    except ValueError:
        return None
    except RecursionError:
        raise Unreadable("line 1: it is nested too deeply") from None
    return head if isinstance(head, dict) and head.get("form") == _FORM else None


def _operation(words: str, at: int, model: str) -> Operation:
    try:
        line = json.loads(words)
        if not isinstance(line, dict):
            raise Unreadable(f"line {at}: it is no operation")
        known = "ended" in line or "result" in line
        needed = ("client", "kind", "began", *(("ended", "result") if known else ()))
        if missing := [name for name in needed if name not in line]:
            raise Unreadable(f"line {at}: the operation has no {', '.join(missing)}")
        began, ended = line["began"], line["ended"] if known else math.inf
        for name in ("began", "ended") if known else ("began",):
            if not _is_time(line[name]):
                raise Unreadable(f"line {at}: {name} is {line[name]!r}, which is no time")
        if ended < began:
            raise Unreadable(f"line {at}: it ended at {ended!r}, before it began at {began!r}")
        kind, argument = line["kind"], _frozen(line.get("argument"))
        if kind not in (kinds := MODELS[model].kinds):
            right = f"it knows {', '.join(kinds)}"
            raise Unreadable(f"line {at}: a {model} does not know {kind!r}; {right}")
        if kind == "cas" and not (isinstance(argument, tuple) and len(argument) == 2):
            raise Unreadable(f"line {at}: a cas asks for {argument!r}; it would be [from, to]")
        return Operation(
            line["client"], kind, argument,
            _frozen(line["result"]) if known else UNKNOWN, began, ended, line.get("key", ""),
        )  # fmt: skip
    except RecursionError:
        raise Unreadable(f"line {at}: it is nested too deeply") from None


def _is_time(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.linearize", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("paths", metavar="FILE", nargs="+", help="Jepsen's log or our own record")
    unread = 0
    for path in parser.parse_args(arguments).paths:
        try:
            with Path(path).open(encoding="utf-8") as lines:
                history, model = read(lines)
            verdict = check(history, MODELS[model])
        except UnicodeDecodeError as error:
            print(f"{path}: it is no text; it would be in UTF-8: {error}", file=sys.stderr)
            unread += 1
            continue
        except (OSError, Unreadable, Undecided, ValueError, KeyError, TypeError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            unread += 1
            continue
        print(path, "true" if verdict else "false")
    return 2 if unread else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
