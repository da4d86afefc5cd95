"""The Portage of this host, asked: whether it is there, what a name stands for, what needs what.
Nothing here changes the host but for its tree; what builds is in portage_builds.py.

The questions go to Portage's own library in a child process (portage_inside.py says why), under
the Python that `emerge` itself runs with. What comes back is checked like a stranger's.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

from swarmd.domain.build_order import Edge
from swarmd.domain.errors import Busy, Invalid, NotFound, SwarmError, TooLarge, Unavailable
from swarmd.domain.packages import Want, split

T = TypeVar("T")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/bin"
PACKAGES_MAX = 10_000
"""That one request may stand for, or be put in order."""
ANSWER_BYTES_MAX = 16 * 1024 * 1024
COMPLAINT_BYTES_MAX = 4096
WAITING_MAX = 16
ORDER_PART = 0.8
"""Of the time for an answer: what has no order by then is told without."""
PYTHON_EXEC = Path("/usr/lib/python-exec")


@dataclass(frozen=True, slots=True)
class PortageSettings:
    command: tuple[str, ...] = ("emerge",)
    """Whatever stands before `emerge` stands before Portage's Python too: chroot, nsenter."""
    options: tuple[str, ...] = ()
    """Added to each build, after our own."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Of Portage alone: ROOT, PORTAGE_CONFIGROOT, FEATURES, MAKEOPTS, PATH …"""
    python: tuple[str, ...] = ()
    """The interpreter that can import portage. Empty: it is looked for."""
    install_dependencies: bool = False
    """What a build needs is installed on this host first, from binary packages where there are
    any. Else a build whose needs are not met fails."""
    build_timeout_s: float = 6 * 3600.0
    query_timeout_s: float = 120.0
    log_bytes_max: int = 1024 * 1024
    """Of a failing build's log, its end."""


class Description(msgspec.Struct, frozen=True):
    """What a binary package of this host will be, in Portage's own variables."""

    version: str
    profile: str = ""
    timestamp: str = ""
    """When the main repository was last synchronized, as it says itself."""
    settings: dict[str, str] = {}
    """ARCH, CHOST, CFLAGS, CXXFLAGS, ACCEPT_KEYWORDS, BINPKG_FORMAT, FEATURES."""


@dataclass(frozen=True, slots=True)
class Missing:
    """No builder here, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """What one want stands for. With an error there are no packages."""

    want: Want
    packages: tuple[str, ...] = ()
    masked: str | None = None
    """A version that was named exists, but this host will not build it: why."""
    notes: tuple[str, ...] = ()
    """Members of a set that stand for nothing, and why."""
    error: SwarmError | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    resolved: tuple[Resolved, ...]
    edges: tuple[Edge, ...]
    """With circles (domain/build_order.py breaks them). What the tree does not have has none."""
    unordered: str = ""
    """Why there are none at all."""


class Portage:
    """Made by `find`. One question at a time: each takes a core and some 60 MB while it lasts."""

    def __init__(
        self, settings: PortageSettings, python: tuple[str, ...], description: Description
    ) -> None:
        self.settings = settings
        self.python = python
        self.description = description
        """As it was when Portage was last asked about anything but order."""
        self.answers = True
        """It did when it was last asked."""
        self._turn = trio.CapacityLimiter(1)

    async def describe(self) -> Description:
        """As it is now: the tree may have been synchronized since."""
        async with self._turns():
            with self._told():
                self.description = await _describe(self.settings, self.python)
        return self.description

    async def sync(self, command: Sequence[str], timeout_s: float) -> Description:
        """Have the tree brought up to date, and look at it. Unavailable: it ended badly, or not in
        time; nothing of it goes on."""
        async with self._turns():
            await _run(replace(self.settings, query_timeout_s=timeout_s), command)
            self.description = await _describe(self.settings, self.python)
        return self.description

    async def plan(self, wants: Sequence[Want], queued: Sequence[str] = ()) -> Planned:
        """What each want stands for, in their order, and who needs whom among that and what is
        queued, as the tree and this host's USE flags have it. TooLarge: more than PACKAGES_MAX are
        queued. Invalid: one of them is no category/package-version. Busy: too many ask.
        Unavailable: Portage gave no answer, and its words say why."""
        if len(queued) > PACKAGES_MAX:
            raise TooLarge(f"{len(queued)} packages to put in order; {PACKAGES_MAX} at most")
        known = {str(split(cpv)) for cpv in queued}
        if not wants and len(known) < 2:
            return Planned((), ())
        request = {
            "wants": list(map(str, wants)), "queued": sorted(known), "packages_max": PACKAGES_MAX,
            "do": "plan", "plan_s": ORDER_PART * self.settings.query_timeout_s,
        }  # fmt: skip
        with self._told():
            async with self._turns():
                said = await _ask(self.settings, self.python, request, _Answers)
            if len(said.answers) != len(wants):
                raise Unavailable(f"Portage answered {len(said.answers)} of {len(wants)} questions")
            resolved = tuple(map(_resolved, wants, said.answers))
            known.update(package for each in resolved for package in each.packages)
            if not all(edge.before in known and edge.after in known for edge in said.edges):
                raise Unavailable("Portage named a package that it was not asked for")
        self.description = msgspec.structs.replace(self.description, timestamp=said.timestamp)
        return Planned(resolved, tuple(sorted(said.edges)), said.unordered)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Unavailable:
            self.answers = False
            raise
        self.answers = True

    @asynccontextmanager
    async def _turns(self) -> AsyncIterator[None]:
        if self._turn.statistics().tasks_waiting >= WAITING_MAX:
            raise Busy(f"{WAITING_MAX} questions to Portage wait already", retry_after_s=5)
        async with self._turn:
            yield


class _Note(msgspec.Struct, frozen=True):
    atom: str = ""
    kind: str = ""
    others: list[str] = []
    masked: list[str] = []
    newest: str = ""
    why: str = ""


class _Answer(_Note, frozen=True):
    packages: list[str] = []
    notes: list[_Note] = []


class _Answers(msgspec.Struct, frozen=True):
    answers: list[_Answer]
    edges: list[Edge] = []
    unordered: str = ""
    timestamp: str = ""


async def find(settings: PortageSettings) -> Portage | Missing:
    """Whether `emerge` can be run here, and by which Python its library is to be had."""
    if not settings.command:
        return Missing("the builder's command is empty; name emerge")
    env = environment(settings)
    if shutil.which(settings.command[0], path=env["PATH"]) is None:
        return Missing(
            f"there is no program {settings.command[0]!r} on PATH {env['PATH']}; install Portage,"
            " or name another command of the builder"
        )
    try:
        said = await _run(settings, [*settings.command, "--version"])
    except SwarmError as error:
        return Missing(f"{' '.join(settings.command)} --version: {error.message}")
    if re.search(rb"^Portage \d", said, re.MULTILINE) is None:
        return Missing(f"{' '.join(settings.command)} --version says nothing of Portage")
    reasons = []
    for python in await trio.to_thread.run_sync(lambda: list(_pythons(settings, env["PATH"]))):
        try:
            return Portage(settings, python, await _describe(settings, python))
        except SwarmError as error:
            reasons.append(f"{' '.join(python)}: {error.message}")
    tried = "; ".join(reasons) or "none was found"
    return Missing(f"no Python here can import portage; name it as the builder's python ({tried})")


def environment(settings: PortageSettings) -> dict[str, str]:
    """The whole of what Portage gets: nothing of the daemon's own, which may be secret."""
    return {
        "PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", "TERM": "dumb", "NO_COLOR": "1",
        "NOCOLOR": "true", **settings.env,
    }  # fmt: skip


def _pythons(settings: PortageSettings, path: str) -> Iterable[tuple[str, ...]]:
    """Where `emerge` is, most likely first: whose script it is, whom Gentoo's wrapper would choose
    from, and what goes by the name of python3. Behind a prefix only the last can be known."""
    if settings.python:
        yield settings.python
        return
    *prefix, program = settings.command
    if not prefix and (script := shutil.which(program, path=path)) is not None:
        yield from _interpreter(Path(script))
        for variant in sorted(PYTHON_EXEC.glob(f"python3*/{Path(program).name}"), reverse=True):
            yield from _interpreter(variant)
    yield (*prefix, "python3")


def _interpreter(script: Path) -> Iterable[tuple[str, ...]]:
    try:
        with script.open("rb") as file:
            line = file.readline(512)
    except OSError:
        return
    words = line.removeprefix(b"#!").decode(errors="replace").split()
    if line.startswith(b"#!") and words and Path(words[0]).name.startswith("python"):
        yield (words[0],)


async def _describe(settings: PortageSettings, python: tuple[str, ...]) -> Description:
    return await _ask(settings, python, {"do": "describe"}, Description)


async def _ask(
    settings: PortageSettings, python: tuple[str, ...], request: object, kind: type[T]
) -> T:
    script = resources.files("swarmd.drivers").joinpath("portage_inside.py").read_text("utf-8")
    # -I: neither the working directory nor PYTHONPATH decides what is imported.
    command = [*python, "-I", "-c", script]
    said = await _run(settings, command, msgspec.json.encode(request))
    try:
        return await trio.to_thread.run_sync(lambda: msgspec.json.decode(said, type=kind))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unavailable(f"Portage's answer is not understood: {error}") from error


async def _run(settings: PortageSettings, command: Sequence[str], given: bytes = b"") -> bytes:
    """What it prints, in bounded time and memory. Unavailable: it failed, with its last words. Its
    whole session ends with it: Portage runs ebuilds to read them."""
    with trio.move_on_after(settings.query_timeout_s):
        try:
            process = await trio.lowlevel.open_process(
                list(command), env=environment(settings), start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
            )  # fmt: skip
        except OSError as error:
            raise Unavailable(f"{command[0]} cannot be run: {error.strerror}") from error
        assert process.stdin and process.stdout and process.stderr
        said, complaint = bytearray(), bytearray()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_feed, process.stdin, given)
                nursery.start_soon(_keep_end, process.stderr, complaint)
                async for part in process.stdout:
                    said += part
                    if len(said) > ANSWER_BYTES_MAX:
                        break
                if len(said) > ANSWER_BYTES_MAX:
                    nursery.cancel_scope.cancel()
                else:
                    await process.wait()
        finally:
            with trio.CancelScope(shield=True):
                _end_session(process.pid)
                await process.wait()
                for stream in (process.stdin, process.stdout, process.stderr):
                    await stream.aclose()
        if len(said) > ANSWER_BYTES_MAX:
            raise Unavailable(f"{command[0]} printed more than {ANSWER_BYTES_MAX} bytes")
        if process.returncode != 0:
            words = complaint.decode(errors="replace").strip().splitlines()
            last = words[-1][:300] if words else "without a word"
            raise Unavailable(f"{command[0]} ended with {process.returncode}: {last}")
        return bytes(said)
    raise Unavailable(
        f"{command[0]} gave no answer within {settings.query_timeout_s:g} s",
        timeout_s=settings.query_timeout_s,
    )


async def _feed(stream: trio.abc.SendStream, data: bytes) -> None:
    try:
        await stream.send_all(data)
        await stream.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # it ended before it read all of it; its exit status says more


async def _keep_end(stream: trio.abc.ReceiveStream, end: bytearray) -> None:
    while part := await stream.receive_some():
        end += part
        del end[:-COMPLAINT_BYTES_MAX]


def _end_session(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _resolved(want: Want, answer: _Answer) -> Resolved:
    if answer.kind:
        return Resolved(want, error=_refusal(str(want), answer))
    try:
        packages = tuple(str(split(cpv)) for cpv in answer.packages)
    except Invalid as error:
        return Resolved(want, error=error)
    masked = ", ".join(answer.masked) or None
    notes = tuple(_refusal(note.atom, note).message for note in answer.notes)
    return Resolved(want, packages, masked, notes)


def _refusal(want: str, note: _Note) -> SwarmError:
    others = f"; did you mean {', '.join(note.others)}?" if note.others else ""
    match note.kind:
        case "no_package":
            words = f"there is no package {want} in the tree"
            return NotFound(f"{words}{others or '; emerge --search finds its name'}")
        case "no_version":
            return NotFound(f"the tree has no {want}; it has {', '.join(note.others)}")
        case "no_set":
            return NotFound(f"there is no set {want}{others}")
        case "masked":
            why = ", ".join(note.masked)
            return Invalid(
                f"every version of {want} is masked, the newest, {note.newest}, by {why};"
                " accept it in package.accept_keywords, package.unmask or package.license"
            )
        case "too_many":
            return TooLarge(f"{want} and what goes before it are over {PACKAGES_MAX} packages")
        case _:
            return Invalid(f"Portage does not understand {want}: {note.why or note.kind}")
