"""The things that clients ask for: lanes of jobs to be claimed, jobs that nodes run, and keys.

Each operation is one request that the documents know, over either surface where both have it, and
what its answer means is said beside it. No read asks for less than the newest: none is local.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

from tests.histories.recording import Asked, Things, Unforeseen, Wish
from tests.linearize import Operation

SILENCE_S = 15.0
"""An executor that says nothing for longer may lose its job: docs/job-queue.md."""
NOTHING = {"url": "https://nowhere.example/binary", "sha256": "0" * 64}
"""What no node ever runs needs nothing that could be run."""
LANES = 2
EXECUTORS = 200
TOKENS = 14
"""Jobs that come into a lane over a history."""
JOBS = 8
KEYS = 8
RECENT = 4
NAP_S = (0.0, 0.1, 0.4, 1.2)
PRIORITIES = {"foreground": 100, "background": 50, "best_effort": 10}
STATUSES = ("pending", "running", "completed", "failed", "cancelled")


def all_things(name: str) -> list[Things]:
    """Those of one history, which has this name."""
    return [Lanes(name), Jobs(name), Keys(name)]


class Lanes:
    """Jobs for executors from outside: a constraint that no node meets keeps a lane to itself."""

    model = "lane"

    def __init__(self, name: str) -> None:
        self._lanes = [f"{name}-lane{number}" for number in range(LANES)]
        self._ids: dict[str, str] = {}
        """Of each job that somebody was told of, by its token."""
        self._holders: dict[str, str] = {}
        """Who was last told that the job is theirs."""
        self._claims = itertools.count()

    def wish(self, client: str, rng: random.Random, progress: float) -> Wish:
        lane = rng.choice(self._lanes)
        token = f"{lane}-{_recent(rng, progress, TOKENS)}"
        job_id = self._ids.get(token)
        if job_id is None:
            kinds = {"submit": 6, "claim": 3, "list": 1}
        else:
            kinds = {"submit": 1, "claim": 6, "list": 3, "see": 6, "beat": 2, "complete": 4,
                     "fail": 1, "cancel": 1, "withdraw": 1}  # fmt: skip
        kind = rng.choices([*kinds], [*kinds.values()])[0]
        match kind:
            case "submit":
                return self._submit(client, rng, lane, token)
            case "claim":
                return self._claim(client, lane)
            case "list":
                return self._list(client, lane)
        assert job_id is not None
        if kind == "see":
            return self._see(client, lane, token, job_id, rng.choice(("jobqueue", "console")))
        if kind in ("cancel", "withdraw"):
            return self._stop(client, lane, token, job_id, kind)
        # As a rule it is whoever has it that says so, and sometimes somebody who has not.
        holder, other = self._holders.get(token, "e0"), f"e{rng.randrange(EXECUTORS)}"
        executor = holder if rng.random() < 0.7 else other
        return self._report(client, lane, token, job_id, kind, executor)

    def last_looks(self) -> list[Wish]:
        return [self._list("last", lane) for lane in self._lanes]

    def besides(self, told: Sequence[Operation]) -> list[Operation]:
        """Executors that fall silent: each may, so long after a claim, whatever came of that."""
        over = max((each.ended for each in told if each.known), default=0.0)
        return [
            Operation(
                "nobody", "silence", claim.argument, began=claim.began + SILENCE_S, key=claim.key
            )
            for claim in told
            if claim.kind == "claim" and claim.result is not None
            if claim.began + SILENCE_S <= over
        ]

    def _submit(self, client: str, rng: random.Random, lane: str, token: str) -> Wish:
        # Whoever submits it, it is the same job.
        word = random.Random(token).choice([*PRIORITIES])
        job: dict[str, Any] = {
            "type": lane, "priority": word, "labels": {"token": token}, "idempotency_key": token,
            "constraints": [f"node.labels.lane=={lane}"],
        }  # fmt: skip
        surface = rng.choice(("jobqueue", "console"))
        if surface == "jobqueue":
            job |= {"binary_url": NOTHING["url"], "binary_sha256": NOTHING["sha256"]}
        else:
            job["binary"] = NOTHING

        def told(status: int, said: Any) -> str:
            _expect(status, 201)
            self._ids[token] = said["id"]
            return _word(said["status"])

        operation = Operation(client, "submit", (token, PRIORITIES[word]), key=lane)
        return Wish(self.model, operation, Asked("POST", "/jobs", job, surface), told)

    def _claim(self, client: str, lane: str) -> Wish:
        # Names of its own: so it is plain which of the claims a job went to whose end is not known.
        executor = f"e{next(self._claims) % EXECUTORS}"

        def told(status: int, said: Any) -> str | None:
            if status == 204:
                return None
            _expect(status, 200)
            token = str(said["labels"]["token"])
            self._ids[token], self._holders[token] = said["id"], executor
            if (said["status"], said["executor_id"]) != ("running", executor):
                raise Unforeseen("it was claimed, and is not the claimant's")
            return token

        asked = Asked("POST", "/jobs/claim", {"executor_id": executor, "labels": {"lane": lane}})
        return Wish(self.model, Operation(client, "claim", executor, key=lane), asked, told)

    def _list(self, client: str, lane: str) -> Wish:
        def told(status: int, said: Any) -> tuple[Any, ...]:
            _expect(status, 200)
            for row in said["jobs"]:
                self._ids[row["labels"]["token"]] = row["id"]
            return tuple(
                (row["labels"]["token"], _word(row["status"]), row["node"]) for row in said["jobs"]
            )

        asked = Asked("GET", f"/jobs?type={lane}", surface="console")
        return Wish(self.model, Operation(client, "list", key=lane), asked, told, reads=True)

    def _see(self, client: str, lane: str, token: str, job_id: str, surface: str) -> Wish:
        def told(status: int, said: Any) -> tuple[str, str | None] | None:
            if status == 404:
                return None
            _expect(status, 200)
            who = said["executor_id"] if surface == "jobqueue" else said["node"]
            return _word(said["status"]), who

        asked = Asked("GET", f"/jobs/{job_id}", surface=surface)
        return Wish(self.model, Operation(client, "see", token, key=lane), asked, told, reads=True)

    def _stop(self, client: str, lane: str, token: str, job_id: str, kind: str) -> Wish:
        operation = Operation(client, kind, token, key=lane)
        return Wish(self.model, operation, *_stopping(job_id, kind))

    def _report(
        self, client: str, lane: str, token: str, job_id: str, kind: str, executor: str
    ) -> Wish:
        def told(status: int, said: Any) -> object:
            if kind == "beat":
                # Unknown, not running and not theirs: the API has one word for them.
                _expect(status, 200, 404)
                return status == 200
            if status == 404:
                return None
            _expect(status, 200, 400)
            return True if status == 200 else said["context"].get("status", "held")

        body: dict[str, object] = {"executor_id": executor}
        if kind != "beat":
            body["exit_code"] = int(kind == "fail")
        path = f"/jobs/{job_id}/{'heartbeat' if kind == 'beat' else kind}"
        operation = Operation(client, kind, (token, executor), key=lane)
        return Wish(self.model, operation, Asked("PUT", path, body), told, reads=kind == "beat")


class Jobs:
    """Jobs that nodes run by themselves, while others look at them and may end them."""

    model = "job"

    def __init__(self, name: str) -> None:
        self._name = name
        self._ids: dict[str, str] = {}

    def wish(self, client: str, rng: random.Random, progress: float) -> Wish:
        key = f"{self._name}-job{_recent(rng, progress, JOBS)}"
        job_id = self._ids.get(key)
        if job_id is None:
            return self._submit(client, key) if rng.random() < 0.6 else self._list(client, key)
        kinds = {"submit": 2, "list": 4, "see": 6, "look": 4, "cancel": 0.3, "withdraw": 0.4}
        kind = rng.choices([*kinds], [*kinds.values()])[0]
        match kind:
            case "submit":
                return self._submit(client, key)
            case "list":
                return self._list(client, key)
            case "see" | "look":
                return self._see(client, key, job_id, counted=kind == "see")
        return Wish(self.model, Operation(client, kind, key=key), *_stopping(job_id, kind))

    def last_looks(self) -> list[Wish]:
        return [self._see("last", key, job_id, counted=True) for key, job_id in self._ids.items()]

    def besides(self, told: Sequence[Operation]) -> list[Operation]:
        return []

    def _submit(self, client: str, key: str) -> Wish:
        nap_s = random.Random(key).choice(NAP_S)
        job = {"type": key, "program": "sh", "arguments": ["-c", f"sleep {nap_s}"],
               "idempotency_key": key}  # fmt: skip

        def told(status: int, said: Any) -> str:
            _expect(status, 201)
            self._ids[key] = said["id"]
            return _word(said["status"])

        asked = Asked("POST", "/jobs", job, "console")
        return Wish(self.model, Operation(client, "submit", key=key), asked, told)

    def _see(self, client: str, key: str, job_id: str, *, counted: bool) -> Wish:
        """Only the console tells of every attempt, also of those that were taken back."""

        def told(status: int, said: Any) -> tuple[int | None, str] | None:
            if status == 404:
                return None
            _expect(status, 200)
            begun = sum(each["started_at"] is not None for each in said["attempts"])
            return (begun if counted else None), _word(said["status"])

        asked = Asked("GET", f"/jobs/{job_id}", surface="console" if counted else "jobqueue")
        return Wish(self.model, Operation(client, "see", key=key), asked, told, reads=True)

    def _list(self, client: str, key: str) -> Wish:
        def told(status: int, said: Any) -> tuple[None, str] | None:
            _expect(status, 200)
            if len(said) > 1:
                raise Unforeseen("two jobs have one key")
            for row in said:
                self._ids[key] = row["id"]
            return (None, _word(said[0]["status"])) if said else None

        asked = Asked("GET", f"/jobs?type={key}")
        return Wish(self.model, Operation(client, "see", key=key), asked, told, reads=True)


class Keys:
    """Idempotency keys: the first job that is submitted with one keeps it for good."""

    model = "setting"

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: set[str] = set()

    def wish(self, client: str, rng: random.Random, progress: float) -> Wish:
        key = f"{self._name}-key{_recent(rng, progress, KEYS)}"
        self._seen.add(key)
        keeps = rng.random() < 0.4
        return self._keep(client, rng, key) if keeps else self._read(client, key)

    def last_looks(self) -> list[Wish]:
        return [self._read("last", key) for key in sorted(self._seen)]

    def besides(self, told: Sequence[Operation]) -> list[Operation]:
        return []

    def _keep(self, client: str, rng: random.Random, key: str) -> Wish:
        word = rng.choice([*PRIORITIES])
        job = {
            "type": key, "priority": word, "idempotency_key": key,
            "binary_url": NOTHING["url"], "binary_sha256": NOTHING["sha256"],
            "constraints": [f"node.labels.lane=={key}"],
        }  # fmt: skip

        def told(status: int, said: Any) -> str | bool:
            _expect(status, 201, 400)
            if status == 400 and said["context"].get("field") != "idempotency_key":
                raise Unforeseen("refused for another reason")
            return word if status == 201 else False

        asked = Asked("POST", "/jobs", job)
        return Wish(self.model, Operation(client, "keep", word, key=key), asked, told)

    def _read(self, client: str, key: str) -> Wish:
        def told(status: int, said: Any) -> str | None:
            _expect(status, 200)
            if len(said) > 1:
                raise Unforeseen("two jobs have one key")
            return str(said[0]["priority"]) if said else None

        asked = Asked("GET", f"/jobs?type={key}")
        return Wish(self.model, Operation(client, "read", key=key), asked, told, reads=True)


def _stopping(job_id: str, kind: str) -> tuple[Asked, Callable[[int, Any], object]]:
    """DELETE is for a job that waits, `cancel` for one that runs as well."""
    withdraw = Asked("DELETE", f"/jobs/{job_id}")
    cancel = Asked("POST", f"/jobs/{job_id}/cancel")
    return (withdraw if kind == "withdraw" else cancel), _stopped


def _stopped(status: int, said: Any) -> object:
    if status == 404:
        return None
    _expect(status, 200, 400)
    return True if status == 200 else _word(said["context"]["status"])


def _recent(rng: random.Random, progress: float, count: int) -> int:
    """One of the things that have come so far, of late: so clients meet, and none grows old."""
    newest = min(count - 1, int(progress * count))
    return max(0, newest - rng.randrange(RECENT))


def _expect(status: int, *known: int) -> None:
    if status not in known:
        raise Unforeseen(f"one of {known} was expected")


def _word(status: str) -> str:
    """Whoever waits does not care whether a node was found already."""
    word = "pending" if status == "assigned" else status
    if word not in STATUSES:
        raise Unforeseen(f"there is no status {status!r}")
    return word
