"""Load for daemons that may be killed at any moment, and memory of every answer they gave.

A client believes what was acknowledged and nothing else: what was not answered is asked again
under the same idempotency key, or forgotten where it has none.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Place = tuple[str, int]
"""Address and port of a job queue."""
TICK_S = 0.1
PAUSE_S = 0.02
REQUEST_S_MAX = 60.0
ANSWER_S_MAX = 120.0
"""For one wish, asked again after each loss."""
JOIN_S_MAX = 180.0
DRAIN_S = 60.0
"""The queue becomes shorter within that, until it is empty."""
INSIDE = "node.labels.lane!=outside"
OUTSIDE = "node.labels.lane==outside"
SHELL = Path("/bin/sh")
QUICK = Path("/bin/true")
TRACE = """
say() { echo "$token $SWARMD_ATTEMPT $1" >> "$file"; }
file=$1 token=$2 ticks=$3
say start
sleep 600 &
while [ "$ticks" -gt 0 ]; do sleep 0.1; say tick; ticks=$((ticks - 1)); done
say end
"""
"""Each line is one O_APPEND write; what it leaves in the background is the runner's to end."""


class Lost(Exception):
    """The connection went before the answer came: the outcome is unknown."""


class Client:
    """One kept connection, made anew after each loss: to the next of the places then."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = itertools.cycle(places)
        self._connection = http.client.HTTPConnection(*next(self._places), timeout=REQUEST_S_MAX)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        raw = None if body is None else json.dumps(body).encode()
        try:
            self._connection.request(method, path, raw, {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self._connection.host, self._connection.port = next(self._places)
            raise Lost(repr(error)) from error
        return answer.status, json.loads(data) if data else None

    def close(self) -> None:
        self._connection.close()


def drain(jobs_by_status: Callable[[], Mapping[str, int]]) -> None:
    """Wait until nothing waits or runs any more, for as long as it becomes less."""
    least, since = math.inf, time.monotonic()
    while True:
        seen = jobs_by_status()
        left = seen["pending"] + seen["running"]
        if not left:
            return
        if left < least:
            least, since = left, time.monotonic()
        assert time.monotonic() - since < DRAIN_S, f"the queue does not empty: {seen}"
        time.sleep(TICK_S)


class Load:
    """Threads that submit, claim and complete until they are told to stop. Each begins at another
    of the places, where there are several."""

    def __init__(
        self, places: Sequence[Place], trace: Path, blobs: dict[Path, str], seed: int
    ) -> None:
        self._places = places
        self._begun = 0
        self._trace = trace
        self._blobs = blobs
        self._seed = seed
        self._submitting = threading.Event()
        self._working = threading.Event()
        self._lock = threading.Lock()
        self.acknowledged: dict[str, str] = {}
        """Token by job id, of every submit that was answered."""
        self.completed: set[str] = set()
        """Jobs whose completion by the executor was acknowledged."""
        self.losses = 0
        self.problems: list[str] = []

    # -- what a job is -------------------------------------------------------------------------

    def _job(self, kind: str, token: str, ticks: int = 0, *, keyed: bool) -> dict[str, Any]:
        """`kind` is quick, trace or outside. Tokens are ours alone: one is one wish for a job."""
        program = SHELL if kind == "trace" else QUICK
        sha256 = self._blobs[program]
        job: dict[str, Any] = {
            "type": kind,
            "binary_url": f"blob:sha256:{sha256}",
            "binary_sha256": sha256,
            "priority": "background" if kind == "quick" else "foreground",
            "constraints": [OUTSIDE if kind == "outside" else INSIDE],
            "labels": {"token": token},
        }
        if kind == "trace":
            job["arguments"] = ["-c", TRACE, "sh", str(self._trace), token, str(ticks)]
        if keyed:
            job["idempotency_key"] = token
        return job

    # -- threads -------------------------------------------------------------------------------

    @contextmanager
    def running(self, *, quick: bool = True, long_every_s: float = 0.5) -> Iterator[None]:
        """Submit and work for the block; at its end every thread has ended."""
        self._submitting.set()
        self._working.set()
        threads = [
            self._thread("trace", lambda c, r, n: self._submit_trace(c, r, n, long_every_s)),
            self._thread("worker-1", self._work_outside, self._working),
            self._thread("worker-2", self._work_outside, self._working),
        ]
        if quick:
            threads += [
                self._thread("single-1", self._submit_single),
                self._thread("single-2", self._submit_single),
                self._thread("bulk", self._submit_bulk),
            ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._submitting.clear()
            self._working.clear()
            for thread in threads:
                thread.join(JOIN_S_MAX)
                assert not thread.is_alive(), f"{thread.name} hangs"

    def write(self, client: Client, token: str) -> bool:
        """One job that somebody outside is to do, asked for until it is acknowledged."""
        return self._submit_keyed(client, self._job("outside", token, keyed=True), token)

    def stop_submitting(self) -> None:
        self._submitting.clear()

    def _thread(
        self, name: str, step: Callable[[Client, random.Random, str], None],
        going: threading.Event | None = None,
    ) -> threading.Thread:  # fmt: skip
        going = going or self._submitting
        first = self._begun % len(self._places)
        self._begun += 1
        places = [*self._places[first:], *self._places[:first]]

        def run() -> None:
            rng = random.Random(f"{self._seed}-{name}")
            client = Client(places)
            number = 0
            with contextlib.closing(client):
                while going.is_set():
                    number += 1
                    try:
                        step(client, rng, f"{name}-{number}")
                    except Lost:
                        self._lost()
                    except Exception as error:
                        self._problem(f"{name}: {error!r}")
                        return

        return threading.Thread(target=run, name=name, daemon=True)

    def _submit_single(self, client: Client, rng: random.Random, token: str) -> None:
        ticks = rng.choice((0, 0, 1, 2))
        kind = rng.choices(("quick", "trace", "outside"), (10, 3, 3))[0]
        self._submit_keyed(client, self._job(kind, token, ticks, keyed=True), token)
        time.sleep(rng.uniform(0, 2 * PAUSE_S))

    def _submit_trace(self, client: Client, rng: random.Random, token: str, every_s: float) -> None:
        """Jobs of 0.5 to 2 s: most of them see a kill."""
        self._submit_keyed(client, self._job("trace", token, rng.randint(5, 20), keyed=True), token)
        time.sleep(every_s)

    def _submit_keyed(self, client: Client, job: dict[str, Any], token: str) -> bool:
        status, answer = self._until_answered(client, "POST", "/api/v1/jobs", job)
        if status == 201:
            self.acknowledge(answer["id"], token)
        elif status is not None and status != 503:
            self._problem(f"submit was answered {status}: {answer}")
        return status == 201

    def _submit_bulk(self, client: Client, rng: random.Random, token: str) -> None:
        """Without keys: when the answer is lost, so is the wish, but never the half of a job."""
        tokens = [f"{token}-{i}" for i in range(rng.choice((1, 20, 150)))]
        kinds = [rng.choices(("quick", "trace", "outside"), (30, 1, 1))[0] for _ in tokens]
        jobs = [self._job(k, t, keyed=False) for k, t in zip(kinds, tokens, strict=True)]
        status, answer = client.ask("POST", "/api/v1/jobs/bulk", jobs)
        if status == 201:
            for one, its_token in zip(answer, tokens, strict=True):
                if "id" in one:
                    self.acknowledge(one["id"], its_token)
                else:
                    self._problem(f"an element was refused: {one}")
        elif status != 503:
            self._problem(f"bulk submit was answered {status}: {answer}")
        time.sleep(rng.uniform(0.1, 0.5))

    def _work_outside(self, client: Client, rng: random.Random, name: str) -> None:
        """Claim, beat, complete: what an executor of someone else's does."""
        executor = name.rpartition("-")[0]
        claim = {"executor_id": executor, "labels": {"lane": "outside"}}
        said: int | None
        try:
            said, job = client.ask("POST", "/api/v1/jobs/claim", claim)
        except Lost:
            self._lost()
            said, job = 503, None
        if said not in (200, 204, 503):
            self._problem(f"claim was answered {said}: {job}")
        held = job["id"] if said == 200 else None
        if said == 503:
            # The claim may have counted: whoever works on asks what it holds.
            held = self._held_by(client, executor)
        if held is None:
            time.sleep(2 * PAUSE_S)
            return
        path = f"/api/v1/jobs/{held}"
        said, answer = self._until_answered(client, "PUT", f"{path}/heartbeat", claim)
        if said not in (None, 200, 503):
            self._problem(f"heartbeat of {held} was answered {said}: {answer}")
        time.sleep(rng.choice((0, 0, 0, 0.05, 0.2)))
        body = {"executor_id": executor, "exit_code": 0, "stdout": f"{executor} did {held}"}
        said, answer = self._until_answered(client, "PUT", f"{path}/complete", body)
        if said == 200:
            with self._lock:
                self.completed.add(held)
        elif said is not None:
            self._problem(f"complete of {held} was answered {said}: {answer}")

    def _held_by(self, client: Client, executor: str) -> str | None:
        status, rows = self._until_answered(
            client, "GET", "/api/v1/jobs?status=running&type=outside&limit=1000", None
        )
        if status != 200:
            return None
        return next((row["id"] for row in rows if row["executor_id"] == executor), None)

    def _until_answered(
        self, client: Client, method: str, path: str, body: object
    ) -> tuple[int | None, Any]:
        """Ask again after each loss. That it is completed already then says that it had counted."""
        lost = False
        deadline = time.monotonic() + ANSWER_S_MAX
        while time.monotonic() < deadline:
            try:
                status, answer = client.ask(method, path, body)
            except Lost:
                self._lost()
                lost = True
                time.sleep(PAUSE_S)
                continue
            if lost and status == 400 and answer["context"].get("status") == "completed":
                return 200, answer
            if status == 503:
                time.sleep(PAUSE_S)
                continue
            return status, answer
        self._problem(f"no answer to {method} {path}")
        return None, None

    # -- memory --------------------------------------------------------------------------------

    def acknowledge(self, job_id: str, token: str) -> None:
        with self._lock:
            self.acknowledged[job_id] = token

    def _problem(self, said: str) -> None:
        with self._lock:
            if len(self.problems) < 50:
                self.problems.append(said)

    def _lost(self) -> None:
        with self._lock:
            self.losses += 1
        time.sleep(PAUSE_S)
