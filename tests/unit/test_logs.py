"""Log lines: one event, one line, bounded, nothing secret; and words to a service manager."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmd import logs
from swarmd.notify import READY, STOPPING, take_notifier


@pytest.fixture(autouse=True)
def _root_logger_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.raiseExceptions
    yield
    root.handlers[:], root.level, logging.raiseExceptions = before
    logging.captureWarnings(False)
    for name in logs.QUIET:
        logging.getLogger(name).setLevel(logging.NOTSET)


def told(format: str, message: str, **extra: object) -> str:
    stream = io.StringIO()
    logs.set_up("info", format, stream)
    logging.getLogger("swarmd.test").info(message, extra=extra)
    return stream.getvalue()


def test_text_has_the_facts_beside_the_message() -> None:
    line = told("text", "job started", job_id="j1", words='two "words"', count=3, none=None)
    assert line.endswith(
        'INFO swarmd.test: job started job_id=j1 words="two \\"words\\"" count=3 none=None\n'
    )


def test_json_is_one_object_a_line() -> None:
    line = json.loads(told("json", "job started", job_id="j1", count=3, level="not this"))
    assert line["message"] == "job started"
    assert (line["job_id"], line["count"], line["level"]) == ("j1", 3, "info")


@pytest.mark.parametrize("format", ["text", "json"])
def test_secrets_are_masked_and_lines_cannot_be_forged(format: str) -> None:
    line = told(format, "a\nb", admin_key="open-sesame", token="open-sesame", peer="x\ny\x1b[2J")
    assert "open-sesame" not in line
    assert line.count("\n") == 1
    assert "\x1b" not in line


@pytest.mark.parametrize("format", ["text", "json"])
def test_lines_are_bounded(format: str) -> None:
    assert len(told(format, "m" * 100_000, fact="f" * 100_000)) < 5000
    many = {f"fact{i}": i for i in range(1000)}
    assert told(format, "many", **many).count("fact") == logs.FACTS_MAX


@pytest.mark.parametrize("format", ["text", "json"])
def test_traceback_goes_along(format: str) -> None:
    stream = io.StringIO()
    logs.set_up("error", format, stream)
    try:
        raise ValueError("what went wrong")
    except ValueError:
        logging.getLogger("swarmd.test").exception("request failed")
    logging.getLogger("swarmd.test").warning("not told")
    assert "what went wrong" in stream.getvalue()
    assert "not told" not in stream.getvalue()
    if format == "json":
        assert "test_logs.py" in json.loads(stream.getvalue())["trace"]


@pytest.mark.parametrize("abstract", [False, True])
def test_manager_is_told_and_no_child_inherits_it(tmp_path: Path, abstract: bool) -> None:
    name = f"@swarmd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        env = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "7", "A": "b"}
        notifier = take_notifier(env, 7)
        assert env == {"A": "b"}
        assert notifier.watchdog_s == 2.0
        assert notifier.tell(READY, "STATUS=serving")
        assert manager.recv(100) == b"READY=1\nSTATUS=serving"
    assert notifier.tell(STOPPING) is False


def test_without_a_manager_nobody_is_told() -> None:
    notifier = take_notifier({"WATCHDOG_USEC": "5", "WATCHDOG_PID": "8"}, 7)
    assert (notifier.tell(READY), notifier.watchdog_s) == (False, None)


def test_the_last_lines_are_kept_with_their_secrets_masked() -> None:
    told("json", "first")
    assert logs.tail(10)[1][0].endswith("INFO swarmd.test: first")
    told("text", "anew")
    log = logging.getLogger("swarmd.test")
    for number in range(3000):
        log.info("line", extra={"number": number, "admin_key": "hush", "long": "x" * 5000})
    _, lines = logs.tail(2)
    assert [line.partition("number=")[2].split()[0] for line in lines] == ["2998", "2999"]
    _, lines = logs.tail(10_000)
    assert len(lines) == logs.KEPT_LINES_MAX
    assert all(len(line) <= logs.KEPT_CHARS_MAX and "hush" not in line for line in lines)
    try:
        raise ValueError("a bug")
    except ValueError:
        log.exception("it broke")
    assert logs.tail(1)[1] == ["ValueError: a bug"]


def test_the_file_that_is_told_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "swarmd.log").open("w") as file:
        monkeypatch.setattr("sys.stderr", file)
        assert logs.tail(1)[0] == str(tmp_path / "swarmd.log")
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert logs.tail(1)[0] is None
