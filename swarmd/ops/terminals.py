"""Terminals on builders' hosts: nobody types anything before the swarm knows who, and what was on
the screen is kept whoever goes first, the user, the host or this node."""

from __future__ import annotations

import codecs
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import trio

from swarmd.cluster.handle import Cluster, Hosted
from swarmd.cluster.patience import patiently
from swarmd.domain.actors import SYSTEM, Actor
from swarmd.domain.errors import Busy, NotFound, SwarmError, TooLarge, instead
from swarmd.domain.pauses import doubling
from swarmd.domain.terminals import Terminal, TerminalEnd
from swarmd.drivers import asciicast
from swarmd.drivers.asciicast import Recording, open_recording
from swarmd.drivers.ssh import Terminal as Shell
from swarmd.drivers.ssh_terminal import pty_of
from swarmd.ops import blobs
from swarmd.ops.builds import find_builder
from swarmd.ops.reach import Reach, of_host
from swarmd.state.terminal_commands import BeginTerminal, EndTerminal
from swarmd.state.terminal_queries import FindTerminal, ListOpenTerminals, ListTerminals
from swarmd.state.versions import TERMINALS_SINCE, check_since

log = logging.getLogger(__name__)

FLUSH_S = 1.0
"""So much of a recording is lost where the power goes."""
KEEP_AGAIN_S, KEEP_AGAIN_S_MAX = 0.5, 60.0
READS_MAX = 60
"""So often a recording that the disk does not give is tried again, which takes about an hour."""
STOP_S = 1.5
"""For keeping the last recordings; those that are not kept by then are at the next start."""
CAST = ".cast"


class TerminalSettings(msgspec.Struct, frozen=True):
    sessions_max: int = 16
    idle_s: float = 1800.0
    session_s_max: float = 12 * 3600.0
    recording_bytes_max: int = 16 * 1024 * 1024


class Session:
    """A shell that somebody has."""

    end: TerminalEnd | None = None
    """How it ended by itself, or was ended here: known once `shown` has said that it has."""

    def __init__(
        self, terminal: Terminal, shell: Shell, recording: Recording, settings: TerminalSettings
    ) -> None:
        self.terminal = terminal
        self._shell = shell
        self._recording = recording
        self._settings = settings
        self._began = self._stirred = trio.current_time()
        # A character may be cut in two by the end of a piece; the decoder keeps its first half.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def exit_code(self) -> int | None:
        return self._shell.exit_code

    async def type(self, text: str) -> None:
        """Waits until the host takes it. TooLarge: in pieces, please. Unavailable: it has ended."""
        self._stirred = trio.current_time()
        await self._shell.send(text.encode())

    def resize(self, cols: int, rows: int) -> None:
        """Refused with Invalid."""
        self._shell.resize(cols, rows)
        self._recording.resized(cols, rows)

    async def shown(self) -> str:
        """What came next on the screen; empty once it is over, and `end` says how."""
        while self.end is None:
            data = None
            with trio.move_on_at(self._deadline()):
                data = await self._shell.receive()
            if data is None:
                self._check_time()
                continue
            self._stirred = trio.current_time()
            if not data:
                self.end = TerminalEnd.LOST if self.exit_code is None else TerminalEnd.EXITED
            if text := self._decoder.decode(data, final=not data):
                await self._recording.shown(text)
                return text
        return ""

    def _deadline(self) -> float:
        settings = self._settings
        return min(self._stirred + settings.idle_s, self._began + settings.session_s_max)

    def _check_time(self) -> None:
        now = trio.current_time()
        if now >= self._began + self._settings.session_s_max:
            self.end = TerminalEnd.OVERTIME
        elif now >= self._deadline():
            self.end = TerminalEnd.IDLE


class Terminals:
    """Those of this node."""

    def __init__(
        self, cluster: Hosted, reach: Reach, folder: Path, settings: TerminalSettings,
        stopping: Callable[[], bool], nursery: trio.Nursery,
    ) -> None:  # fmt: skip
        self._cluster = cluster
        self._reach = reach
        self._folder = folder
        self._settings = settings
        self._stopping = stopping
        self._nursery = nursery
        self._open: set[str] = set()
        """By id, until their ends are known everywhere."""
        self._kept = trio.lowlevel.ParkingLot()

    @asynccontextmanager
    async def open(
        self, actor: Actor, name: str, *, cols: int, rows: int, term: str
    ) -> AsyncIterator[Session]:
        """A shell on a builder's host; left, it is gone with all that it has started.

        Refused with NotFound (no such builder), Invalid, Busy (too many), and for the host's
        reasons with Conflict (another host key, no entry with this one) and Unavailable."""
        require_terminals(self._cluster)
        pty_of(term, cols, rows)
        id, session = self._place(), None
        try:
            async with AsyncExitStack() as stack:
                terminal, shell = await self._log_in(stack, actor, id, name, cols, rows, term)
                recording = await open_recording(
                    self._file(id), cols=cols, rows=rows, term=term,
                    title=f"{terminal.user}@{name}", at_s=self._cluster.clock_ms() // 1000,
                    bytes_max=self._settings.recording_bytes_max,
                )  # fmt: skip
                session = Session(terminal, shell, recording, self._settings)
                await stack.enter_async_context(_flushed(recording))
                await self._cluster.propose(BeginTerminal(terminal), actor)
                yield session
        finally:
            if session is None:
                self._give_back(id)
            else:
                self._nursery.start_soon(self._keep, actor, session, recording)

    def _place(self) -> str:
        if len(self._open) >= self._settings.sessions_max:
            raise Busy(
                f"{len(self._open)} terminals are open through this node, or wait for their"
                " recordings to be kept; close one, or go through another node",
                retry_after_s=5,
            )
        id = self._cluster.new_id()
        self._open.add(id)
        return id

    def _give_back(self, id: str) -> None:
        self._open.discard(id)
        self._kept.unpark_all()

    async def _log_in(
        self, stack: AsyncExitStack, actor: Actor, id: str, name: str, cols: int, rows: int,
        term: str,
    ) -> tuple[Terminal, Shell]:  # fmt: skip
        view = await find_builder(self._cluster, name)
        try:
            target = await self._reach.target(view)
            opening = self._reach.ssh.terminal(target, cols=cols, rows=rows, term=term)
            shell = await stack.enter_async_context(opening)
        except SwarmError as refusal:
            raise of_host(refusal, name) from refusal
        node = self._cluster.node
        return Terminal(
            id, view.node.id, name, target.host, target.user, actor.name, actor.address, node.id,
            node.name,
        ), shell  # fmt: skip

    def _file(self, id: str) -> Path:
        return self._folder / f"{id}{CAST}"

    async def _keep(self, actor: Actor, session: Session, recording: Recording) -> None:
        end = session.end or (TerminalEnd.STOPPED if self._stopping() else TerminalEnd.LEFT)
        # One that was left is told so by signals, and ends of those.
        code = session.exit_code if end is TerminalEnd.EXITED else None
        await recording.close()
        done = EndTerminal(session.terminal.id, end, code, cut=recording.cut)
        await self._tell(actor, done, recording.path)
        self._give_back(done.id)

    async def _tell(self, actor: Actor, end: EndTerminal, path: Path) -> None:
        """Until the swarm has it: the file stays for as long. A disk that does not give it, or does
        not take it as a blob, ends one attempt and not the node; one that never gives it costs the
        recording and not the end."""
        level, reads = logging.DEBUG, 0
        for wait_s in doubling(KEEP_AGAIN_S, KEEP_AGAIN_S_MAX):
            try:
                readable = reads < READS_MAX
                done = await self._with_recording(actor, end, path) if readable else end
                await self._cluster.propose(done, actor)
                break
            except NotFound:
                break  # it never came to its beginning
            except (SwarmError, OSError) as refusal:
                facts = {"terminal_id": end.id, "reason": str(refusal)}
                log.log(level, "the end of a terminal is told again later", extra=facts)
                reads += isinstance(refusal, OSError)
            if readable and reads == READS_MAX:
                log.error("a recording cannot be read, and is put aside", extra=facts)
                await trio.to_thread.run_sync(asciicast.set_aside, path)
                end = msgspec.structs.replace(end, cut=True)
                continue
            level = logging.WARNING
            await trio.sleep(wait_s)
        await trio.to_thread.run_sync(asciicast.drop, path)

    async def _with_recording(self, actor: Actor, end: EndTerminal, path: Path) -> EndTerminal:
        if await trio.to_thread.run_sync(asciicast.mend, path) is None:
            return end
        try:
            info = await blobs.put(self._cluster, actor, asciicast.pieces(path))
        except TooLarge:
            return msgspec.structs.replace(end, cut=True)
        return msgspec.structs.replace(end, sha256=info.sha256)

    async def tell_earlier(self, left: Sequence[Path]) -> None:
        """What this host had open when the node died: the swarm is told, and has what was recorded.
        The files count whatever the node was called then."""
        await self._cluster.introduced.wait()
        if self._cluster.cluster_version() < TERMINALS_SINCE:
            return
        asked = ListOpenTerminals(self._cluster.node.id)
        mine = [terminal.id for terminal in await patiently(lambda: self._cluster.read(asked))]
        for id in dict.fromkeys([*(path.stem for path in left), *mine]):
            if id not in self._open:
                # Beside each other: one that the disk does not give keeps no other waiting.
                self._nursery.start_soon(self._tell_died, id)

    async def _tell_died(self, id: str) -> None:
        path = self._file(id)
        terminal = await patiently(lambda: self._cluster.read(FindTerminal(id)))
        if terminal is None or terminal.end is not None:
            await trio.to_thread.run_sync(asciicast.drop, path)
            return
        await self._tell(SYSTEM, EndTerminal(id, TerminalEnd.STOPPED, cut=True), path)

    async def kept(self, id: str) -> None:
        """Wait until the swarm knows its end, and has its recording."""
        while id in self._open:
            await self._kept.park()

    async def all_kept(self) -> None:
        while self._open:
            await self._kept.park()


@asynccontextmanager
async def open_terminals(
    cluster: Hosted, reach: Reach, folder: Path, settings: TerminalSettings,
    stopping: Callable[[], bool],
) -> AsyncIterator[Terminals]:  # fmt: skip
    """`folder` has what is being recorded, and nothing else."""
    left = await trio.to_thread.run_sync(_recordings, folder)
    async with trio.open_nursery() as nursery:
        terminals = Terminals(cluster, reach, folder, settings, stopping, nursery)
        nursery.start_soon(terminals.tell_earlier, left)
        yield terminals
        with trio.move_on_after(STOP_S):
            await terminals.all_kept()
        nursery.cancel_scope.cancel()


def _recordings(folder: Path) -> list[Path]:
    folder.mkdir(mode=0o700, exist_ok=True)
    return sorted(folder.glob(f"*{CAST}"))


@asynccontextmanager
async def _flushed(recording: Recording) -> AsyncIterator[None]:
    async def often() -> None:
        while True:
            await trio.sleep(FLUSH_S)
            await recording.flush()

    with instead(SwarmError, lambda error: error):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(often)
            yield
            nursery.cancel_scope.cancel()


# What is known of them


def require_terminals(cluster: Cluster) -> None:
    check_since(cluster.cluster_version(), TERMINALS_SINCE, "terminals")


async def list_terminals(cluster: Cluster) -> list[Terminal]:
    """The newest first."""
    require_terminals(cluster)
    return await cluster.read(ListTerminals())


async def find(cluster: Cluster, id: str) -> Terminal:
    require_terminals(cluster)
    terminal = await cluster.read(FindTerminal(id))
    if terminal is None:
        raise NotFound("no such terminal; it may be forgotten already", id=id[:128])
    return terminal


def is_open(cluster: Cluster, terminal: Terminal) -> bool:
    """As far as this node knows: that which it goes through may have died with it."""
    via = terminal.via
    return terminal.end is None and via in cluster.members and cluster.peer(via).alive


async def recording_of(cluster: Cluster, id: str) -> tuple[AsyncIterator[bytes], int]:
    """An asciicast, and its size. NotFound: there is none, or not yet."""
    terminal = await find(cluster, id)
    if terminal.sha256 is None:
        words = "yet: it is not over" if is_open(cluster, terminal) else "of this terminal"
        raise NotFound(f"there is no recording {words}", id=id[:128])
    return blobs.read(cluster, terminal.sha256), terminal.size_bytes
