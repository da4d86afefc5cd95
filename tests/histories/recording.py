"""Clients that ask any node, and the record of it, which the checker of histories judges.

What came back is taken at its word: an answer is a result, and a refusal has changed nothing unless
its own words leave that open, as docs/consensus.md promises. Of what was sent and never answered
nobody knows whether it was done.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from tests.linearize import MODELS, UNKNOWN, Operation, Undecided, Verdict, check, write

Answer = tuple[int, Any]
"""Status and what was said."""
CLIENTS = 8
PATIENT_SHARE = 0.15
"""So often a client waits for as long as a node may take to say no."""
PATIENCE_S = 15.0
IMPATIENCE_S = 0.7
PAUSE_S = 0.02
REST_S = 0.6
"""Up to so long a client rests that was not answered."""
UNSURE_MAX = 5
"""Of so many changes of one thing nobody may know the end: they have an order in as many ways as
there are orders. The thing is only looked at from then on."""
WISHES_MAX = 20
SHY_S = 1.0
"""For so long a client mostly keeps away from a node that left it without an answer."""
SHY_SHARE = 0.8
PROBLEMS_MAX = 20
OPEN = ("is not known", "it may still take effect", "it was done")
"""Words of a refusal that does not say that nothing was changed."""


class NotSent(Exception):
    """Nobody was there to ask: nothing can have come of it."""


class Lost(Exception):
    """It was sent, and the answer never came."""


class Unforeseen(Exception):
    """An answer that the documents do not know."""


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    body: object = None
    surface: str = "jobqueue"


class Door(Protocol):
    """Where one node is asked."""

    def ask(self, asked: Asked, timeout_s: float) -> Answer:
        """Raises NotSent or Lost."""


@dataclass(frozen=True)
class HttpDoor:
    """A connection for each request, so that it is plain whether there was anybody to ask."""

    address: str
    ports: Mapping[str, int]

    def ask(self, asked: Asked, timeout_s: float) -> Answer:
        connection = http.client.HTTPConnection(
            self.address, self.ports[asked.surface], timeout=timeout_s
        )
        raw = None if asked.body is None else json.dumps(asked.body).encode()
        headers = {"Connection": "close"} | ({"Content-Type": "application/json"} if raw else {})
        with contextlib.closing(connection):
            try:
                connection.connect()
            except OSError as error:
                raise NotSent(repr(error)) from error
            try:
                connection.request(asked.method, f"/api/v1{asked.path}", raw, headers)
                answer = connection.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise Lost(repr(error)) from error
        return answer.status, json.loads(data) if data else None


@dataclass(frozen=True)
class Wish:
    """An operation before its time, how it is asked for, and what an answer to it means."""

    model: str
    operation: Operation
    asked: Asked
    told: Callable[[int, Any], Any]
    """The result. Raises Unforeseen."""
    reads: bool = False


class Things(Protocol):
    """Objects of one kind, whose names are new with each history."""

    model: str

    def wish(self, client: str, rng: random.Random, progress: float) -> Wish:
        """Something to be asked when so much of the history is over, from 0 to 1."""

    def last_looks(self) -> list[Wish]:
        """A look at each thing that there is, for the end."""

    def besides(self, told: Sequence[Operation]) -> list[Operation]:
        """What may come to pass although nobody asks for it."""


@dataclass
class Recording:
    """What one history's clients were told. For threads."""

    operations: dict[str, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    unsure: Counter[str] = field(default_factory=Counter)
    """By key, changes of which nobody knows the end."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(
        self, wish: Wish, door: Door, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> bool:
        """Whether there was an answer that is one."""
        began = clock()
        try:
            status, said = door.ask(wish.asked, timeout_s)
        except NotSent:
            self._count("not sent")
            return False
        except Lost:
            self._lost(wish, began)
            return False
        ended = clock()
        if status == 503:
            if any(words in json.dumps(said) for words in OPEN):
                self._lost(wish, began)
            else:
                self._count("looks refused" if wish.reads else "refused")
            return False
        try:
            result = wish.told(status, said)
        except (Unforeseen, LookupError, TypeError, ValueError) as error:
            self._problem(f"{wish.operation} was answered {status} {said}: {error!r}")
            self._lost(wish, began)
            return True
        self._keep(wish, replace(wish.operation, result=result, began=began, ended=ended))
        self._count("told")
        return True

    def _lost(self, wish: Wish, began: float) -> None:
        """Of a look nothing is left; a change may be done at any time from now on, or never."""
        self._count("looks lost" if wish.reads else "unknown")
        if not wish.reads:
            self._keep(wish, replace(wish.operation, result=UNKNOWN, began=began))
            self.unsure[wish.operation.key] += 1

    def _keep(self, wish: Wish, operation: Operation) -> None:
        with self._lock:
            self.operations[wish.model].append(operation)

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _problem(self, said: str) -> None:
        with self._lock:
            if len(self.problems) < PROBLEMS_MAX:
                self.problems.append(said[:1000])

    @property
    def total(self) -> int:
        return sum(map(len, self.operations.values()))

    def __str__(self) -> str:
        parts = [f"{count} {what}" for what, count in sorted(self.counts.items())]
        return f"{self.total} operations ({', '.join(parts)})"


class Client:
    """Asks for one thing after the other, each time at another node, whichever chance picks."""

    def __init__(
        self, name: str, seed: str, doors: Sequence[Door], things: Sequence[Things],
        recording: Recording, *, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.name = name
        self.rng = random.Random(f"{seed}-{name}")
        self._doors = doors
        self._things = things
        self._recording = recording
        self._clock = clock
        self._shy_until = [0.0] * len(doors)

    def step(self, progress: float) -> bool:
        """Whether there was an answer that is one."""
        wish = self._wish(progress)
        at = self._choose()
        timeout_s = PATIENCE_S if self.rng.random() < PATIENT_SHARE else IMPATIENCE_S
        answered = self._recording.ask(wish, self._doors[at], timeout_s, self._clock)
        if not answered:
            self._shy_until[at] = self._clock() + SHY_S
        return answered

    def _wish(self, progress: float) -> Wish:
        for _ in range(WISHES_MAX):
            wish = self.rng.choice(self._things).wish(self.name, self.rng, progress)
            if wish.reads or self._recording.unsure[wish.operation.key] < UNSURE_MAX:
                break
        return wish

    def _choose(self) -> int:
        at = self.rng.randrange(len(self._doors))
        for _ in self._doors:
            shy = self._clock() < self._shy_until[at] and self.rng.random() < SHY_SHARE
            if not shy:
                break
            at = (at + 1) % len(self._doors)
        return at


@contextmanager
def clients_at_work(
    doors: Sequence[Door], things: Sequence[Things], recording: Recording, seed: int,
    expected_s: float,
) -> Iterator[None]:  # fmt: skip
    """For the block; at its end every one of them has ended. What they ask for moves on to new
    things over the time that the history is expected to take."""
    going = threading.Event()
    going.set()
    began = time.monotonic()

    def work(client: Client) -> None:
        while going.is_set():
            answered = client.step(min(1.0, (time.monotonic() - began) / expected_s))
            time.sleep(client.rng.uniform(0, 2 * PAUSE_S if answered else REST_S))

    def guarded(client: Client) -> None:
        try:
            work(client)
        except Exception as error:
            recording._problem(f"{client.name} ended: {error!r}")

    threads = []
    for number in range(1, CLIENTS + 1):
        client = Client(f"c{number}", str(seed), doors, things, recording)
        threads.append(threading.Thread(target=guarded, args=(client,), daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        going.clear()
        for thread in threads:
            thread.join(4 * PATIENCE_S)
            assert not thread.is_alive(), "a client hangs"


def look_at_all(
    doors: Sequence[Door], things: Sequence[Things], recording: Recording,
    clock: Callable[[], float] = time.monotonic,
) -> None:  # fmt: skip
    """At the end each node is asked for each thing: what was acknowledged must be there."""
    for kind in things:
        for wish in kind.last_looks():
            for door in doors:
                recording.ask(wish, door, PATIENCE_S, clock)


# What the checker says


@dataclass
class History:
    """All that was told of things of one kind, by their model."""

    model: str
    operations: list[Operation]
    verdict: Verdict | Undecided | None = None

    @property
    def sound(self) -> bool:
        return isinstance(self.verdict, Verdict) and self.verdict.linearizable

    def judge(self) -> bool:
        try:
            self.verdict = check(self.operations, MODELS[self.model])
        except Undecided as undecided:
            self.verdict = undecided
        return self.sound

    def save(self, folder: Path, name: str) -> Path:
        path = folder / f"{name}-{self.model}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            write(self.operations, self.model, file)
        return path


def histories_of(recording: Recording, things: Sequence[Things]) -> list[History]:
    """With what may have come to pass besides."""
    found = []
    for kind in things:
        told = recording.operations[kind.model]
        operations = sorted([*told, *kind.besides(told)], key=lambda each: each.began)
        found.append(History(kind.model, operations))
    return found
