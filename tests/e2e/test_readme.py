"""Each command of the README's console blocks runs as it stands there, and says what stands there.

Compared is what does not depend on the day and the machine: ids, numbers, durations, times and
hashes count as equal. An id that a command printed stands for the same id in commands after it.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli import ROOT, command, environment
from tests.daemon import SURFACES, Daemon, running_daemon

PAGE = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```console\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TIMEOUT_S = 60
RESTS = {"sleep": "running", "true": "pending"}
"""Jobs of the page that do not end by themselves: one sleeps, one waits for a disk."""


def test_the_page_has_the_blocks_that_are_run_here() -> None:
    first, up, cli, api = (steps(block) for block in BLOCKS)
    assert [said for said, _ in first] == ["make run"]
    assert [said for said, _ in up] == [". .venv/bin/activate", "swarmd up"]
    assert len(cli) >= 7 and all(said.startswith("swarmd ") for said, _ in cli)
    assert len(api) >= 4


@pytest.mark.xdist_group("demo")
def test_the_first_block(tmp_path: Path) -> None:
    """`make run` is `swarmd demo`, once its virtual environment is there."""
    recipe = (ROOT / "Makefile").read_text().split("\nrun:")[1].split("\n\n")[0]
    assert recipe.splitlines()[-1] == "\t$(BIN)/swarmd demo"
    ((_, wanted),) = steps(BLOCKS[0])
    with subprocess.Popen(
        command("demo"), env=environment({"TMPDIR": str(tmp_path)}), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as demo:  # fmt: skip
        assert demo.stdout is not None
        # The README leaves out what it prints for those who want to go on.
        said = "".join(demo.stdout.readline() for _ in wanted.splitlines())
        demo.send_signal(signal.SIGINT)
        assert demo.wait(TIMEOUT_S) == 0
    assert plain(said) == plain(wanted)


@pytest.mark.needs("bash", "curl")
def test_every_command_says_what_the_page_says(tmp_path: Path) -> None:
    node = {"name": "vm"}
    with running_daemon(tmp_path, node=node, jobs={"slots": 2}) as daemon, _shell(daemon) as run:
        (_, (_, ready)) = steps(BLOCKS[1])
        (line,) = [i for i in daemon.stderr().splitlines() if i.startswith("ready:")]
        assert plain(line.rpartition("unix:")[0]) == plain(ready.rpartition("unix:")[0])
        ids: dict[str, str] = {}
        for block in BLOCKS[2:]:
            for said, wanted in steps(block):
                for ours, theirs in ids.items():
                    said = said.replace(ours, theirs)
                answer = run(said)
                assert plain(answer) == plain(wanted), said
                ids.update(zip(ID.findall(wanted), ID.findall(answer), strict=True))
                _settle(daemon)


def steps(block: str) -> list[tuple[str, str]]:
    """Commands with what each prints. One goes on over lines until its quotes are closed."""
    found: list[tuple[str, str]] = []
    open_command = ""
    for line in block.splitlines():
        if open_command or line.startswith("$ "):
            open_command += ("\n" if open_command else "") + line.removeprefix("$ ")
            with contextlib.suppress(ValueError):
                shlex.split(open_command)
                found.append((open_command, ""))
                open_command = ""
        else:
            said, prints = found.pop()
            found.append((said, f"{prints}{line}\n"))
    assert not open_command, open_command
    return found


def plain(text: str) -> list[list[str]]:
    """Its lines as words, without what differs from day to day and from machine to machine."""
    for pattern, word in (
        (ID.pattern, "ID"),
        (r"(?<=\"sha256\":\")([0-9a-f]{64}|…)", "SHA"),
        (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
        (r"[A-Z][a-z]{2} [A-Z][a-z]{2} +\d+ [\d:]+ UTC \d{4}", "DATE"),
        (r"\d+(\.\d+)? (ms|s|min)\b", "DURATION"),
        (r"hello from \S+,", "hello from HOST,"),
        (r"Linux \S+", "Linux VERSION"),
        (r"\d[\d.]*", "N"),
    ):
        text = re.sub(pattern, word, text)
    return [line.split() for line in text.splitlines() if line.strip()]


@contextlib.contextmanager
def _shell(daemon: Daemon) -> Iterator[Callable[[str], str]]:
    """One shell for all commands, as a reader has it: variables stay."""
    end = "end-of-what-it-said"
    with subprocess.Popen(
        ["bash", "-u"], env=environment({"SWARMD_DATA_DIR": str(daemon.data_dir), "LC_ALL": "C"}),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as shell:  # fmt: skip
        assert shell.stdin is not None and shell.stdout is not None
        stdin, stdout = shell.stdin, shell.stdout
        stdin.write(f'swarmd() {{ {shlex.join(command())} "$@" < /dev/null; }}\n')

        def run(said: str) -> str:
            for name, port in SURFACES.items():
                said = said.replace(f"http://127.0.0.1:{port}", daemon.url(name))
            stdin.write(f"{said}\nprintf '\\n%s\\n' {end}\n")
            stdin.flush()
            lines = []
            for line in stdout:
                if line == f"{end}\n":
                    break
                lines.append(line)
            return "".join(lines)

        too_late = threading.Timer(2 * TIMEOUT_S, shell.kill)
        too_late.start()
        try:
            yield run
        finally:
            too_late.cancel()
            shell.kill()


def _settle(daemon: Daemon) -> None:
    """A reader types slowly: what can run has begun, and what is quick has ended."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        jobs = daemon.request("GET", "/api/v1/jobs?limit=100", surface="console").json["jobs"]
        if all(job["ended_at"] or job["status"] == RESTS.get(job["type"]) for job in jobs):
            return
        time.sleep(0.05)
    raise AssertionError("jobs neither run nor end")
