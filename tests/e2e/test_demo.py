"""`swarmd demo` as a stranger runs it: it works whoever holds the ports, and leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swarmd.cli import demo as demo_module
from swarmd.cli.client import Refused
from tests.cli import command, environment, swarmd
from tests.daemon import SURFACES, free_ports, running_daemon

TIMEOUT_S = 60
AT_ONCE = 4

# On one worker: they want the same documented ports, and each of them is three processes.
pytestmark = pytest.mark.xdist_group("demo")


@pytest.fixture
def _signals() -> Iterator[None]:
    """The demo takes Ctrl-C for itself; a test that runs it in this process gives it back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_demo_shows_a_job_and_leaves_nothing_behind(tmp_path: Path) -> None:
    said = swarmd("demo", "--nodes", "1", "--once", "--json", env={"TMPDIR": str(tmp_path)})
    assert said.status == 0, said.err
    assert said.json["job"]["status"] == "completed"
    assert said.json["job"]["stdout"].startswith("hello from ")
    assert [node["name"] for node in said.json["nodes"]] == ["demo-1"]
    assert said.json["urls"].keys() == set(SURFACES)
    assert os.listdir(tmp_path) == []
    assert not _processes_of(tmp_path)


def test_demo_of_three_is_one_swarm(tmp_path: Path) -> None:
    with _demo(tmp_path / "place") as demo:
        try:
            told = _document(demo)
            assert [node["name"] for node in told["nodes"]] == ["demo-1", "demo-2", "demo-3"]
            assert told["job"]["status"] == "completed"
            (first, *others) = [
                json.load(urllib.request.urlopen(node["urls"]["console"] + "/api/v1/status"))
                for node in told["nodes"]
            ]
            assert {node["role"] for node in first["nodes"]} == {"voter"}
            assert [other["leader"] for other in others] == [first["leader"]] * 2
        finally:
            demo.terminate()
            status = demo.wait(TIMEOUT_S)
    assert status == 0
    assert os.listdir(tmp_path / "place") == []


def test_demo_ends_with_everything_on_a_signal(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        command("demo"), env=environment({"TMPDIR": str(tmp_path)}),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert demo.stdout is not None
    while line := demo.stdout.readline():
        if "hello from" in line:
            break
    demo.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    demo.send_signal(signal.SIGINT)  # an impatient second one changes nothing
    _, err = demo.communicate(timeout=90)
    assert demo.returncode == 0, err
    assert os.listdir(tmp_path) == []
    assert not _processes_of(tmp_path)


def test_demos_started_at_the_same_instant_all_succeed(tmp_path: Path) -> None:
    """All find the documented ports free; one of them gets each."""
    places = [tmp_path / str(number) for number in range(AT_ONCE)]
    with contextlib.ExitStack() as held:
        demos = [held.enter_context(_demo(place, "--nodes", "1")) for place in places]
        try:
            # Each says its word and stays, so none frees a port that another then has.
            urls = [url for each in demos for url in _document(each)["urls"].values()]
            assert len(set(urls)) == len(SURFACES) * AT_ONCE
        finally:
            for each in demos:
                each.terminate()
            statuses = [each.wait(TIMEOUT_S) for each in demos]
    assert statuses == [0] * AT_ONCE
    assert [os.listdir(place) for place in places] == [[]] * AT_ONCE


@pytest.mark.usefixtures("_signals")
def test_a_port_taken_after_the_look_moves_its_surface(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ports = free_ports(demo_module.DOCUMENTED_PORTS)
    monkeypatch.setattr(demo_module, "DOCUMENTED_PORTS", ports)
    start = demo_module._start
    starts: list[dict[str, int]] = []
    with contextlib.ExitStack() as held:

        def taken_first(place: Path, text: str) -> subprocess.Popen[str]:
            if not starts:
                thief = held.enter_context(socket.socket())
                thief.bind(("127.0.0.1", ports["console"]))
                thief.listen()
            surfaces = tomllib.loads(text)["surfaces"]
            starts.append({name: surface["port"] for name, surface in surfaces.items()})
            return start(place, text)

        monkeypatch.setattr(demo_module, "_start", taken_first)
        with demo_module._swarm(tmp_path / "place", 1) as (member,):
            assert member.daemon.get("/api/v1/health")
            urls = member.urls
    assert starts == [ports, {**ports, "console": 0}]
    assert urls["jobqueue"].endswith(f":{ports['jobqueue']}")
    assert not urls["console"].endswith(f":{ports['console']}")
    assert (
        f"port {ports['console']} of 127.0.0.1 is taken: console moves to a free one"
        in capsys.readouterr().err
    )
    assert not _processes_of(tmp_path)


@pytest.mark.usefixtures("_signals")
def test_the_node_of_somebody_else_in_the_directory_is_left_alone(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        with pytest.raises(Refused, match="another swarmd runs on"):
            with demo_module._swarm(daemon.data_dir, 1):
                pass
        assert daemon.process.poll() is None
        assert daemon.request("GET", "/api/v1/health").status == 200


@contextlib.contextmanager
def _demo(place: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    place.mkdir()
    with (
        place.with_suffix(".err").open("w") as talk,
        subprocess.Popen(
            command("demo", "--json", *options), env=environment({"TMPDIR": str(place)}),
            stdout=subprocess.PIPE, stderr=talk, text=True,
        ) as demo,
    ):  # fmt: skip
        try:
            yield demo
        except BaseException as failure:
            failure.add_note(f"{place.name} said:\n{place.with_suffix('.err').read_text()[-2000:]}")
            raise


def _document(demo: subprocess.Popen[str]) -> Any:
    """The JSON that it prints once its sample job has ended."""
    assert demo.stdout is not None
    text = ""
    for line in demo.stdout:
        text += line
        with contextlib.suppress(ValueError):
            return json.loads(text)
    raise AssertionError(f"it ended before it printed anything whole: {text!r}")


def _processes_of(place: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if entry.name.isdigit() and os.fsencode(place) in words:
            found.append(words.replace(b"\0", b" ").decode())
    return found
