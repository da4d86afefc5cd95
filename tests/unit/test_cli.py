"""The command line where no daemon runs: words, suggestions, exit statuses, start-up."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmd import __version__
from swarmd.cli import show
from swarmd.cli.client import Daemon, NotRunning, Refused
from swarmd.cli.jobs import exit_status
from swarmd.cli.main import COMMANDS, cli
from swarmd.cli.swarm import _lacks
from swarmd.config_sources import LEAVES
from tests.cli import ROOT, command, environment, swarmd
from tests.parts import need

ASKING = [
    ("status",), ("nodes",), ("jobs",), ("submit", "--", "true"), ("logs", "j"), ("cancel", "j"),
    ("explain", "j"), ("admin-key",), ("down",), ("config", "--running"),
]  # fmt: skip

REFUSAL = json.dumps({"error": {"code": "conflict", "message": "job is done"}}).encode()


@pytest.mark.parametrize("args", ASKING, ids=lambda args: args[0])
def test_without_a_daemon_every_command_says_what_to_do(
    tmp_path: Path, args: tuple[str, ...]
) -> None:
    said = swarmd(args[0], "--data-dir", tmp_path / "none", *args[1:])
    assert said.status == 1
    assert said.out == ""
    assert f"no daemon is running for the data directory {tmp_path / 'none'}" in said.err
    assert "`swarmd up`" in said.err
    by_env = swarmd(*args, env={"SWARMD_DATA_DIR": str(tmp_path / "none")})
    assert by_env.err == said.err


def test_submit_that_waits_keeps_our_failures_apart_from_the_jobs(tmp_path: Path) -> None:
    said = swarmd("submit", "--wait", "--data-dir", tmp_path, "--", "true")
    assert said.status == 125


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("statsu",), "did you mean 'status'?"),
        (("xyzzy",), "`swarmd --help` lists all"),
        (("status", "--jsn"), "--json"),
        (("submit",), "Missing argument"),
        (("submit", "--timeout", "soon", "--", "true"), "500ms, 30s, 5m or 48h"),
        (("submit", "--memory", "lots", "--", "true"), "64MiB, 400MB or 65536"),
        (("submit", "--priority", "high", "--", "true"), "foreground, background, best_effort"),
        (("submit", "--env", "=x", "--", "true"), "write NAME=VALUE"),
        (("completion", "tcsh"), "'bash', 'zsh', 'fish'"),
    ],
)
def test_mistyped_words_are_refused_with_a_suggestion(args: tuple[str, ...], words: str) -> None:
    said = swarmd(*args)
    assert (said.status, said.out) == (2, "")
    assert words in said.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("up", "--join", "10.0.0.1:x"), "--join"),
        (("up", "--token", "t"), "does not begin with swm1-"),
        (("up", "--token", "swm1-t"), "is too short"),
        (("up", "--join", "300.1.1.1"), "--join: '300.1.1.1' is no HOST"),
        (("up", "--bind", "localhost"), "is no IP address to listen at"),
        (("up", "--advertise", "a:b"), "is no HOST[:PORT]"),
        (("up", "--name", "a b"), "is no node name"),
        (("up", "--config", "/nonexistent.toml"), "cannot be read"),
    ],
)
def test_up_refuses_what_it_cannot_do(tmp_path: Path, args: tuple[str, ...], words: str) -> None:
    said = swarmd(*args, "--data-dir", tmp_path / "data")
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith("error: ") and words in said.err
    assert not (tmp_path / "data").exists()


def test_socket_of_somebody_else_is_named(tmp_path: Path) -> None:
    need("root")
    # Imported as root and only then given up: the interpreter may be closed to other users.
    code = (
        "import os, sys, pwd, swarmd.cli.swarm\n"
        "from swarmd.__main__ import main\n"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        f"sys.argv = ['swarmd', 'status', '--data-dir', {str(tmp_path)!r}]\n"
        "sys.exit(main())"
    )
    done = subprocess.run(
        [*command()[:1], "-c", code], env=environment(), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "which belongs to root; run this as that user" in done.stderr


def test_version_and_help() -> None:
    assert swarmd("version").out == swarmd("--version").out == f"{__version__}\n"
    assert swarmd("version", "--json").json == {"version": __version__}
    said = swarmd("--help")
    assert said.status == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", said.out, re.MULTILINE), name
        assert swarmd(name, "--help").status == 0, name


def test_config_shows_every_setting_with_its_origin(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text("[jobs]\nslots = 3\n")
    env = {"ADMIN_KEY": "open-sesame", "SWARMD_CONFIG": str(file), "HOME": str(tmp_path)}
    said = swarmd("config", "--json", env=env)
    rows = {row["setting"]: (row["value"], row["source"]) for row in said.json["settings"]}
    assert rows.keys() == LEAVES.keys()
    assert rows["jobs.slots"] == (3, f"file {file}")
    assert rows["security.admin_key"] == ("***", "environment ADMIN_KEY")
    people = swarmd("config", env=env).out
    assert "open-sesame" not in people
    assert all(path in people for path in LEAVES)
    wrong = swarmd("config", env={"SWARMD_JOBS_SLOT": "1"})
    assert (wrong.status, wrong.out) == (1, "")
    assert "did you mean SWARMD_JOBS_SLOTS?" in wrong.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_the_shell_takes(shell: str) -> None:
    script = swarmd("completion", shell).out
    assert "_SWARMD_COMPLETE" in script
    need(shell)
    check = [shell, "--no-execute"] if shell == "fish" else [shell, "-n"]
    done = subprocess.run(check, input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_completion_knows_the_commands() -> None:
    env = {"_SWARMD_COMPLETE": "bash_complete", "COMP_WORDS": "swarmd st", "COMP_CWORD": "1"}
    assert swarmd(env=env).out.split() == ["plain,status"]


def test_quick_commands_import_little() -> None:
    """What they would pay for at each start, on every call of a script."""
    code = (
        "import sys; sys.argv = ['swarmd', 'status', '--data-dir', '/nonexistent']\n"
        "from swarmd.__main__ import main; main(); print(*sys.modules)"
    )
    done = subprocess.run(
        [*command()[:1], "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    heavy = {"trio", "pydantic", "rich", "msgspec", "quart", "hypercorn", "tomllib", "asyncio",
             "dataclasses", "logging", "swarmd.config", "swarmd.daemon"}  # fmt: skip
    assert not heavy & set(done.stdout.split())


def test_runner_is_dispatched_before_anything_is_imported() -> None:
    code = (
        "import sys; sys.argv = ['swarmd', 'runner', '--no-such-option']\n"
        "from swarmd.__main__ import main\n"
        "try: main()\n"
        "except BaseException: pass\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [*command()[:1], "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert not {"click", "trio", "swarmd.cli"} & set(done.stdout.split())


def test_no_colour_and_no_control_characters_reach_a_reader() -> None:
    assert show.printable("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"
    assert (show.printable(None), show.printable(True), show.printable(0)) == ("-", "yes", "0")


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [(0, "0 ms"), (850, "850 ms"), (12_340, "12.3 s"), (185_000, "3 min 5 s"),
     (7_440_000, "2 h 4 min"), (266_400_000, "3 d 2 h"), (None, "-")],
)  # fmt: skip
def test_spans_are_told_in_two_units(milliseconds: int | None, words: str) -> None:
    assert show.span(milliseconds) == words


@pytest.mark.parametrize(
    ("job", "status"),
    [
        ({"status": "completed", "exit_code": 0}, 0),
        ({"status": "failed", "exit_code": 3}, 3),
        ({"status": "failed", "exit_code": None, "error": "killed by signal 9"}, 137),
        ({"status": "failed", "exit_code": 300}, 255),
        ({"status": "failed", "exit_code": None}, 125),
        ({"status": "cancelled", "exit_code": 0}, 125),
    ],
)
def test_exit_status_is_the_jobs_own(job: dict[str, object], status: int) -> None:
    assert exit_status(job) == status


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ({"leader": None, "nodes": []}, "no leader is known"),
        ({"leader": "a", "nodes": [{"name": "b", "status": "dead"}]}, "not alive: b"),
        ({"leader": "a", "nodes": [{"name": "a", "status": "alive", "role": "voter"}]}, ""),
        (
            {"leader": "a", "voters_wanted": 3,
             "nodes": [{"name": "a", "status": "alive", "role": "voter"},
                       {"name": "b", "status": "left", "role": "voter"}]},
            "1 of 3 wanted voters",
        ),
    ],
)  # fmt: skip
def test_waiting_ends_with_a_leader_live_nodes_and_enough_voters(
    seen: dict[str, object], words: str
) -> None:
    assert _lacks(seen) == words


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[tuple[Daemon, list[bytes]]]:
    """Something that listens at the socket and answers each connection with the given bytes."""
    answers: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "swarmd.sock"))
        listener.listen()

        def serve() -> None:
            while answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answers.pop(0))

        threads: list[threading.Thread] = []

        class Started(list[bytes]):
            def append(self, answer: bytes) -> None:
                answers.append(answer)
                threads.append(threading.Thread(target=serve, daemon=True))
                threads[-1].start()

        yield Daemon(tmp_path), Started()
        for thread in threads:
            thread.join(10)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "broke off"),
        (b"garbage\r\n\r\n", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{", "is no JSON"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\n[]", "answered 500 Oh"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", "broke off"),
        (
            b"HTTP/1.1 409 C\r\nContent-Length: %d\r\n\r\n%b" % (len(REFUSAL), REFUSAL),
            "job is done",
        ),
    ],
)
def test_answers_that_are_none_are_told_plainly(
    impostor: tuple[Daemon, list[bytes]], answer: bytes, words: str
) -> None:
    daemon, answers = impostor
    answers.append(answer)
    with pytest.raises(Refused) as refusal:
        daemon.get("/api/v1/status", timeout_s=5)
    assert words in refusal.value.message
    assert refusal.value.code == ("conflict" if REFUSAL in answer else "")


def test_socket_path_may_be_longer_than_its_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with pytest.raises(NotRunning):
        Daemon(deep).get("/api/v1/status")
    fd = os.open(deep, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{fd}/swarmd.sock")
        listener.listen()
        assert Daemon(deep).pid() == os.getpid()
    os.close(fd)


def test_table_of_commands_is_whole() -> None:
    import click

    context = click.Context(cli)
    for name in COMMANDS:
        found = cli.get_command(context, name)
        assert found is not None and found.name == name
        assert found.help, name


@pytest.mark.parametrize("page", ["configuration.md", "cli.md"])
def test_docs_name_everything(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    names = (
        [f"`{leaf}`" for leaf in LEAVES]
        if page == "configuration.md"
        else [f"swarmd {name}" for name in COMMANDS]
    )
    assert [name for name in names if name not in text] == []


def test_docs_give_the_defaults_in_force() -> None:
    """Each row: `section.key` | default | words."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", text, re.MULTILINE))
    for path, leaf in LEAVES.items():
        if path not in ("node.name", "node.data_dir"):
            assert rows[path] == documented(leaf.default), path


def documented(default: object) -> str:
    if default in (None, ()) or default == {}:
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return f"`{list(default)}`".replace("'", '"')
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
