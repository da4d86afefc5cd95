"""A disk in memory: what was not synced is gone after a crash, up to some point that chance picks.

The log keeps what was acknowledged, and a prefix of what was not. The state keeps what its process
wrote, or, where the power went, what was checkpointed last. A disk may also be full, be damaged, or
have an older copy put back: then it says what mesh.wal and the store say of such files.
"""

from __future__ import annotations

import copy
import functools
import random
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from mesh.raft import MemoryStorage
from swarmd.domain.errors import Unavailable
from swarmd.sim.clockwork import Timers
from swarmd.state.commands import VERSION
from swarmd.state.machine import Machine, Place, read_place
from swarmd.state.queries import QUERIES, Query, T
from swarmd.state.schema import migrate
from swarmd.state.store import Delivered, Slot, SnapshotFile, decode_slots, hash_file
from swarmd.state.versions import Outdated, check_known, in_force_in


class Watcher(Protocol):
    """Who checks what is applied, as it happens."""

    def applies(self, name: str, place: Place, slots: Sequence[Slot], upto: Place) -> None: ...

    def applied(self, name: str, place: Place, conn: sqlite3.Connection) -> None: ...

    def installed(self, name: str, place: Place) -> None: ...


@dataclass
class Disk:
    """One node's, across its lives."""

    name: str
    rng: random.Random
    timers: Timers
    watcher: Watcher
    sync_s: tuple[float, float] = (0.0005, 0.003)
    apply_s: tuple[float, float] = (0.0, 0.001)
    """How long what was agreed on waits for the state."""
    writes_max: int = 64
    """Writes of the log that wait; one more is LogBusy."""
    stored: MemoryStorage = field(default_factory=MemoryStorage)
    facts: dict[str, bytes] = field(default_factory=dict)
    boot: int = 0
    state: sqlite3.Connection = field(default_factory=lambda: _database(None))
    checkpoint: bytes | None = None
    busy: int = 0
    """How often the log was full."""
    gate: Callable[[Callable[[], None]], None] = lambda then: then()
    """What the disk has done is told through it: a process that is stopped hears it later."""
    full: bool = False
    """There is no room for one more write."""
    bad_log: str | None = None
    """What is wrong with the log's file, which shows when it is opened."""
    bad_state: str | None = None

    def damage(self, rng: random.Random, *, log: bool = True) -> None:
        """A sector of one of the files reads otherwise than it was written, from the next start
        on: what runs has it in memory."""
        if not log:
            self.bad_state = "database disk image is malformed"
        elif self.stored.last_index() >= self.stored.first_index():
            entry = rng.randint(self.stored.first_index(), self.stored.last_index())
            self.bad_log = f"entry {entry} is not what its checksum says"
        else:
            self.bad_log = "its head is not what its checksum says"

    def image(self) -> Image:
        """What a backup of the whole directory has."""
        stored = copy.copy(self.stored)
        stored._entries = list(self.stored._entries)
        return Image(stored, dict(self.facts), self.boot, self.state.serialize())

    def put_back(self, image: Image, *, log: bool = True, state: bool = True) -> None:
        """Files of a backup in the place of the newest, while no process has them open."""
        if log:
            self.stored = copy.copy(image.stored)
            self.stored._entries = list(image.stored._entries)
            self.facts, self.boot, self.bad_log = dict(image.facts), image.boot, None
        if state:
            self.state.close()
            self.state, self.checkpoint = _database(image.state), image.state
            self.bad_state = None

    @property
    def checkpointed(self) -> int:
        """How far the state is on disk for certain."""
        if self.checkpoint is None:
            return 0
        conn = _database(self.checkpoint)
        try:
            return read_place(conn).index
        finally:
            conn.close()

    def lose_power(self) -> None:
        """What the state had not checkpointed is gone; the log begins where it ends or before."""
        self.state.close()
        self.state = _database(self.checkpoint)


@dataclass(frozen=True)
class Image:
    stored: MemoryStorage
    facts: dict[str, bytes]
    boot: int
    state: bytes


@functools.cache
def _empty() -> bytes:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    migrate(conn)
    conn.execute("VACUUM")
    content = conn.serialize()
    conn.close()
    return content


def _database(content: bytes | None) -> sqlite3.Connection:
    conn = sqlite3.connect(":memory:", isolation_level=None, cached_statements=512)
    conn.deserialize(_empty() if content is None else content)
    return conn


class SimStore:
    """The StateStore of one life of a node: the real machine, no thread."""

    def __init__(self, disk: Disk, version: int = VERSION) -> None:
        """Raises Outdated where the state is of a newer version, Unavailable where its file is
        damaged."""
        if disk.bad_state is not None:
            raise Unavailable(
                f"the state in {disk.name}/state.db cannot be opened: {disk.bad_state}. Put a"
                " backup in its place, or move it away to begin with an empty queue"
            )
        self._disk = disk
        self._version = version
        migrate(disk.state, version)
        self._machine = Machine(disk.state, version)
        self.failed = trio.Event()
        self.failure: Outdated | None = None
        self.place = self._machine.place
        self.last_at = self._machine.last_at
        self._waiting: deque[tuple[Sequence[Slot], Place, Delivered]] = deque()
        self._submitted = self.place
        self._dead = False

    def crash(self) -> None:
        self._dead = True

    def submit(self, slots: Sequence[Slot], upto: Place, done: Delivered) -> None:
        self._disk.watcher.applies(self._disk.name, self._submitted, slots, upto)
        self._submitted = upto
        if not self._waiting:
            self._disk.timers.after(
                self._disk.rng.uniform(*self._disk.apply_s),
                partial(self._disk.gate, self._apply_waiting),
            )
        self._waiting.append((slots, upto, done))

    def _apply_waiting(self) -> None:
        """All that waits in one transaction, or a part of it."""
        while self._waiting and not self._dead:
            taken = [
                self._waiting.popleft()
                for _ in range(self._disk.rng.randint(1, len(self._waiting)))
            ]  # fmt: skip
            each = [decode_slots(slots) for slots, _, _ in taken]
            place = taken[-1][1]
            confs = (upto.conf for _, upto, _ in reversed(taken) if upto.conf is not None)
            upto = Place(place.index, place.term, next(confs, None))
            try:
                applied = self._machine.apply([e for mine in each for e in mine], upto)
            except Outdated as outdated:
                self.failure, self._dead = outdated, True
                self.failed.set()
                return
            self._disk.watcher.applied(self._disk.name, self._machine.place, self._disk.state)
            start = 0
            for mine, (_, place, done) in zip(each, taken, strict=True):
                self.place = Place(place.index, place.term, place.conf or self.place.conf)
                self.last_at = self._machine.last_at
                done(applied[start : start + len(mine)], place)
                start += len(mine)

    async def read(self, query: Query[T]) -> T:
        await trio.lowlevel.checkpoint()
        answer: T = QUERIES[type(query)](self._disk.state, query)
        return answer

    async def copy_to(self, path: Path) -> SnapshotFile:
        await trio.lowlevel.checkpoint()
        path.write_bytes(self._disk.state.serialize())  # noqa: ASYNC240 - nothing waits here
        size, digest = hash_file(path)
        return SnapshotFile(path, self._machine.place, size, digest)

    async def check_copy(self, path: Path) -> SnapshotFile:
        await trio.lowlevel.checkpoint()
        try:
            conn = _database(path.read_bytes())  # noqa: ASYNC240 - nothing waits here
            place = read_place(conn)
            check_known(in_force_in(conn), self._version)
            conn.close()
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            raise Unavailable(f"the copy is damaged: {error}") from error
        size, digest = hash_file(path)
        return SnapshotFile(path, place, size, digest)

    async def make_durable(self) -> int:
        content, index = self._disk.state.serialize(), self._machine.place.index
        await trio.sleep(self._disk.rng.uniform(*self._disk.sync_s))
        # A checkpoint that met a reader got through in part: it says so, and is tried again.
        if self._disk.rng.random() < 0.2:
            return 0
        self._disk.checkpoint = content
        return index

    async def install(self, file: SnapshotFile) -> None:
        await trio.lowlevel.checkpoint()
        self._apply_waiting()
        content = file.path.read_bytes()
        self._disk.state.close()
        self._disk.state = _database(content)
        self._disk.checkpoint = content
        self._machine = Machine(self._disk.state, self._version)
        self.place = self._submitted = self._machine.place
        self.last_at = self._machine.last_at
        self._disk.watcher.installed(self._disk.name, self.place)
        # Two files are not written at once: a crash may come between this one and the log.
        await trio.sleep(self._disk.rng.uniform(*self._disk.sync_s))
