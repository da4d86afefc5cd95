"""Several real daemons as one swarm, for tests: started, killed, started again, compared, ended.

Each binds a loopback address of its own at the same ports, as hosts would. Nothing here asks a
daemon what its file says: how far a replica has come, and what is in it, is read from the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from swarmd.state.machine import dump_hash, read_place
from tests.daemon import ROOT, SURFACES, Daemon, Response, end_runner, free_ports, start_daemon

T = TypeVar("T")
WAIT_S = 40.0
NODE_S = 4.0
"""How much longer it may take for each node of a swarm until all see it whole."""
POLL_S = 0.02
LEVEL_S = 0.4
"""For so long nothing was applied anywhere: whatever was under way has come."""
VOTERS = 3
_STARTS_MAX = 3
_AT_ONCE_MAX = 20
_STOPS_MAX = 5
_LOG_SHOWN = 3000


@dataclass
class Node:
    """A place in a swarm: a daemon lives there, or did."""

    name: str
    address: str
    folder: Path
    settings: Mapping[str, Any]
    _daemon: Daemon | None = None
    program: Path = ROOT
    """The folder of the packages that it runs from its next start on."""

    @property
    def daemon(self) -> Daemon:
        assert self._daemon is not None, f"{self.name} was never started"
        return self._daemon

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def up(self) -> bool:
        return self._daemon is not None and self._daemon.process.poll() is None

    @property
    def place(self) -> tuple[str, int]:
        """Where its job queue is served."""
        return self.address, self.daemon.ports["jobqueue"]

    @property
    def mesh_address(self) -> str:
        return f"{self.address}:{self.settings['mesh']['port']}"

    def token(self) -> str:
        """With which others join its swarm."""
        return self.daemon.token()

    def start(self) -> None:
        """Returns when it is ready: part of the swarm, which has a leader."""
        assert not self.up
        self._daemon = start_daemon(self.folder, program=self.program, **self.settings)

    def kill(self) -> None:
        self.daemon.kill()

    def stop(self) -> None:
        assert self.daemon.stop() == 0, f"{self.name} did not stop well:\n{self.log()}"

    def end(self) -> None:
        if self._daemon is not None:
            self._daemon.end()
        else:
            end_runner(self.data_dir)

    def log(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "swarmd.stderr").read_text(errors="replace")[-_LOG_SHOWN:]
        return ""

    def request(
        self, method: str, path: str, body: object = None, *, surface: str = "jobqueue",
        **more: Any,
    ) -> Response:  # fmt: skip
        return self.daemon.request(method, f"/api/v1{path}", body, surface=surface, **more)

    def ask(self, method: str, path: str, body: object = None, *, surface: str = "jobqueue") -> Any:
        """What a request that must succeed answers."""
        answer = self.request(method, path, body, surface=surface)
        said = (self.name, method, path, answer.status, answer.body[:1000])
        assert answer.status < 300, said
        return answer.json

    def console(self, method: str, path: str, body: object = None) -> Any:
        return self.ask(method, path, body, surface="console")

    def status(self) -> Any:
        return self.console("GET", "/status")

    def run(self, script: str, **more: object) -> str:
        """A job that the shell of any node runs: its id."""
        job = {"type": "script", "program": "sh", "arguments": ["-c", script], **more}
        return str(self.console("POST", "/jobs", job)["id"])

    def ended(self, job_id: str, timeout_s: float = 120.0) -> Any:
        deadline = time.monotonic() + timeout_s
        while True:
            job = self.console("GET", f"/jobs/{job_id}/wait?timeout_s=20")
            if job["ended_at"] is not None:
                return job
            assert time.monotonic() < deadline, f"not ended after {timeout_s:g} s: {job}"

    def state(self) -> sqlite3.Connection:
        """Its state as the disk has it, whether the daemon lives or not."""
        conn = sqlite3.connect(f"file:{self.data_dir / 'state.db'}?mode=ro", uri=True)
        conn.isolation_level = None
        return conn

    def applied(self) -> int:
        with contextlib.closing(self.state()) as conn:
            return read_place(conn).index

    def dump(self) -> str:
        with contextlib.closing(self.state()) as conn:
            conn.execute("BEGIN")
            return dump_hash(conn)


@dataclass
class Swarm:
    folder: Path
    nodes: list[Node] = field(default_factory=list)

    def __getitem__(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def up(self) -> list[Node]:
        return [node for node in self.nodes if node.up]

    def leader(self, among: Sequence[Node] | None = None) -> Node:
        """Whom every one of these nodes takes for the leader, as soon as they agree."""
        asked = list(among) if among is not None else self.up()

        def agreed() -> Node | None:
            names = {node.status()["leader"] for node in asked}
            return self[names.pop()] if len(names) == 1 and None not in names else None

        return until(agreed, "no leader that all agree on")

    def followers(self) -> list[Node]:
        leader = self.leader()
        return [node for node in self.up() if node is not leader]

    def wait_whole(self) -> None:
        """Until each node sees all alive, one leader, and as many voters as there should be."""
        wanted = min(VOTERS, len(self.nodes))
        until(
            lambda: all(_whole(node.status(), len(self.nodes), wanted) for node in self.up()),
            "not every node sees a whole swarm", WAIT_S + NODE_S * len(self.nodes),
        )  # fmt: skip
        self.leader()

    def wait_level(self, among: Sequence[Node] | None = None) -> int:
        """Until all have applied the same and nothing more comes: the index."""
        nodes = list(among) if among is not None else self.nodes
        since = time.monotonic()
        before: list[int] = []

        def level() -> int | None:
            nonlocal since, before
            now = [node.applied() for node in nodes]
            if now != before or len(set(now)) != 1:
                since, before = time.monotonic(), now
            return now[0] if time.monotonic() - since >= LEVEL_S else None

        return until(level, "the replicas do not come level")

    def start(self, *nodes: Node) -> None:
        """At once: alone, none of them might find a majority. But not more than one machine brings
        up in the time that a node is given."""
        with ThreadPoolExecutor(min(len(nodes), _AT_ONCE_MAX)) as pool:
            for begun in [pool.submit(node.start) for node in nodes]:
                begun.result()

    def stop(self) -> None:
        """All of them, equally far: the leader last, so that nobody has anything to take over.
        Where a late entry, or an election, came in between, they are started once more."""
        for _ in range(_STOPS_MAX):
            self.wait_level(self.up())
            followers, leader = self.followers(), self.leader()
            for node in followers:
                node.stop()
            leader.stop()
            if len({node.applied() for node in self.nodes}) == 1:
                return
            self.start(*self.nodes)
        raise AssertionError(f"they never stop equally far: {self.nodes}")

    def upload(self, *files: Path) -> dict[Path, str]:
        """Onto every node: whichever runs the job has it."""
        for file in files:
            for node in self.up():
                node.console("PUT", "/blobs", file.read_bytes())
        return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    def check_replicas(self) -> None:
        """Of nodes that have all stopped, or stand still: each file is whole, and all are equal."""
        places = {node.name: node.applied() for node in self.nodes}
        assert len(set(places.values())) == 1, f"not equally far: {places}"
        for node in self.nodes:
            with contextlib.closing(node.state()) as conn:
                assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)], node.name
        dumps = {node.name: node.dump() for node in self.nodes}
        assert len(set(dumps.values())) == 1, f"the replicas differ: {dumps}"

    def logs(self) -> str:
        return "\n".join(f"-- {node.name} --\n{node.log()}" for node in self.nodes)


@contextmanager
def running_swarm(
    folder: Path, count: int = 3, *, first: int = 1, **settings: Mapping[str, object]
) -> Iterator[Swarm]:
    """So many nodes as one swarm for the block, on 127.0.0.1 (or another of these as the first)
    and the addresses after it; `settings` are sections of every node's configuration. Where the
    block fails, the ends of their logs go with the failure."""
    swarm = Swarm(folder)
    try:
        _start_on_free_ports(swarm, [f"127.0.0.{first + i}" for i in range(count)], settings)
        yield swarm
    except BaseException as failure:
        failure.add_note(f"in {folder} the logs end:\n{swarm.logs()}")
        raise
    finally:
        with ThreadPoolExecutor(max(1, len(swarm.nodes))) as pool:
            list(pool.map(Node.end, swarm.nodes))


def _start_on_free_ports(
    swarm: Swarm, addresses: Sequence[str], settings: Mapping[str, Any]
) -> None:
    for attempt in range(_STARTS_MAX):
        ports = free_ports({**SURFACES, "mesh": 8473}, addresses)
        swarm.nodes = [
            Node(f"n{number}", address, swarm.folder / f"n{number}",
                 _settings(f"n{number}", address, ports, settings))
            for number, address in enumerate(addresses, 1)
        ]  # fmt: skip
        try:
            first, *others = swarm.nodes
            first.start()
            for node in others:
                node.settings = joining(node.settings, first)
            if others:
                swarm.start(*others)
            swarm.wait_whole()
            return
        except AssertionError as failure:
            # Between the choice and the bind another test may have taken a port.
            if attempt + 1 == _STARTS_MAX or "the port is taken" not in str(failure):
                raise
            for node in swarm.nodes:
                node.end()


def _settings(
    name: str, address: str, ports: Mapping[str, int], given: Mapping[str, Any]
) -> Mapping[str, Any]:  # fmt: skip
    merged: dict[str, dict[str, object]] = {
        "node": {"name": name, "bind": [address]},
        "mesh": {"port": ports["mesh"]},
        **{f"surfaces__{surface}": {"port": ports[surface]} for surface in SURFACES},
        "jobs": {"slots": 2},
    }
    for section, values in given.items():
        merged[section] = {**merged.get(section, {}), **values}
    return merged


def joining(settings: Mapping[str, Any], member: Node) -> Mapping[str, Any]:
    """The settings of a node that joins the swarm of a member."""
    way_in = {"join": [member.mesh_address], "token": member.token()}
    return {**settings, "mesh": {**settings.get("mesh", {}), **way_in}}


def until(found: Callable[[], T | None], failing: str, timeout_s: float = WAIT_S) -> T:
    """The first answer that says something: neither None nor False."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = found()
        if answer is not None and answer is not False:
            return answer
        assert time.monotonic() < deadline, f"{failing}, after {timeout_s:g} s"
        time.sleep(POLL_S)


def until_passes(check: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    """Until its assertions hold, all in one look: what the last look says is the failure."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            check()
            return
        except AssertionError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(POLL_S)


def _whole(status: Any, count: int, voters: int) -> bool:
    nodes = status["nodes"]
    return (
        status["leader"] is not None
        and len(nodes) == count
        and all(node["status"] == "alive" for node in nodes)
        and sum(node["role"] == "voter" for node in nodes) >= voters
    )
