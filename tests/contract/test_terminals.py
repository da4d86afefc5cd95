"""Terminals on drones over port 8093: a real shell behind a real sshd, its messages, its bounds,
its recording, and that nothing of it is left behind."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path

import pytest
import trio

from swarmd.domain.actors import Actor
from swarmd.domain.events import TerminalBegun, TerminalEnded
from tests.contract.buildswarm import ENVELOPE
from tests.contract.kinds import faults
from tests.daemon import Daemon, await_builds, running_daemon
from tests.parts import need
from tests.sshd import alive, running_sshd
from tests.terminals import KEY, TIMEOUT_S, Host, Screen, connected, gone, terminal

UPGRADE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip
SHOWN_BYTES_MAX = 64 * 1024
"""The bound of a recording here."""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    need("sshd")
    folder = tmp_path_factory.mktemp("terminals")
    with running_sshd(folder / "host", env={"SHELL": "/bin/sh", "PS1": "$ "}) as sshd:
        with running_daemon(
            folder / "node", jobs={"executor": False}, ssh=sshd.settings(folder / "known"),
            care={"enabled": False}, log={"level": "debug"},
            terminals={"sessions_max": 3, "recording_bytes_max": SHOWN_BYTES_MAX},
            # Another one says that it is there too.
            ssh__hosts={"drone-01": f"{sshd.host}:{sshd.port}"},
            environment={"ADMIN_KEY": KEY},
        ) as daemon:  # fmt: skip
            await_builds(daemon)
            made = Host(daemon, sshd)
            made.await_terminals()
            for name in ("drone-01", "drone-02"):
                made.drone(name)
            yield made


@pytest.fixture(autouse=True)
def all_ended(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    host: Host = request.getfixturevalue("host")
    host.await_recordings()


# -- what a terminal is --------------------------------------------------------------------------


async def test_a_shell_has_a_terminal_and_ends_with_its_code(host: Host) -> None:
    known = len(host.terminals())
    async with terminal(host, query=f"key={KEY}&cols=100&rows=30&term=vt220") as screen:
        user = host.host.target().user
        said = {"type": "connected", "drone": "drone-01", "ip": "127.0.0.1", "user": user}
        assert await screen.next() == said
        await screen.type("stty size; echo $TERM; tty; echo zwölf\n")
        await screen.until("30 100\r\nvt220\r\n/dev/pts/")
        await screen.until("\r\nzwölf")
        await screen.say(type="resize", cols=120, rows=40)
        await screen.type("stty size\n")
        await screen.until("40 120\r\n")
        await screen.type("exit 7\n")
        assert await screen.until_type("exit") == {"type": "exit", "code": 7}
        assert await screen.closed() == 1000
    done = await host.ended(known)
    assert (done["drone"], done["end"], done["exit_code"]) == ("drone-01", "exited", 7)
    assert (done["by"], done["address"], done["user"]) == ("admin", "127.0.0.1", user)


async def test_the_key_may_come_as_a_header_too(host: Host) -> None:
    key = (b"X-Admin-Key", KEY.encode())
    async with connected(host, query="cols=80", headers=(key,)) as screen:
        await screen.type("exit\n")
        assert (await screen.until_type("exit"))["code"] == 0


async def test_what_is_shown_is_recorded_and_the_audit_log_says_who_had_it(host: Host) -> None:
    known, before = len(host.terminals()), len(host.events())
    async with connected(host) as screen:
        await screen.type("stty -echo; printf 'a\\033[1mb\\n'\n")
        await screen.until("\x1b[1mb\r\n")
        await screen.type("read secret && echo got ${#secret}\n")
        await screen.type("not-to-be-seen\n")
        await screen.until("got 14")
        await screen.say(type="resize", cols=90, rows=20)
        await screen.type("exit\n")
        await screen.until_type("exit")
    done = await host.ended(known)
    head, *lines = host.recorded(done["id"])
    assert head["version"] == 2 and (head["width"], head["height"]) == (80, 24)
    assert head["env"] == {"TERM": "xterm-256color"} and head["title"].endswith("@drone-01")
    assert abs(head["timestamp"] - datetime.fromisoformat(done["began_at"]).timestamp()) < 5
    assert "".join(data for _, kind, data in lines if kind == "o") == screen.shown
    assert [data for _, kind, data in lines if kind == "r"] == ["90x20"]
    assert {kind for _, kind, _ in lines} == {"o", "r"}
    moments = [moment for moment, _, _ in lines]
    assert moments == sorted(moments) and 0 <= moments[0]
    assert "not-to-be-seen" not in json.dumps(lines)
    begun, over = (
        (actor, body) for actor, body in host.events()[before:]
        if isinstance(body, TerminalBegun | TerminalEnded)
    )  # fmt: skip
    assert begun[0] == over[0] == Actor("admin", "buildadmin", "127.0.0.1")
    assert isinstance(begun[1], TerminalBegun) and isinstance(over[1], TerminalEnded)
    assert begun[1].name == "drone-01" and begun[1].terminal_id == done["id"]
    assert (over[1].end, over[1].exit_code, over[1].sha256) == ("exited", 0, done["sha256"])
    assert not [*(host.daemon.data_dir / "terminals").iterdir()]


@pytest.mark.parametrize("polite", [True, False])
async def test_who_goes_leaves_no_process_behind(host: Host, tmp_path: Path, polite: bool) -> None:
    known = len(host.terminals())
    pids = tmp_path / "pids"
    # It shrugs off what a terminal sends to those that it leaves.
    stubborn = f"(trap '' HUP TERM INT; exec sleep 1000) & echo $$ $! >{pids}"
    async with connected(host) as screen:
        await screen.type(f"{stubborn}; echo so it ru''ns\n")
        await screen.until("so it runs")
        found = [int(pid) for pid in pids.read_text().split()]
        assert len(found) == 2 and all(map(alive, found))
        if polite:
            await screen.socket.aclose()
    await gone(found)
    done = await host.ended(known)
    assert (done["end"], done["exit_code"]) == ("left", None)
    assert "so it runs" in json.dumps(host.recorded(done["id"]))


async def test_a_shell_that_exits_leaves_nothing_in_the_background(
    host: Host, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    async with connected(host) as screen:
        await screen.type(f"sleep 1000 & echo $! >{pids}; nohup sleep 1001 & echo $! >>{pids}\n")
        await screen.type("exit\n")
        assert (await screen.until_type("exit"))["code"] == 0
        assert await screen.closed() == 1000
    found = [int(pid) for pid in pids.read_text().split()]
    assert len(found) == 2 and not any(map(alive, found))


# -- bounds --------------------------------------------------------------------------------------


async def test_a_slow_reader_has_the_host_wait_and_misses_nothing(
    host: Host, tmp_path: Path
) -> None:
    # 22.9 MB: the kernel's own buffers, which grow, have held 10.8 MB of it.
    known, count = len(host.terminals()), 3_000_000
    file = tmp_path / "pid"
    async with connected(host) as screen:
        await screen.type(f"stty -echo -opost; sh -c 'echo $$ >{file}; exec seq 1 {count}'; exit\n")
        before = rss_bytes(host.daemon)
        with trio.fail_after(TIMEOUT_S):
            while not file.exists() or not file.read_text().endswith("\n"):
                await trio.sleep(0.02)
            writer, written = int(file.read_text()), -1
            while written != (written := written_bytes(writer)) or not written:
                await trio.sleep(0.2)  # until it waits for somebody who reads
        assert written < 20_000_000 and alive(writer)
        assert rss_bytes(host.daemon) - before < 8 * 1024 * 1024
        await screen.until_type("exit")
        lines = screen.shown.split("\n")
        assert lines[-count:-1] == [str(number) for number in range(2, count + 1)]
    done = await host.ended(known)
    assert done["cut"] and done["size_bytes"] <= SHOWN_BYTES_MAX
    *_, last = host.recorded(done["id"])
    assert last[1] == "m" and "the recording stops here" in last[2]


def written_bytes(pid: int) -> int:
    facts = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(facts["wchar"])


def rss_bytes(daemon: Daemon) -> int:
    pages = Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def test_what_is_no_message_is_refused_and_changes_nothing(host: Host) -> None:
    wrong: list[str | bytes] = [
        "no json", b"binary", b"", "[]", "{}", '{"type": "ping"}', '{"type": "input"}',
        '{"type": "input", "data": 7}', '{"type": "input", "data": "\\ud800"}',
        json.dumps({"type": "input", "data": "x" * 70_000}),
        '{"type": "resize", "cols": 0, "rows": 24}', '{"type": "resize", "cols": 80}',
        '{"type": "resize", "cols": 80, "rows": 100000}',
        '{"type": "resize", "cols": "80", "rows": 24}', "[" * 5000,
    ]  # fmt: skip
    async with connected(host) as screen:
        for message in wrong:
            await screen.socket.send_message(message)
            refused = await screen.until_type("error")
            assert refused["error"] and refused["hint"], message
        await screen.type("stty size; exit\n")
        await screen.until("24 80")
        await screen.until_type("exit")


async def test_more_terminals_than_there_may_be_are_refused(host: Host) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(3):
            last = await stack.enter_async_context(connected_soon(host))
        async with terminal(host) as screen:
            refused = await screen.next()
            assert refused["type"] == "error" and "3 terminals are open" in refused["error"]
            assert await screen.closed() == 1013
        await last.type("exit\n")
        await last.until_type("exit")
        await stack.enter_async_context(connected_soon(host))


@asynccontextmanager
async def connected_soon(host: Host) -> AsyncIterator[Screen]:
    """A place is free again once the recording of who had it is kept."""
    with trio.fail_after(TIMEOUT_S):
        while True:
            async with terminal(host) as screen:
                if (await screen.next())["type"] == "connected":
                    yield screen
                    return


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "headers"),
    [("", {}), ("?key=wrong", {}), ("?key=", {}), (f"?key={KEY}", {"X-Admin-Key": "wrong"})],
)
def test_without_the_key_nothing_opens(host: Host, query: str, headers: dict[str, str]) -> None:
    before = host.host.sessions(), len(host.terminals())
    answer = host.daemon.request(
        "GET", f"/ws/ssh/drone-01{query}", surface="buildadmin", headers={**UPGRADE, **headers}
    )
    assert answer.status == 401, answer.body
    assert faults(answer.json, ENVELOPE) == []
    assert (host.host.sessions(), len(host.terminals())) == before


def test_the_key_in_the_query_counts_for_terminals_alone(host: Host) -> None:
    def status(path: str, surface: str = "buildadmin", **headers: str) -> int:
        return host.daemon.request("GET", path, surface=surface, headers=headers).status

    assert status(f"/admin/api/payloads?key={KEY}") == 401
    assert status(f"/ws/ssh/drone-01?key={KEY}") == 401  # asks for no WebSocket
    assert status("/ws/ssh/drone-01", **{"X-Admin-Key": KEY}) == 400
    assert status(f"/ws/other?key={KEY}", **UPGRADE) == 401
    assert status(f"/ws/ssh/x/y?key={KEY}", **UPGRADE) == 404


def test_a_page_of_another_site_gets_no_terminal(host: Host) -> None:
    headers = {**UPGRADE, "Origin": "https://elsewhere.example"}
    path = f"/ws/ssh/drone-01?key={KEY}"
    answer = host.daemon.request("GET", path, surface="buildadmin", headers=headers)
    assert answer.status == 403, answer.body


@pytest.mark.parametrize(
    ("name", "query", "code", "words"),
    [
        ("nobody", "", 1008, "no such drone"),
        ("no%20body", "", 1008, "no such drone"),
        ("drone-01", "&cols=0", 1008, "cols must be 1 to 1000"),
        ("drone-01", "&rows=many", 1008, "rows must be a whole number"),
        ("drone-01", "&term=a%0Ab", 1008, "term must be"),
    ],
)
async def test_what_cannot_be_is_said_before_it_closes(
    host: Host, name: str, query: str, code: int, words: str
) -> None:
    async with terminal(host, name, f"key={KEY}{query}") as screen:
        refused = await screen.next()
        assert refused["type"] == "error" and words in refused["error"]
        assert await screen.closed() == code


async def test_a_host_that_nobody_knows_or_reaches_is_refused(host: Host) -> None:
    known = len(host.terminals())
    await trio.to_thread.run_sync(host.drone, "stranger", "127.0.0.77")
    async with terminal(host, "stranger") as screen:
        assert (await screen.next())["type"] == "error"
        assert await screen.closed() in (1008, 1013)
    await trio.to_thread.run_sync(host.host.stop)
    try:
        async with terminal(host) as screen:
            assert (await screen.next())["type"] == "error"
            assert await screen.closed() == 1013
    finally:
        await trio.to_thread.run_sync(host.host.start)
    assert len(host.terminals()) == known


async def test_who_says_to_be_where_another_is_gets_no_terminal(host: Host) -> None:
    """The first is where the configuration has it, the other where it says."""
    known = len(host.terminals())
    await trio.to_thread.run_sync(host.drone, "liar", "127.0.0.1")
    async with terminal(host, "liar") as screen:
        refused = await screen.next()
        assert refused["type"] == "error" and "ssh.hosts" in refused["hint"]
        there = "liar: several builders are to be at 127.0.0.1, this one and drone-0"
        assert there in refused["error"]
        assert await screen.closed() == 1008
    assert len(host.terminals()) == known
    async with connected(host) as screen:
        await screen.type("exit\n")
        await screen.until_type("exit")
    await host.ended(known)


async def test_nobody_logs_in_to_a_host_whose_key_has_changed(host: Host) -> None:
    host.host.rebuild()
    async with terminal(host) as screen:
        refused = await screen.next()
        assert refused["type"] == "error" and "host key" in refused["error"]
        assert await screen.closed() == 1008
    known = Path(host.daemon.data_dir.parent.parent / "known")
    host.host.settings(known)
    async with connected(host) as screen:
        await screen.type("exit\n")
        await screen.until_type("exit")


def test_the_key_is_in_nothing_that_was_logged(host: Host) -> None:
    """The daemon logs all that it can; what was asked above had the key in its query."""
    assert "request" in host.daemon.stderr()
    assert KEY not in host.daemon.stderr()
    log = host.daemon.request(
        "GET", "/admin/api/logs/control-plane", surface="buildadmin", headers={"X-Admin-Key": KEY}
    )
    assert KEY not in log.body.decode()
