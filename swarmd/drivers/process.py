"""The daemon's end of the runner: orders go out, starts and ends come in, none of them is lost.

An end comes again after every reconnection until it is acknowledged, so whoever takes events must
bear a repetition. The runner sends only as many events as there is room for here; the reader never
waits for who takes them, so requests are answered even when nobody does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import msgspec
import trio

import swarmd.runner
from swarmd.domain.errors import Invalid, Unavailable
from swarmd.domain.pauses import doubling
from swarmd.drivers.frames import (
    FRAME_BYTES_MAX,
    FRAMES,
    HELLOS,
    VERSION,
    AttemptOrder,
    AttemptStanding,
    Event,
    Events,
    Frame,
    Refusal,
    RunnerFacts,
    Started,
    batches_of,
    boottime_ns,
)  # fmt: skip
from swarmd.drivers.talking import Connection, Lost

log = logging.getLogger(__name__)

IDS_PER_REQUEST = 10_000
REQUESTS_MAX = 16
AGAIN_S, AGAIN_S_MAX = 0.05, 2.0
UNIT_STOPS_S = 0.1
"""How often it is asked whether the stop of the unit is over."""


class RunnerSettings(msgspec.Struct, frozen=True):
    slots: int | None = None
    """So many attempts run at once; further ones wait in the runner. None: as many as it can."""
    unit: str | None = None
    """The systemd unit that starts it. None: we do, and what ends us as a whole ends it too."""
    idle_s: float = 30.0
    """How long a runner without a daemon and without attempts stays."""
    events_max: int = 4096
    """Events that wait here to be taken; the runner keeps the rest."""
    replace_look_s: float = 2.0
    """How often a runner of another version is asked whether it holds anything yet. Once it holds
    nothing, one of ours takes its place."""
    start_timeout_s: float = 15.0
    request_timeout_s: float = 30.0


_Frames = list[Frame]
_Ids = list[int]


class RunnerClient:
    """Made by open_runner. It finds a runner again, or starts another, whenever one is gone."""

    def __init__(self, data_dir: Path, settings: RunnerSettings) -> None:
        self._data_dir = data_dir.absolute()
        self._settings = settings
        self._connection: Connection | None = None
        self._changed = trio.Event()
        self._events: deque[Event] = deque()
        self._arrived = trio.Event()
        self._taken = 0
        self._requests = trio.Semaphore(REQUESTS_MAX)
        self._quitting = False
        self._starts = 0
        """Requests to start attempts that are under way."""
        self._replacing: trio.Event | None = None
        """The runner may be about to end: nothing is to be started in it."""
        self._replaced = 0
        """The version of one that was told to end; should another of it come, it stays."""

    @property
    def facts(self) -> RunnerFacts:
        """Of the runner that is connected. Unavailable: none is at present."""
        if self._connection is None:
            raise Unavailable("the runner is not connected; it is being started again")
        return self._connection.facts

    async def start(self, orders: Sequence[AttemptOrder]) -> list[Refusal]:
        """Hand over attempts; an id that the runner knows is not started again. Answers those
        that it would not take. TooLarge: one order alone is over a frame's bound."""
        batches = batches_of(orders)
        refused: list[Refusal] = []
        while self._replacing is not None:
            await self._replacing.wait()
        self._starts += 1
        try:
            for batch in batches:
                frames = await self._ask({"kind": "start", "orders": batch})
                refused += frames[-1].refused
        finally:
            self._starts -= 1
        return refused

    async def stop(self, ids: Sequence[int] | None, grace_s: float | None = None) -> list[int]:
        """SIGTERM to the whole tree of each (None: of all), SIGKILL after the grace (None: the
        order's own). Answers the ids that the runner does not know."""
        grace_ms = None if grace_s is None else int(grace_s * 1000)
        if ids is None:
            return (await self._ask({"kind": "stop", "grace_ms": grace_ms}))[-1].unknown
        return await self._ask_for(ids, {"kind": "stop", "grace_ms": grace_ms})

    def boottime_ns(self) -> int:
        """The clock by which leases run out."""
        return boottime_ns()

    async def renew(
        self, ids: Sequence[int], lease_s: float, from_ns: int | None = None
    ) -> list[int]:
        """Leases run out this long after a time since boot, or after now. Answers the ids that
        are not there."""
        frame = {"kind": "renew", "lease_ms": int(lease_s * 1000), "from_ns": from_ns}
        return await self._ask_for(ids, frame)

    async def ack(self, ids: Sequence[int]) -> None:
        """The ends of these are safe elsewhere: the runner may forget them."""
        await self._ask_for(ids, {"kind": "ack"})

    async def list(self) -> list[AttemptStanding]:
        frames = await self._ask({"kind": "list"})
        return [standing for frame in frames for standing in frame.attempts]

    async def quit(self, jobs: bool, grace_s: float | None = None) -> None:
        """End the runner: with its jobs, or as soon as the last has ended by itself. No runner is
        started again by this client afterwards."""
        self._quitting = True
        if self._connection is None:
            return
        grace_ms = None if grace_s is None else int(grace_s * 1000)
        with contextlib.suppress(Lost):
            await self._connection.request({"kind": "quit", "jobs": jobs, "grace_ms": grace_ms})

    async def gone(self) -> None:
        """Wait until no runner is connected, as after quit."""
        while self._connection is not None:
            await self._changed.wait()

    async def replaced(self, pid: int) -> int:
        """Wait until a runner other than that one is connected; answers its pid."""
        while self._connection is None or self._connection.facts.pid == pid:
            await self._changed.wait()
        return self._connection.facts.pid

    async def take(self) -> Events:
        """All events that are there, at least one, in order."""
        while not self._events:
            await self._arrived.wait()
        events = [*self._events]
        self._events.clear()
        self._give_credit(len(events))
        return events

    async def events(self) -> AsyncGenerator[Events, None]:
        """Batches of events, for as long as they are taken."""
        while True:
            yield await self.take()

    def _give_credit(self, taken: int) -> None:
        self._taken += taken
        if self._taken * 4 >= self._settings.events_max and self._connection is not None:
            self._connection.send({"kind": "credit", "n": self._taken})
            self._taken = 0

    async def _ask_for(self, ids: Sequence[int], frame: dict[str, Any]) -> _Ids:
        unknown: _Ids = []
        for at in range(0, len(ids), IDS_PER_REQUEST):
            part = [int(i) for i in ids[at : at + IDS_PER_REQUEST]]
            unknown += (await self._ask({**frame, "ids": part}))[-1].unknown
        return unknown

    async def _ask(self, frame: dict[str, Any]) -> _Frames:
        """Ask until it is answered: every request may be made twice. Unavailable: it was not."""
        with trio.move_on_after(self._settings.request_timeout_s):
            async with self._requests:
                while not self._quitting:
                    connection = self._connection
                    if connection is None:
                        await self._changed.wait()
                        continue
                    with contextlib.suppress(Lost):
                        return await connection.request(frame)
                    # The loss is dealt with by another task; come back when it has been.
                    if self._connection is connection:
                        await self._changed.wait()
        raise Unavailable("the runner does not answer; see runner.log in the data directory")

    # -- the connection --------------------------------------------------------------------------

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        """Keep a connection; the first one is waited for by who opened us."""
        pauses = doubling(AGAIN_S, AGAIN_S_MAX)
        told = False
        while not self._quitting:
            try:
                connection = await self._connect()
            except (OSError, Unavailable) as exc:
                if not told:
                    raise
                log.error("the runner cannot be reached", extra={"error": str(exc)})
                await trio.sleep(next(pauses))
                continue
            pauses = doubling(AGAIN_S, AGAIN_S_MAX)
            self._set(connection)
            if not told:
                told = True
                task_status.started()
            try:
                await self._converse(connection)
            finally:
                connection.lose()
                self._set(None)
                await trio.aclose_forcefully(connection.stream)
            went = {"runner_pid": connection.facts.pid}
            if connection.replaced:
                log.info("the runner of another version has ended", extra=went)
            else:
                log.warning("the runner went away", extra=went)

    def _set(self, connection: Connection | None) -> None:
        self._connection = connection
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _connect(self) -> Connection:
        """To the runner that lives, else to one that is started for it."""
        with trio.move_on_after(self._settings.start_timeout_s):
            while True:
                try:
                    return await self._greet(await _dial(self._data_dir))
                except (OSError, trio.BrokenResourceError, EOFError):
                    if not await self._launch():
                        await trio.sleep(UNIT_STOPS_S)
        raise Unavailable("no runner could be started in time; see runner.log")

    async def _greet(self, stream: trio.SocketStream) -> Connection:
        try:
            # All that is not acknowledged comes again, so nothing that waits here is of use.
            self._events.clear()
            self._taken = 0
            hello = {"kind": "hello", "version": VERSION, "credit": self._settings.events_max,
                     "slots": self._settings.slots}  # fmt: skip
            await stream.send_all(msgspec.json.encode(hello) + b"\n")
            data = b""
            while b"\n" not in data:
                more = await stream.receive_some(65536)
                if not more or len(data) > FRAME_BYTES_MAX:
                    raise EOFError
                data += more
            line, _, rest = data.partition(b"\n")
            try:
                facts = HELLOS.decode(line)
            except msgspec.MsgspecError as exc:
                raise Unavailable(f"the runner's greeting is not understood: {exc}") from exc
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        log.info("runner connected", extra={"runner_pid": facts.pid, "tracking": facts.tracking})
        if facts.trouble:
            log.error("the runner is in trouble", extra={"trouble": facts.trouble})
        return Connection(stream, facts, rest)

    async def _launch(self) -> bool:
        """Start a runner; it detaches itself, and its first process tells whether one serves.
        False: who stops its unit is to see that through first."""
        if self._settings.unit is not None:
            # Without this mode a start undoes a stop that goes on.
            command = ["systemctl", "--job-mode=fail", "start", self._settings.unit]
        else:
            command = [*_command(), "--data-dir", str(self._data_dir)]
            command += ["--idle-s", str(self._settings.idle_s)]
        result = await trio.run_process(
            command, stdin=b"", stdout=DEVNULL, capture_stderr=True, check=False,
            start_new_session=True, env=_environment(), cwd="/",
        )  # fmt: skip
        if result.returncode != 0:
            words = (result.stderr or b"").decode("utf-8", "replace")[-500:].strip()
            # So systemd says that a job of the unit's which is under way is against it.
            if self._settings.unit is not None and "is destructive" in words:
                return False
            raise Unavailable(f"the runner could not be started: {words or result.returncode}")
        return True

    async def _converse(self, connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, connection, nursery.cancel_scope)
            if connection.facts.version != VERSION:
                nursery.start_soon(self._replace, connection)
            await self._read(connection)
            nursery.cancel_scope.cancel()

    async def _replace(self, connection: Connection) -> None:
        """An upgrade left it here with its attempts: once they have ended, and their ends are safe,
        it ends, and `_serve` starts another."""
        version = connection.facts.version
        facts = {"runner_pid": connection.facts.pid, "its_version": version}
        if self._replaced == version:
            log.warning(
                "a runner of another version was started again; look at its unit", extra=facts
            )
            return
        log.info("the runner is of another version; it is replaced once it is idle", extra=facts)
        while True:
            await trio.sleep(self._settings.replace_look_s)
            if self._starts == 0:
                self._replacing = trio.Event()
                try:
                    with contextlib.suppress(Lost, Invalid):
                        if not (await connection.request({"kind": "list"}))[-1].attempts:
                            connection.replaced, self._replaced = True, version
                            await connection.request({"kind": "quit", "jobs": False})
                            await trio.sleep_forever()
                finally:
                    self._replacing.set()
                    self._replacing = None

    async def _write(self, connection: Connection, scope: trio.CancelScope) -> None:
        try:
            await connection.write()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            scope.cancel()

    async def _read(self, connection: Connection) -> None:
        data = connection.rest
        while True:
            *lines, data = data.split(b"\n")
            for line in lines:
                try:
                    self._take_in(connection, FRAMES.decode(line))
                except msgspec.MsgspecError as exc:
                    log.error("the runner sent what is no frame", extra={"error": str(exc)})
                    return
            try:
                more = await connection.stream.receive_some(262_144)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                return
            # A frame of the runner's may be longer than ours: its lists are of bounded counts.
            if not more or len(data) > 16 * FRAME_BYTES_MAX:
                return
            data += more

    def _take_in(self, connection: Connection, frame: Frame) -> None:
        if frame.kind == "events":
            self._events.extend(Started(*started) for started in frame.started)
            self._events.extend(frame.ended)
            arrived, self._arrived = self._arrived, trio.Event()
            arrived.set()
            return
        reply = connection.replies.get(frame.seq) if frame.seq is not None else None
        if reply is not None:
            reply.frames.append(frame)
            if not frame.more:
                reply.done.set()
        elif frame.kind == "error":
            log.error("the runner complains", extra={"error": frame.error})


@contextlib.asynccontextmanager
async def open_runner(data_dir: Path, settings: RunnerSettings) -> AsyncIterator[RunnerClient]:
    """Connect to the runner of this data directory, or start it. Leaving leaves it and its jobs
    running. Unavailable: none could be started."""
    client = RunnerClient(data_dir, settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(client._serve)
        yield client
        nursery.cancel_scope.cancel()


async def _dial(data_dir: Path) -> trio.SocketStream:
    """Through a descriptor of the directory, since its path may be too long for an address."""
    folder = os.open(data_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return await trio.open_unix_socket(f"/proc/self/fd/{folder}/runner.sock")
    finally:
        os.close(folder)


def _command() -> list[str]:
    """The runner needs nothing but the standard library, so it is spared the site's."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "runner"]
    entry = Path(swarmd.runner.__file__).with_name("__main__.py")
    return [sys.executable, "-I", "-S", str(entry), "runner"]


def _environment() -> dict[str, str]:
    """Nothing of the daemon's that may be secret; of a bundle's, what it needs to unpack anew."""
    kept = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LD_LIBRARY_PATH_ORIG", "TMPDIR")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    if getattr(sys, "frozen", False):
        environment["PYINSTALLER_RESET_ENVIRONMENT"] = "1"
    return environment
