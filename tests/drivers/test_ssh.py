"""Commands and terminals over ssh, against real sshd: what is left early is ended there too."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from swarmd.domain.errors import Busy, Invalid, TooLarge, Unavailable
from swarmd.domain.probes import ServiceState, probe_command, read_probe
from swarmd.drivers.ssh import Ssh, SshSettings, Terminal, open_ssh
from swarmd.drivers.ssh_sessions import _STALE, _SWEEP
from tests.sshd import Sshd, alive, running_sshd

SLEEPERS = "trap '' HUP INT TERM; set -m; sleep 1000 & (trap '' HUP; exec sleep 1001) &"
"""Processes in groups of their own that ignore what may be ignored."""


async def gone(*pids: int) -> None:
    with trio.fail_after(60):
        while any(map(alive, pids)):
            await trio.sleep(0.02)


async def written(file: Path, lines: int = 1) -> list[int]:
    with trio.fail_after(60):
        while len(found := words_in(file)) < lines:
            await trio.sleep(0.02)
    return [int(word) for word in found]


def words_in(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


async def until_shown(terminal: Terminal, what: str) -> str:
    shown = ""
    with trio.fail_after(60):
        while what not in shown:
            data = await terminal.receive()
            assert data, f"the shell ended: {shown!r}"
            shown += data.decode()
    return shown


# -- commands ------------------------------------------------------------------------------------


async def test_a_command_says_what_it_says_and_how_it_ended(ssh: Ssh, sshd: Sshd) -> None:
    ran = await ssh.exec(sshd.target(), "echo out; echo err >&2; exit 3", timeout_s=20)
    assert (ran.exit_code, ran.stdout, ran.stderr, ran.cut) == (3, b"out\n", b"err\n", False)
    words = ["it's", '"$HOME"', "a\nb", "*", "", "ünï", "\\"]
    ran = await ssh.exec(sshd.target(), ["printf", "%s|", *words], timeout_s=20)
    assert ran.stdout.decode() == "|".join(words) + "|"
    ran = await ssh.exec(sshd.target(), "kill -SEGV $$", timeout_s=20)
    assert ran.exit_code == 128 + signal.SIGSEGV
    ran = await ssh.exec(sshd.target(), ["no-such-command"], timeout_s=20)
    assert ran.exit_code == 127 and b"no-such-command" in ran.stderr


async def test_input_and_output_flow_at_once(ssh: Ssh, sshd: Sshd) -> None:
    data = os.urandom(1024 * 1024) * 5
    with trio.fail_after(60):
        ran = await ssh.exec(
            sshd.target(), "cat", input=data, timeout_s=60, output_bytes_max=len(data)
        )
    assert ran.stdout == data and not ran.cut
    # One that wants none of it does not keep us.
    ran = await ssh.exec(sshd.target(), "exec <&-; echo done", input=data, timeout_s=20)
    assert ran.stdout == b"done\n"


@pytest.mark.parametrize("command", ["", "  ", "a\0b", ["a", "b\0"], [], "\ud800"])
async def test_what_is_no_command_is_refused(
    ssh: Ssh, sshd: Sshd, command: str | list[str]
) -> None:
    with pytest.raises(Invalid):
        await ssh.exec(sshd.target(), command, timeout_s=5)
    with pytest.raises(TooLarge):
        await ssh.exec(sshd.target(), "x" * 200_000, timeout_s=5)


async def test_more_output_than_wanted_is_cut_and_without_end_is_ended(
    ssh: Ssh, sshd: Sshd, tmp_path: Path
) -> None:
    ran = await ssh.exec(
        sshd.target(), "head -c 300000 /dev/zero; exit 7", timeout_s=20, output_bytes_max=1000
    )
    assert (ran.exit_code, len(ran.stdout), ran.cut) == (7, 1000, True)
    file = tmp_path / "pid"
    with pytest.raises(TooLarge, match="without end"):
        await ssh.exec(sshd.target(), f"echo $$ >{file}; yes", timeout_s=60, output_bytes_max=10)
    await gone(*await written(file))


async def test_a_late_command_is_ended_with_all_that_it_started(
    ssh: Ssh, sshd: Sshd, tmp_path: Path
) -> None:
    file = tmp_path / "pids"
    command = f"{SLEEPERS} jobs -p >{file}; echo $$ >>{file}; while :; do sleep 1; done"
    with pytest.raises(Unavailable, match=r"did not end within 2 s"):
        await ssh.exec(sshd.target(), command, timeout_s=2)
    pids = await written(file, 3)
    assert len(pids) == 3
    await gone(*pids)


async def test_a_cancelled_command_is_ended_there(ssh: Ssh, sshd: Sshd, tmp_path: Path) -> None:
    file = tmp_path / "pids"
    async with trio.open_nursery() as nursery:
        for number in range(6):
            command = f"echo $$ >{file}{number}; sleep 1000"
            nursery.start_soon(lambda c: ssh.exec(sshd.target(), c, timeout_s=99), command)
        pids = [pid for n in range(6) for pid in await written(Path(f"{file}{n}"))]
        nursery.cancel_scope.cancel()
    await gone(*pids)


async def test_what_a_command_left_on_purpose_stays_and_keeps_nobody(ssh: Ssh, sshd: Sshd) -> None:
    with trio.fail_after(60):
        ran = await ssh.exec(sshd.target(), "setsid sleep 1000 & echo $!", timeout_s=99)
    pid = int(ran.stdout)
    assert ran.exit_code == 0 and alive(pid)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.needs("sshd", "bash")
async def test_what_start_up_files_say_comes_too_and_does_no_harm(tmp_path: Path) -> None:
    with running_sshd(tmp_path / "sshd") as sshd:
        (sshd.folder / ".bashrc").write_text("echo welcome; echo warning >&2\n")
        async with open_ssh() as ssh:
            ran = await ssh.exec(sshd.target(), "echo out; echo err >&2", timeout_s=20)
            shell = (await ssh.exec(sshd.target(), "echo $SHELL", timeout_s=20)).stdout
            if shell.strip().endswith(b"bash"):
                assert ran.stdout == b"welcome\nout\n" and ran.stderr == b"warning\nerr\n"
            file = tmp_path / "pid"
            with pytest.raises(Unavailable, match="did not end"):
                await ssh.exec(sshd.target(), f"echo $$ >{file}; sleep 1000", timeout_s=1)
            await gone(*await written(file))


async def test_no_agent_goes_along(ssh: Ssh, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nowhere")
    ran = await ssh.exec(sshd.target(), 'echo "[$SSH_AUTH_SOCK]"', timeout_s=20)
    assert ran.stdout == b"[]\n"


def test_asyncssh_is_loaded_late() -> None:
    code = (
        "import sys, swarmd.drivers.ssh; "
        "assert not {'asyncssh', 'trio_asyncio', 'asyncio'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- connections ---------------------------------------------------------------------------------


async def test_connections_are_kept_and_left_when_idle(sshd: Sshd) -> None:
    async with open_ssh(SshSettings(idle_s=0.4)) as ssh:
        for _ in range(3):
            await ssh.exec(sshd.target(), "true", timeout_s=20)
        assert len(sshd.sessions()) == 1
        with trio.fail_after(60):
            while sshd.sessions():
                await trio.sleep(0.05)
        await ssh.exec(sshd.target(), "true", timeout_s=20)
    with trio.fail_after(60):
        while sshd.sessions():
            await trio.sleep(0.05)


async def test_a_kept_connection_that_was_lost_is_nobodys_loss(ssh: Ssh, sshd: Sshd) -> None:
    await ssh.exec(sshd.target(), "true", timeout_s=20)
    for how in (signal.SIGKILL, signal.SIGTERM):
        for pid in sshd.sessions():
            os.kill(pid, how)
        ran = await ssh.exec(sshd.target(), "echo again", timeout_s=20)
        assert ran.stdout == b"again\n"


async def test_a_restarted_host_is_reached_again(ssh: Ssh, sshd: Sshd) -> None:
    await ssh.exec(sshd.target(), "true", timeout_s=20)
    sshd.stop()
    with pytest.raises(Unavailable, match="connection refused"):
        await ssh.exec(sshd.target(), "true", timeout_s=20)
    sshd.start()
    await ssh.exec(sshd.target(), "true", timeout_s=20)


async def test_a_connection_lost_while_a_command_runs_is_said(
    ssh: Ssh, sshd: Sshd, tmp_path: Path
) -> None:
    file = tmp_path / "pid"

    async def lose() -> None:
        await written(file)
        sshd.stop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lose)
        with pytest.raises(Unavailable, match="connection was lost before the command"):
            # What it reads is sent once we know that it has begun.
            command = f"read word; echo $$ >{file}; sleep 1000"
            await ssh.exec(sshd.target(), command, input=b"go\n", timeout_s=99)


@pytest.mark.needs("sshd")
async def test_a_host_with_few_sessions_gets_more_connections(tmp_path: Path) -> None:
    with running_sshd(tmp_path / "sshd", options=("MaxSessions 2",)) as sshd, trio.fail_after(60):
        async with open_ssh() as ssh, trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(lambda: ssh.exec(sshd.target(), "sleep 0.5", timeout_s=30))


async def test_more_than_a_host_may_be_asked_at_once_is_busy(sshd: Sshd, tmp_path: Path) -> None:
    settings = SshSettings(connections_per_target_max=1, channels_max=2)
    async with open_ssh(settings) as ssh, trio.open_nursery() as nursery:
        files = [tmp_path / f"pid{number}" for number in range(2)]
        for file in files:
            command = f"echo $$ >{file}; sleep 1000"
            nursery.start_soon(lambda c: ssh.exec(sshd.target(), c, timeout_s=999), command)
        for file in files:
            await written(file)
        with trio.fail_after(60), pytest.raises(Busy):
            await ssh.exec(sshd.target(), "true", timeout_s=99)
        nursery.cancel_scope.cancel()


@pytest.mark.needs("sshd")
async def test_an_idle_connection_gives_way_to_another_hosts(tmp_path: Path) -> None:
    with running_sshd(tmp_path / "a") as one, running_sshd(tmp_path / "b", "127.0.0.2") as two:
        async with open_ssh(SshSettings(connections_max=1)) as ssh:
            for sshd in (one, two, one):
                await ssh.exec(sshd.target(), "true", timeout_s=20)
            with trio.fail_after(60):
                while two.sessions():
                    await trio.sleep(0.05)


async def test_closing_ssh_ends_what_runs(sshd: Sshd, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    said: list[str] = []

    async def run(ssh: Ssh) -> None:
        with pytest.raises(Unavailable) as caught:
            await ssh.exec(sshd.target(), f"echo $$ >{file}; sleep 1000", timeout_s=99)
        said.append(caught.value.message)

    async with trio.open_nursery() as nursery:
        async with open_ssh() as ssh:
            nursery.start_soon(run, ssh)
            (pid,) = await written(file)
    assert "closed" in said[0]
    await gone(pid)
    with pytest.raises(Unavailable, match="closed"):
        await ssh.exec(sshd.target(), "true", timeout_s=5)


# -- terminals -----------------------------------------------------------------------------------


async def test_a_terminal_has_a_size_and_ends_with_its_shell(ssh: Ssh, sshd: Sshd) -> None:
    async with ssh.terminal(sshd.target(), cols=100, rows=30, term="vt220") as terminal:
        await terminal.send(b"stty size; echo $TERM; tty\n")
        shown = await until_shown(terminal, "/dev/pts/")
        assert "30 100" in shown and "vt220" in shown and "swarmd" not in shown
        terminal.resize(120, 40)
        await terminal.send(b"stty size\n")
        await until_shown(terminal, "40 120")
        await terminal.send(b"exit 4\n")
        with trio.fail_after(20):
            while await terminal.receive():
                pass
        assert terminal.exit_code == 4
        assert await terminal.receive() == b""
        terminal.resize(80, 24)
        with pytest.raises(Unavailable):
            await terminal.send(b"too late")


async def test_a_terminal_that_is_left_is_gone_with_all_its_processes(
    ssh: Ssh, sshd: Sshd, tmp_path: Path
) -> None:
    file = tmp_path / "pids"
    script = tmp_path / "script"
    script.write_text(f"{SLEEPERS} jobs -p >{file}; echo $$ >>{file}; while :; do sleep 1; done\n")
    async with ssh.terminal(sshd.target()) as terminal:
        await terminal.send(f"echo $$ >{file}.shell; sh {script}\n".encode())
        pids = [*await written(Path(f"{file}.shell")), *await written(file, 3)]
        assert all(map(alive, pids))
    await gone(*pids)


async def test_what_a_shell_leaves_in_the_background_ends_with_its_terminal(
    ssh: Ssh, sshd: Sshd, tmp_path: Path
) -> None:
    file, stays = tmp_path / "pids", tmp_path / "stays"
    async with ssh.terminal(sshd.target()) as terminal:
        await terminal.send(
            f"setsid sh -c 'echo $$ >{stays}; exec sleep 1000'\n"
            f"sleep 1000 & nohup sleep 1001 >/dev/null & {SLEEPERS} jobs -p >{file}\n".encode()
        )
        pids, (apart,) = await written(file, 4), await written(stays)
        await terminal.send(b"exit 5\n")
        with trio.fail_after(20):
            while await terminal.receive():
                pass
        assert terminal.exit_code == 5
        assert all(map(alive, pids))
    left = [pid for pid in (*pids, apart) if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == [apart]


def test_a_session_that_has_taken_the_number_of_one_that_ended_is_let_be() -> None:
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as other:
        try:
            for stale, ends in ((_STALE, False), (":", True)):
                sweep = ["sh", "-c", _SWEEP % (other.pid, stale, "y")]
                assert subprocess.run(sweep, check=False, timeout=20).returncode == 0
                assert (other.poll() is not None) is ends
        finally:
            other.kill()


async def test_a_terminal_that_nobody_reads_has_the_host_wait(ssh: Ssh, sshd: Sshd) -> None:
    async with ssh.terminal(sshd.target()) as terminal:
        before_bytes = rss_bytes()
        await terminal.send(b"yes $(printf %0100d 0)\n")
        await trio.sleep(1)
        assert rss_bytes() - before_bytes < 8 * 1024 * 1024
        # It goes on where it was, and what is typed gets through.
        for _ in range(100):
            assert await terminal.receive()
        await terminal.send(b"\x03echo stop$((1+1))\n")
        await until_shown(terminal, "stop2")


@pytest.mark.parametrize(
    ("cols", "rows", "term"),
    [(0, 24, "xterm"), (80, 0, "xterm"), (5000, 24, "xterm"), (80, 24, "x y"), (80, 24, "")],
)
async def test_what_is_no_terminal_is_refused(
    ssh: Ssh, sshd: Sshd, cols: int, rows: int, term: str
) -> None:
    with pytest.raises(Invalid):
        async with ssh.terminal(sshd.target(), cols=cols, rows=rows, term=term):
            pass


async def test_twenty_terminals_at_once(ssh: Ssh, sshd: Sshd) -> None:
    shells: list[int] = []

    async def use(number: int) -> None:
        async with ssh.terminal(sshd.target()) as terminal:
            await terminal.send(f"echo number-{number}-$((number+1)) pid $$ end\n".encode())
            shown = await until_shown(terminal, f"number-{number}-1 pid")
            shown += await until_shown(terminal, "end") if " end" not in shown[-40:] else ""
            found = re.search(rf"number-{number}-1 pid (\d+)", shown)
            assert found is not None
            shells.append(int(found[1]))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(use, number)
    assert len(set(shells)) == 20
    await gone(*shells)


# -- probes --------------------------------------------------------------------------------------


async def test_a_host_is_probed_over_ssh(ssh: Ssh, sshd: Sshd, tmp_path: Path) -> None:
    assert sshd.process is not None
    pidfile = tmp_path / "pid"
    pidfile.write_text(f"{sshd.process.pid}\n")
    command = probe_command(pidfile=str(pidfile), paths=["/", str(tmp_path), "/no where"])
    probed = read_probe((await ssh.exec(sshd.target(), command, timeout_s=20)).stdout)
    assert probed.service is ServiceState.UP and probed.cores == os.cpu_count()
    assert probed.uptime_s > 0 and probed.disk_percent[2] is None
    pidfile.write_text("999999999\n")
    probed = read_probe((await ssh.exec(sshd.target(), command, timeout_s=20)).stdout)
    assert probed.service is ServiceState.DOWN


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
