"""The runner and the daemon's client of it: real processes, nothing pretended."""

# ruff: noqa: ASYNC240 - what is watched here are processes and files

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from swarmd.domain.errors import TooLarge, Unavailable
from swarmd.drivers.frames import VERSION, AttemptOrder, Ended
from tests.drivers.runners import (
    NOBODY,
    PATH,
    alive,
    client,
    data_directory,
    end_runner,
    ends,
    order,
    output,
    run,
    runner_pid,
    shell,
    started,
    until,
)  # fmt: skip

ACCOUNTS = pytest.mark.parametrize(
    "account",
    [
        pytest.param({}, id="own"),
        pytest.param(NOBODY, id="other", marks=pytest.mark.needs("root")),
    ],
)
STUBBORN = "trap '' TERM; echo $$ > {file}; while :; do sleep 0.05; done"


@pytest.fixture
def folder() -> Iterator[Path]:
    with data_directory() as found:
        yield found


async def test_exit_codes_signals_and_output_come_back(folder: Path) -> None:
    async with client(folder) as runner:
        plain = shell(folder, "echo out; echo err >&2; exit 3")
        end = await run(runner, plain)
        assert (end.reason, end.exit_code, end.signal) == ("exit", 3, None)
        assert (output(plain), output(plain, "stderr")) == ("out\n", "err\n")
        assert (end.stdout_size, end.stderr_size) == (4, 4)
        assert end.started_boottime_ns and end.ended_boottime_ns
        assert end.started_boottime_ns <= end.ended_boottime_ns
        end = await run(runner, shell(folder, "kill -KILL $$"))
        assert (end.reason, end.exit_code, end.signal) == ("exit", None, 9)
        assert (await run(runner, shell(folder, "exit 127"))).reason == "exit"


async def test_a_job_gets_its_own_place_and_nothing_of_ours(folder: Path) -> None:
    async with client(folder) as runner:
        script = "import os,sys;print(sorted(os.environ.items()));print(os.getcwd());" \
            "print(os.listdir('/proc/self/fd'));print(os.getsid(0)==os.getpid());" \
            "print(oct(os.umask(0)))"  # fmt: skip
        env = {"PATH": PATH, "A": "b\nc=ü"}
        job = order(folder, sys.executable, "-I", "-S", "-c", script, env=env)
        assert (await run(runner, job)).exit_code == 0, output(job, "stderr")
        environ, cwd, fds, leads, umask = output(job).splitlines()
        found = dict(eval(environ))
        assert found.pop("SWARMD_ATTEMPT").endswith(f"-{job.id}")
        found.pop("LC_CTYPE", None)  # the interpreter's own doing
        assert found == env
        assert cwd == f"{job.dir}/work"
        assert sorted(eval(fds)) == ["0", "1", "2", "3"]  # 3 is the listing itself
        assert (leads, umask) == ("True", "0o22")
        signals = shell(folder, "grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status; ulimit -c")
        await run(runner, signals)
        blocked, ignored, caught, core = output(signals).splitlines()
        for line in (blocked, ignored):  # but for 32 and 33, which are the C library's own
            assert int(line.split()[1], 16) & ~(0b11 << 31) == 0, (line, caught)
        assert core == "0"


@ACCOUNTS
async def test_what_cannot_be_run_is_told_apart_from_127(
    folder: Path, account: dict[str, int]
) -> None:
    text = Path(folder, "text")
    text.write_text("#!/no/such/interpreter\n")
    text.chmod(0o755)
    closed = Path(folder, "closed")
    closed.write_text("")
    async with client(folder) as runner:
        for program, why in (
            ("/no/such", "No such file"), ("nowhere", "No such file"),
            (str(text), "No such file"), (str(closed), "Permission denied"),
            ("/bin", "Permission denied"),
        ):  # fmt: skip
            end = await run(runner, order(folder, program, **account))
            assert end.reason == "start_failed" and end.exit_code is None
            assert end.error is not None and end.error.startswith("failed to start: ")
            assert why in end.error
        assert (await run(runner, shell(folder, "exit 127", **account))).exit_code == 127


@pytest.mark.needs("root")
async def test_another_account_has_nothing_of_root(folder: Path) -> None:
    async with client(folder) as runner:
        script = "id -u; id -g; id -G; grep -E 'NoNewPrivs|CapPrm|CapEff' /proc/self/status;" \
            " touch ../x 2>/dev/null || echo closed; touch y && echo mine;" \
            " echo again >> /dev/stdout"  # fmt: skip
        job = shell(folder, script, **NOBODY)
        end = await run(runner, job)
        lines = output(job).splitlines()
        assert end.exit_code == 0, output(job, "stderr")
        assert lines[:3] == ["65534"] * 3
        assert {tuple(line.split()) for line in lines[3:6]} == {
            ("CapPrm:", "0" * 16), ("CapEff:", "0" * 16), ("NoNewPrivs:", "1"),
        }  # fmt: skip
        assert lines[6:] == ["closed", "mine", "again"]


@ACCOUNTS
async def test_a_script_may_open_its_outputs_anew(folder: Path, account: dict[str, int]) -> None:
    async with client(folder) as runner:
        script = "echo a; echo b > /dev/stderr; echo c >&2; echo d > /dev/stdout; echo e"
        job = shell(folder, script, **account)
        assert (await run(runner, job)).exit_code == 0
        assert (output(job), output(job, "stderr")) == ("a\nd\ne\n", "b\nc\n")
        for name in ("stdout", "stderr"):
            facts = Path(job.dir, name).stat()
            assert (facts.st_uid, facts.st_mode & 0o777) == (os.geteuid(), 0o600)


async def test_a_job_that_prints_nothing_has_no_files(folder: Path) -> None:
    async with client(folder) as runner:
        job = shell(folder, "exec >&- 2>&-; sleep 0.1")
        end = await run(runner, job)
        assert (end.exit_code, end.stdout_size, end.stderr_size) == (0, 0, 0)
        assert os.listdir(job.dir) == ["work"]


async def test_what_is_printed_can_be_read_while_the_job_runs(folder: Path) -> None:
    async with client(folder) as runner:
        job = shell(folder, "echo first; sleep 60")
        await runner.start([job])
        await until(lambda: Path(job.dir, "stdout").exists() and output(job) == "first\n")
        await runner.stop([job.id], 0)
        assert (await ends(runner))[job.id].stdout_size == 6


async def test_one_who_holds_the_pipe_delays_no_end(folder: Path) -> None:
    async with client(folder) as runner:
        gate = folder / "gate"
        job = shell(folder, f"echo x; until [ -e {gate} ]; do sleep 0.05; done; echo y")
        await runner.start([job])
        pid = (await started(runner)).pid
        held = os.open(f"/proc/{pid}/fd/1", os.O_WRONLY)
        try:
            gate.touch()
            with trio.fail_after(30):
                end = (await ends(runner))[job.id]
            assert (end.stdout_size, output(job)) == (4, "x\ny\n")
            with pytest.raises(BrokenPipeError):
                os.write(held, b"late")
        finally:
            os.close(held)


async def test_loud_jobs_are_bounded_and_starve_no_other(folder: Path) -> None:
    size_max = 128 * 1024
    async with client(folder) as runner:
        loud = [shell(folder, "exec yes", log_bytes_max=size_max) for _ in range(3)]
        await runner.start(loud)
        paths = [Path(job.dir, "stdout") for job in loud]
        await until(lambda: all(p.exists() and p.stat().st_size > 10 * size_max for p in paths))
        for _ in range(20):
            assert all(path.stat().st_blocks * 512 <= size_max for path in paths)
            with trio.fail_after(30):
                assert (await run(runner, shell(folder, "echo quick"))).stdout_size == 6
        await runner.stop([job.id for job in loud], 0)
        found = await ends(runner, 3)
        for job, path in zip(loud, paths, strict=True):
            end = found[job.id]
            assert end.stdout_cut and end.stdout_size == path.stat().st_size
            assert path.stat().st_blocks * 512 <= size_max


@pytest.mark.needs("cgroup-memory")
async def test_memory_is_limited_and_its_end_is_called_oom(folder: Path) -> None:
    async with client(folder) as runner:
        script = "x = bytearray(300 << 20)"
        job = order(folder, sys.executable, "-I", "-S", "-c", script, memory_bytes=64 << 20)
        end = await run(runner, job)
        assert (end.reason, end.signal, end.notes) == ("oom", 9, ())
        job = order(folder, sys.executable, "-I", "-S", "-c", script, memory_bytes=512 << 20)
        assert (await run(runner, job)).exit_code == 0


@pytest.mark.needs("cgroup-pids")
async def test_processes_are_limited(folder: Path) -> None:
    async with client(folder) as runner:
        script = "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; wait"
        job = shell(folder, script, pids=4, grace_ms=100, timeout_ms=3000)
        await run(runner, job)
        assert "ork" in output(job, "stderr")  # Cannot fork, or fork: retry


@pytest.mark.needs("cgroup-cpu")
async def test_cpus_are_limited(folder: Path) -> None:
    async with client(folder) as runner:
        script = "import time\nend=time.monotonic()+1\nwhile time.monotonic()<end: pass"
        job = order(folder, sys.executable, "-I", "-S", "-c", script, cpus=0.2)
        end = await run(runner, job)
        assert end.user_cpu_ms + end.sys_cpu_ms < 500
        assert end.notes == ()


async def test_a_limit_that_cannot_be_kept_is_told(folder: Path) -> None:
    async with client(folder) as runner:
        job = shell(folder, "true", memory_bytes=1 << 30, cpus=1, pids=50)
        end = await run(runner, job)
        kept = {what for what, is_kept in runner.facts.enforces.items() if is_kept}
        told = {note.split()[0] for note in end.notes if "not enforced" in note}
        assert kept | told == {"memory", "cpus", "pids"} and not kept & told


@pytest.mark.parametrize("how", ["timeout", "stopped", "lease"])
async def test_the_whole_tree_ends_however_deep_and_stubborn(folder: Path, how: str) -> None:
    """A grandchild in a session of its own, its parent gone, that ignores SIGTERM."""
    pid_file = folder / f"pid-{how}"
    inner = STUBBORN.format(file=pid_file)
    job = order(
        folder, "/bin/sh", "-c", f"(setsid /bin/sh -c \"{inner.replace('$', chr(92) + '$')}\" &)"
        "; while :; do sleep 0.05; done",
        grace_ms=200, timeout_ms=5000 if how == "timeout" else None,
        lease_ms=60_000 if how == "lease" else None,
    )  # fmt: skip
    async with client(folder) as runner:
        await runner.start([job])
        await until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
        pid = int(pid_file.read_text())
        assert alive(pid)
        if how == "stopped":
            assert await runner.stop([job.id], 0.2) == []
        elif how == "lease":
            assert await runner.renew([job.id], 0.3) == []
        end = (await ends(runner))[job.id]
        assert end.reason == how
        assert not alive(pid)


async def test_a_renewed_lease_does_not_run_out(folder: Path) -> None:
    async with client(folder) as runner:
        job = shell(folder, "sleep 6", lease_ms=5000)
        await runner.start([job])
        for _ in range(5):
            await trio.sleep(0.2)
            assert await runner.renew([job.id], 20.0) == []
        assert (await ends(runner))[job.id].reason == "exit"
        assert await runner.renew([job.id], 1.0) == [job.id]


async def test_what_a_job_leaves_behind_ends_with_it(folder: Path) -> None:
    pid_file = folder / "left"
    async with client(folder) as runner:
        inner = STUBBORN.format(file=pid_file).replace("$", "\\$")
        wait = f"while ! [ -s {pid_file} ]; do sleep 0.01; done"
        job = shell(folder, f'setsid /bin/sh -c "{inner}" & {wait}; exit 5')
        end = await run(runner, job)
        assert (end.reason, end.exit_code) == ("exit", 5)
        assert not alive(int(pid_file.read_text()))


async def test_ends_wait_for_a_daemon_until_they_are_acknowledged(folder: Path) -> None:
    job, other = shell(folder, "exit 4"), shell(folder, "sleep 0.3; exit 6")
    async with client(folder) as runner:
        await runner.start([job, other])
        pid = runner.facts.pid
    async with client(folder) as runner:
        assert runner.facts.pid == pid
        found = await ends(runner, 2, ack=False)
        assert (found[job.id].exit_code, found[other.id].exit_code) == (4, 6)
    async with client(folder) as runner:
        found = await ends(runner, 2)
        assert found[other.id].exit_code == 6
    async with client(folder) as runner:
        assert await runner.list() == []
        refused = await runner.start([job])
        assert "acknowledged" in refused[0].error


async def test_an_attempt_is_started_once(folder: Path) -> None:
    counter = folder / "count"
    job = shell(folder, f"echo x >> {counter}; sleep 0.2")
    async with client(folder) as runner:
        await runner.start([job, job])
        await runner.start([job])
        await ends(runner, ack=False)
        await runner.start([job])
        assert [s.status for s in await runner.list()] == ["ended"]
        await ends(runner)
    assert counter.read_text() == "x\n"


async def test_a_killed_runner_loses_its_attempts_but_not_their_ends(folder: Path) -> None:
    pid_file = folder / "pid"
    inner = STUBBORN.format(file=pid_file).replace("$", "\\$")
    done = shell(folder, "exit 9")
    job = shell(folder, f'(setsid /bin/sh -c "{inner}" &); sleep 100')
    async with client(folder) as runner:
        await runner.start([done, job])
        assert (await ends(runner, ack=False))[done.id].exit_code == 9
        await until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
        os.kill(runner.facts.pid, signal.SIGKILL)
        found = await ends(runner, 2, ack=False)
        assert found[done.id].exit_code == 9
        assert found[job.id].reason == "lost"
        assert not alive(int(pid_file.read_text()))
        assert [s.status for s in await runner.list()] == ["ended", "ended"]
        assert await runner.start([job]) == []
        again = await ends(runner)
        assert again[job.id].reason == "lost"


async def test_a_runner_outlives_its_daemon(folder: Path) -> None:
    script = (
        "import trio, sys, os\nfrom pathlib import Path\n"
        "from swarmd.drivers.process import *\n"
        "async def main():\n"
        "  d = Path(sys.argv[1])\n"
        "  async with open_runner(d, RunnerSettings(idle_s=5)) as r:\n"
        "    job = AttemptOrder(10**9, str(d/'big'), ('/bin/sh','-c','sleep 1;exit 8'))\n"
        "    await r.start([job])\n"
        "    os.kill(os.getpid(), 9)\n"
        "trio.run(main)\n"
    )
    daemon = await trio.run_process(
        [sys.executable, "-c", script, str(folder)], check=False, start_new_session=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert daemon.returncode == -9
    assert os.getsid(runner_pid(folder)) == runner_pid(folder)
    async with client(folder) as runner:
        assert (await ends(runner))[10**9].exit_code == 8


def of_another_version(folder: Path) -> Path:
    """The runner's program as of a version that never was, ours but for its number."""
    shutil.copytree(
        Path(sys.modules["swarmd.runner"].__file__ or "").parent, folder / "swarmd/runner"
    )
    wire = folder / "swarmd/runner/wire.py"
    text = wire.read_text()
    assert text.count("\nVERSION = ") == 1
    wire.write_text(text.replace("\nVERSION = ", "\nVERSION = 1_000 + "))
    return folder / "swarmd/runner/__main__.py"


async def start_runner(entry: Path, folder: Path) -> int:
    command = [sys.executable, "-I", "-S", str(entry), "runner", "--data-dir", str(folder)]
    assert (await trio.run_process([*command, "--idle-s", "5"], check=False)).returncode == 0
    return runner_pid(folder)


async def test_a_runner_of_another_version_keeps_its_attempts_and_then_goes(
    folder: Path, tmp_path: Path
) -> None:
    other = await start_runner(of_another_version(tmp_path), folder)
    script = f"until [ -e {folder}/go ]; do sleep 0.02; done; echo done"
    async with client(folder, replace_look_s=0.2) as runner:
        jobs = [shell(folder, script)]
        assert await runner.start(jobs) == []
        assert runner.facts.pid == other and runner.facts.version > VERSION
        await started(runner)
        await trio.sleep(0.6)
        assert runner.facts.pid == other, "it holds an attempt"
        (folder / "go").touch()
        assert (await ends(runner, ack=False))[jobs[0].id].exit_code == 0
        await trio.sleep(0.6)
        assert runner.facts.pid == other, "an end that nobody has acknowledged is held too"
        await runner.ack([jobs[0].id])
        with trio.fail_after(10):
            while runner.facts.version != VERSION:
                await runner.replaced(runner.facts.pid)
        assert (await run(runner, shell(folder, "exit 4"))).exit_code == 4
        assert not alive(other)


async def test_nothing_is_lost_while_a_runner_of_another_version_goes(
    folder: Path, tmp_path: Path
) -> None:
    await start_runner(of_another_version(tmp_path), folder)
    async with client(folder, replace_look_s=0.02) as runner:
        with trio.fail_after(30):
            after = 0
            while after < 3:
                code = 1 + after
                assert (await run(runner, shell(folder, f"exit {code}"))).exit_code == code
                await trio.sleep(random.uniform(0, 0.03))  # a look may come here, or in the start
                with contextlib.suppress(Unavailable):  # between the two there is none
                    after += runner.facts.version == VERSION


async def test_a_runner_that_comes_back_as_another_version_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What starts it, a unit perhaps, has not been upgraded: it is not ended for ever."""
    entry = of_another_version(tmp_path)
    monkeypatch.setattr(
        "swarmd.drivers.process._command",
        lambda: [sys.executable, "-I", "-S", str(entry), "runner"],
    )
    async with client(folder, replace_look_s=0.02) as runner:
        with trio.fail_after(10):
            again = await runner.replaced(runner.facts.pid)
        await trio.sleep(0.3)
        assert runner.facts.pid == again
        assert (await run(runner, shell(folder, "exit 4"))).exit_code == 4
        assert "look at its unit" in caplog.text


async def test_two_runners_at_once_are_one(folder: Path) -> None:
    entry = Path(sys.modules["swarmd.runner"].__file__ or "").with_name("__main__.py")
    command = [sys.executable, "-I", "-S", str(entry), "runner", "--data-dir", str(folder)]

    async def launch() -> None:
        result = await trio.run_process([*command, "--idle-s", "3"], check=False)
        assert result.returncode == 0

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(launch)
    log = Path(folder, "runner.log").read_text()
    assert log.count("serves") == 1


async def test_an_idle_runner_goes(folder: Path) -> None:
    async with client(folder, idle_s=0.2) as runner:
        pid = runner.facts.pid
        await run(runner, shell(folder, "true"))
        await trio.sleep(0.5)
        assert alive(pid)
    await until(lambda: not alive(pid))
    assert not Path(folder, "runner.sock").exists()


async def test_quit_with_jobs_ends_them_and_keeps_their_ends(folder: Path) -> None:
    job = shell(folder, "sleep 100")
    async with client(folder) as runner:
        await runner.start([job])
        pid = (await started(runner)).pid
        await runner.quit(jobs=True)
        with trio.fail_after(10):
            await runner.gone()
        assert not alive(pid)
    async with client(folder) as runner:
        assert (await ends(runner))[job.id].reason == "stopped"


async def test_sigterm_ends_all_jobs_first(folder: Path) -> None:
    async with client(folder) as runner:
        await runner.start([shell(folder, "trap '' TERM; while :; do sleep 1; done", grace_ms=100)])
        pid = (await started(runner)).pid
    await trio.to_thread.run_sync(end_runner, folder)
    assert not alive(pid) and not runner_pid(folder)


async def test_a_log_is_cut_in_its_middle(folder: Path) -> None:
    size_max = 256 * 1024
    script = "i=0; while [ $i -lt 60 ]; do head -c 65536 /dev/zero | tr '\\0' a; i=$((i+1));" \
        " sleep 0.01; done; echo END"  # fmt: skip
    async with client(folder) as runner:
        job = shell(folder, f"echo BEGIN; {script}", log_bytes_max=size_max)
        end = await run(runner, job)
        assert end.stdout_cut is not None and end.cuts == {"stdout": end.stdout_cut}
        data = Path(job.dir, "stdout").read_bytes()
        start, stop = end.stdout_cut
        assert len(data) == end.stdout_size == 60 * 65536 + 10
        assert data.startswith(b"BEGIN\n") and data.endswith(b"END\n")
        assert set(data[start:stop]) == {0} and 0 not in data[:start] + data[stop:]
        assert Path(job.dir, "stdout").stat().st_blocks * 512 <= size_max


async def test_a_data_directory_may_have_a_long_path(folder: Path) -> None:
    deep = folder / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    async with client(deep, idle_s=0.5) as runner:
        assert (await run(runner, shell(deep, "true"))).exit_code == 0
        await runner.quit(jobs=True)
        with trio.fail_after(10):
            await runner.gone()


async def test_garbage_on_the_socket_harms_nobody(folder: Path) -> None:
    async with client(folder) as runner:
        await runner.start([job := shell(folder, "sleep 1; exit 2")])
        await started(runner)
        pid = runner.facts.pid
        held = os.open(folder, os.O_PATH)
        address = f"/proc/self/fd/{held}/runner.sock"
        before = len(os.listdir(f"/proc/{pid}/fd"))
        for junk in (
            b"\0\xff\n", b"{}\n", b"[" * 100_000 + b"\n", b'{"kind":7}\n', b"x" * 1_100_000,
            b'{"kind":"start","orders":[]}\n', b'{"kind":"quit","jobs":true}\n', b'"' * 99 + b"\n",
            b"", b'{"kind":"ping"', b'{"kind":"credit","n":-1}\n' * 100, os.urandom(70_000),
        ):  # fmt: skip
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(address)
                with contextlib.suppress(OSError):
                    sock.sendall(junk)
        await until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before)
        os.close(held)
        assert (await ends(runner))[job.id].exit_code == 2
        assert runner.facts.pid == pid and alive(pid)


async def test_a_wrong_order_is_refused_and_harms_no_other(folder: Path) -> None:
    async with client(folder) as runner:
        good = shell(folder, "true")
        wrong = [
            order(folder), order(folder, "a\0b"), order(folder, "x", env={"a=b": "c"}),
            order(folder, "x", memory_bytes=-1), order(folder, "x", uid=3),
            AttemptOrder(-1, "/x", ("y",)), AttemptOrder(5, "relative", ("y",)),
        ]  # fmt: skip
        refused = await runner.start([*wrong, good])
        assert len(refused) == len(wrong) and all(r.error for r in refused)
        assert (await ends(runner))[good.id].exit_code == 0
        with pytest.raises(TooLarge):
            await runner.start([order(folder, "x", env={"a": "y" * 2_000_000})])


async def test_the_next_version_is_answered_not_dropped(folder: Path) -> None:
    async with client(folder):
        pass

    def talk() -> list[dict[str, object]]:
        fd = os.open(folder, os.O_PATH)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(f"/proc/self/fd/{fd}/runner.sock")
            os.close(fd)
            for frame in (
                {"kind": "hello", "version": 99, "credit": 10, "news": True},
                {"kind": "teleport", "seq": 1}, {"kind": "list", "seq": 2, "more": 1},
            ):  # fmt: skip
                sock.sendall(json.dumps(frame).encode() + b"\n")
            data = b""
            while data.count(b"\n") < 3:
                data += sock.recv(65536)
        return [json.loads(line) for line in data.splitlines()]

    hello, error, listed = await trio.to_thread.run_sync(talk)
    assert hello["version"] == 1
    assert error["kind"] == "error" and "teleport" in str(error["error"])
    assert listed["kind"] == "list"


async def test_a_thousand_quick_jobs_are_all_reported_once(folder: Path) -> None:
    async with client(folder, events_max=64) as runner:
        orders = [order(folder, "/bin/true") for _ in range(1000)]
        assert await runner.start(orders) == []
        seen: list[int] = []
        with trio.fail_after(60):
            while len(seen) < 1000:
                batch = [e for e in await runner.take() if isinstance(e, Ended)]
                assert all(e.exit_code == 0 for e in batch)
                seen += [e.id for e in batch]
                await runner.ack([e.id for e in batch])
        assert sorted(seen) == [o.id for o in orders]
        assert await runner.list() == []
        assert Path(folder, "exits.log").stat().st_size < 2 * 1024 * 1024


async def test_few_descriptors_only_make_jobs_wait(folder: Path) -> None:
    entry = Path(sys.modules["swarmd.runner"].__file__ or "").with_name("__main__.py")
    command = f"ulimit -n 200; exec {sys.executable} -I -S {entry} runner --data-dir {folder}"
    await trio.run_process(["/bin/sh", "-c", command])
    async with client(folder) as runner:
        orders = [shell(folder, "ulimit -n; sleep 0.05") for _ in range(100)]
        assert await runner.start(orders) == []
        found = await ends(runner, 100)
        assert {end.exit_code for end in found.values()} == {0}
        assert output(orders[99]) == "200\n"


@ACCOUNTS
async def test_jobs_get_the_bound_on_files_that_the_runner_was_given(
    folder: Path, account: dict[str, int]
) -> None:
    entry = Path(sys.modules["swarmd.runner"].__file__ or "").with_name("__main__.py")
    command = f"ulimit -Sn 200; ulimit -Hn 1000; exec {sys.executable} -I -S {entry} runner"
    await trio.run_process(["/bin/sh", "-c", f"{command} --data-dir {folder}"])
    async with client(folder) as runner:
        limits = Path(f"/proc/{runner.facts.pid}/limits").read_text()
        assert limits.split("open files")[1].split()[:2] == ["1000", "1000"]
        for limited in ({}, {"memory_bytes": 1 << 30}):
            job = shell(folder, "ulimit -Sn; ulimit -Hn", **account, **limited)
            assert (await run(runner, job)).exit_code == 0
            assert output(job) == "200\n1000\n"


async def test_requests_are_answered_while_nobody_takes_events(folder: Path) -> None:
    async with client(folder, events_max=16) as runner:
        orders = [order(folder, "/bin/true") for _ in range(200)]
        await runner.start(orders)
        with trio.fail_after(20):
            while {s.status for s in await runner.list()} != {"ended"}:
                await trio.sleep(0.02)
        assert len(await ends(runner, 200)) == 200


def test_wrong_usage_says_what_is_right() -> None:
    entry = Path(sys.modules["swarmd.runner"].__file__ or "").with_name("__main__.py")
    for words in ([], ["--data-dir"], ["--nope"], ["--data-dir", "/x", "--idle-s", "a"]):
        result = subprocess.run(
            [sys.executable, "-I", "-S", str(entry), *words], capture_output=True, timeout=10,
            check=False,
        )  # fmt: skip
        assert result.returncode == 2 and b"usage:" in result.stderr
