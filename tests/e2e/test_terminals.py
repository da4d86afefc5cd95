"""Terminals on bad days: nobody at the keyboard, a node that stops or dies; and as the command line
has them, at a terminal of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

import pytest
import trio

from tests.cli import Said, command, environment, swarmd
from tests.daemon import Daemon, await_builds, start_daemon
from tests.parts import need
from tests.sshd import Sshd, running_sshd
from tests.terminals import KEY, TIMEOUT_S, Host, Screen, connected, gone

PROMPT = rb"[#$] $"
MIB = 1024 * 1024
LATER = "told again later"


class Node(Host):
    """That is stopped, or dies, and is started again on the same data."""

    def __init__(self, folder: Path, sshd: Sshd, settings: dict[str, object]) -> None:
        self.folder = folder
        self.sections = {
            "jobs": {"executor": False, "blob_bytes_max": MIB}, "care": {"enabled": False},
            "ssh": sshd.settings(folder / "known"), "terminals": settings,
        }  # fmt: skip
        super().__init__(self._started(), sshd)

    def start(self) -> None:
        self.daemon.end()
        self.daemon = self._started()

    def _started(self) -> Daemon:
        environment = {"ADMIN_KEY": KEY}
        return start_daemon(self.folder / "node", environment=environment, **self.sections)

    def cli(self, *args: str, **env: str) -> Said:
        return swarmd(*args, env={"SWARMD_DATA_DIR": str(self.daemon.data_dir), **env})


@contextmanager
def running_node(folder: Path, **settings: object) -> Iterator[Node]:
    with running_sshd(folder / "host", env={"SHELL": "/bin/sh", "PS1": "$ "}) as sshd:
        made = Node(folder, sshd, settings)
        try:
            await_builds(made.daemon)
            made.await_terminals()
            made.drone("drone-01")
            yield made
        except BaseException as failure:
            failure.add_note(f"the daemon's log ends:\n{made.daemon.stderr()[-4000:]}")
            raise
        finally:
            made.daemon.end()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    need("sshd")
    with running_node(tmp_path_factory.mktemp("terminals")) as made:
        yield made


@pytest.fixture
def node(lasting: Node) -> Node:
    """Also where the test before, which stopped it, failed before it was back."""
    if lasting.daemon.process.poll() is not None:
        lasting.start()
    lasting.await_recordings()
    return lasting


@pytest.mark.needs("sshd")
async def test_a_terminal_at_which_nobody_is_ends(tmp_path: Path) -> None:
    with running_node(tmp_path, idle_s=1) as node:
        async with connected(node) as screen:
            said = await screen.until_type("error")
            assert "too long" in said["error"] and "again" in said["hint"]
            assert await screen.closed() == 1008
        assert (await node.ended(0))["end"] == "idle"


async def test_a_node_that_stops_ends_its_terminals_and_keeps_what_they_showed(node: Node) -> None:
    known = len(node.terminals())
    async with connected(node) as screen:
        shell = await has_shell(screen)
        node.daemon.process.send_signal(signal.SIGTERM)
        assert await screen.closed(shows=True) == 1001
    await gone([shell])
    assert await trio.to_thread.run_sync(node.daemon.process.wait, TIMEOUT_S) == 0
    await trio.to_thread.run_sync(node.start)
    done = await node.ended(known)
    # What a slow machine did not keep while it stopped is told later, as what was cut off.
    assert (done["end"], done["exit_code"]) == ("stopped", None)
    assert str(shell) in json.dumps(node.recorded(done["id"]))


async def test_what_a_node_recorded_before_it_died_is_kept_when_it_is_back(node: Node) -> None:
    known = len(node.terminals())
    async with connected(node) as screen:
        shell = await has_shell(screen)
        (file,) = (node.daemon.data_dir / "terminals").iterdir()
        with trio.fail_after(TIMEOUT_S):
            while str(shell) not in file.read_text():
                await trio.sleep(0.02)
        node.daemon.kill()
    await gone([shell])
    with file.open("ab") as recording:
        recording.write(b'[7.0, "o", "half a li')
    (file.parent / "nobodys.cast").write_bytes(b"?")
    await trio.to_thread.run_sync(node.start)
    done = await node.ended(known)
    assert (done["id"], done["end"], done["cut"]) == (file.stem, "stopped", True)
    lines = node.recorded(done["id"])
    assert str(shell) in json.dumps(lines) and "half a li" not in json.dumps(lines)
    await trio.to_thread.run_sync(node.await_recordings)


async def test_a_recording_that_the_disk_does_not_give_is_told_of_later(node: Node) -> None:
    known = len(node.terminals())
    async with connected(node) as screen:
        await has_shell(screen)
        (file,) = (node.daemon.data_dir / "terminals").iterdir()
        with unreadable(file):
            await screen.type("exit 3\n")
            assert (await screen.until_type("exit"))["code"] == 3
            await told_later(node, file.stem)
            assert node.terminals()[0]["ended_at"] is None
    done = await node.ended(known)
    assert (done["id"], done["end"], done["exit_code"]) == (file.stem, "exited", 3)
    assert done["cut"] is False and node.recorded(done["id"])


async def test_one_that_it_does_not_give_after_a_death_keeps_no_other_waiting(node: Node) -> None:
    known = len(node.terminals())
    async with connected(node) as one, connected(node) as two:
        shells = [await has_shell(one), await has_shell(two)]
        kept, other = sorted((node.daemon.data_dir / "terminals").iterdir())
        node.daemon.kill()
    await gone(shells)
    with unreadable(kept):
        await trio.to_thread.run_sync(node.start)
        with trio.fail_after(TIMEOUT_S):
            while other.exists():
                await trio.sleep(0.02)
        await told_later(node, kept.stem)
        ends = {one["id"]: one["end"] for one in node.terminals()}
        assert (ends[other.stem], ends[kept.stem]) == ("stopped", "open")
    await trio.to_thread.run_sync(node.await_recordings)
    ended = node.terminals()[:-known] if known else node.terminals()
    assert {one["id"] for one in ended} == {kept.stem, other.stem}
    assert all(one["end"] == "stopped" and node.recorded(one["id"]) for one in ended)


@contextmanager
def unreadable(file: Path) -> Iterator[None]:
    """Whoever opens it gets an OSError, even root."""
    aside = file.parent.parent / "aside"
    file.rename(aside)
    file.mkdir()
    try:
        yield
    finally:
        file.rmdir()
        aside.rename(file)


async def told_later(node: Node, id: str) -> None:
    with trio.fail_after(TIMEOUT_S):
        while not any(id in line for line in node.daemon.stderr().splitlines() if LATER in line):
            assert node.daemon.process.poll() is None
            await trio.sleep(0.02)


async def test_a_recording_is_no_larger_than_a_blob_may_be(node: Node) -> None:
    known = len(node.terminals())
    async with connected(node) as screen:
        await screen.type("stty -echo; seq 1 400000; exit\n")
        await screen.until_type("exit")
    done = await node.ended(known)
    assert done["cut"] and MIB // 2 < done["size_bytes"] <= MIB
    *_, last = node.recorded(done["id"])
    assert last[1] == "m" and f"it has the {MIB} bytes" in last[2]


async def has_shell(screen: Screen) -> int:
    """Its process."""
    await screen.type("stty -echo; echo shell $$ it is\n")
    while not (found := re.search(r"shell (\d+) it is", screen.shown)):
        await screen.next()
    return int(found[1])


# -- the command line ----------------------------------------------------------------------------


def test_a_terminal_of_the_command_line_is_one_of_the_host(node: Node) -> None:
    mine, theirs = pty.openpty()
    set_size(theirs, 33, 91)
    before = termios.tcgetattr(theirs)
    env = environment({"SWARMD_DATA_DIR": str(node.daemon.data_dir)})
    process = subprocess.Popen(
        command("terminal", "drone-01"), stdin=theirs, stdout=theirs, stderr=theirs, env=env
    )
    try:
        until_shown(mine, PROMPT)
        os.write(mine, b"stty size\n")
        shown = until_shown(mine, rb"33 91\r\n")
        set_size(theirs, 40, 120)
        process.send_signal(signal.SIGWINCH)
        os.write(mine, b"until [ \"$(stty size)\" = '40 120' ]; do :; done; echo l''arger\n")
        shown += until_shown(mine, b"larger")
        os.write(mine, b"exit 5\n")
        assert process.wait(TIMEOUT_S) == 5, shown
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
        os.close(mine)
        os.close(theirs)


def set_size(fd: int, rows: int, cols: int) -> None:
    ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


def until_shown(fd: int, what: bytes) -> bytes:
    shown = b""
    deadline = time.monotonic() + TIMEOUT_S
    while not re.search(what, shown):
        assert select.select([fd], [], [], deadline - time.monotonic())[0], shown
        shown += os.read(fd, 4096)
    return shown


def test_ctrl_bracket_leaves_it(node: Node) -> None:
    mine, theirs = pty.openpty()
    env = environment({"SWARMD_DATA_DIR": str(node.daemon.data_dir)})
    process = subprocess.Popen(
        command("terminal", "drone-01"), stdin=theirs, stdout=theirs, stderr=theirs, env=env
    )
    try:
        until_shown(mine, PROMPT)
        os.write(mine, b"\x1d")
        assert process.wait(TIMEOUT_S) == 1
    finally:
        process.kill()
        process.wait()
        os.close(mine)
        os.close(theirs)
    node.await_recordings()
    assert node.terminals()[0]["end"] == "left"


def test_what_is_piped_into_it_is_typed_there_and_can_be_seen_again(node: Node) -> None:
    done = subprocess.run(
        command("terminal", "drone-01", "--url", node.daemon.url("buildadmin")),
        input="stty -echo; echo from he''re; exit 3\n", env=environment({"ADMIN_KEY": KEY}),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, "from here" in done.stdout) == (3, True), done
    node.await_recordings()
    listed = node.cli("terminals", "list", "--json").json["terminals"]
    id = listed[0]["id"]
    assert (listed[0]["end"], listed[0]["exit_code"]) == ("exited", 3)
    table = node.cli("terminals", "list").out.splitlines()
    assert table[0].split()[:3] == ["ID", "DRONE", "BY"] and "exited 3" in table[1]
    assert node.cli("terminals", "show", id, "--json").json == listed[0]
    assert "drone-01" in node.cli("terminals", "show", id).out
    cast = node.cli("terminals", "recording", id).out
    assert json.loads(cast.splitlines()[0])["version"] == 2
    again = node.cli("terminals", "replay", id)
    shown = "".join(line[2] for line in map(json.loads, cast.splitlines()[1:]))
    assert again.out == shown.replace("\r\n", "\n") and "80x24" in again.err


@pytest.mark.needs("bash")
@pytest.mark.parametrize(
    ("typed", "code"),
    [
        (b"exit 3", 3), (b"", 0), (b"exit 3 # \xc3", 3), (b"(exit 4)", 4), (b"(exit 4)\n", 4),
        (b"cat >/dev/null\nnot for the shell", 0), (b"exec bash --norc\nsleep 0.5\n(exit 4)\n", 4),
    ],
    ids=["line", "nothing", "half a character", "status", "newline", "taken", "edited"],
)  # fmt: skip
def test_it_ends_where_what_is_piped_into_it_ends(node: Node, typed: bytes, code: int) -> None:
    done = subprocess.run(
        command("terminal", "drone-01"), input=typed, capture_output=True, timeout=TIMEOUT_S,
        env=environment({"SWARMD_DATA_DIR": str(node.daemon.data_dir)}), check=False,
    )  # fmt: skip
    assert done.returncode == code, done
    node.await_recordings()
    assert node.terminals()[0]["end"] == "exited"


def test_what_cannot_be_is_said(node: Node) -> None:
    said = node.cli("terminal", "nobody")
    assert (said.status, "no such drone" in said.err) == (1, True)
    url = node.daemon.url("buildadmin")
    said = node.cli("terminal", "drone-01", "--url", url, ADMIN_KEY="wrong")
    assert (said.status, "key" in said.err) == (1, True)
    said = node.cli("terminal", "drone-01", "--url", url)
    assert (said.status, "ADMIN_KEY" in said.err) == (1, True)
    said = node.cli("terminal", "drone-01", "--url", "http://127.0.0.1:1", ADMIN_KEY=KEY)
    assert (said.status, "cannot be reached" in said.err) == (1, True)
    assert node.cli("terminal", "drone-01", "--url", "ftp://x", ADMIN_KEY=KEY).status == 2
    said = node.cli("terminals", "replay", "nothing")
    assert (said.status, "no such terminal" in said.err) == (1, True)
