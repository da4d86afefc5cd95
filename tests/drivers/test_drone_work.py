"""What a drone says of a build whose upload is not taken, to a node on a real socket."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from swarmd.cli import drone_work
from swarmd.cli.drone_builds import Workshop
from swarmd.cli.drone_link import Link
from swarmd.cli.drone_work import About, Drone
from swarmd.drivers.portage_results import Made, Package
from swarmd.drivers.portage_sync import TreeSync
from tests.drivers.test_drone_link import REGISTERED, head, served

PACKAGE = "app-misc/hello-1.0"
FILE = "app-misc/hello/hello-1.0-1.gpkg.tar"


class Bench:
    """A workshop where all is built at once."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @asynccontextmanager
    async def build(self, cpv: str) -> AsyncIterator[Made]:
        yield Made((Package(FILE, self.file),), None, 12.5)


class Tree:
    tree_at = tried = ""


async def reported(
    status: str, words: str, file: Path, work: Sequence[str | None] = (PACKAGE,)
) -> list[dict[str, Any]]:
    """What a drone reports that is given this, one after the other, and whose uploads are answered
    so. It goes when there is nothing."""
    reports: list[dict[str, Any]] = []
    given = iter(work)

    async def node(stream: trio.SocketStream) -> None:
        first, rest = await head(stream)
        size = re.search(rb"Content-Length: (\d+)", first)
        while size and len(rest) < int(size[1]):
            rest += await stream.receive_some(65536)
        method, target, _ = first.decode().split(" ", 2)
        said, body = "200 OK", REGISTERED
        if method == "PUT":
            said, body = status, json.dumps({"error": words, "hint": "do so"}).encode()
        elif target.startswith("/api/v1/work"):
            body = json.dumps({"package": next(given, None)}).encode()
        elif target == "/api/v1/complete":
            reports.append(json.loads(rest))
            body = b'{"status": "ok"}'
        answer = f"HTTP/1.1 {said}\r\nContent-Length: {len(body)}\r\n\r\n"
        await stream.send_all(answer.encode() + body)

    with trio.fail_after(20):
        async with served(node) as place:
            about, link = About("id", "drone-01", 4, True), Link([place], None)
            bench, tree = cast(Workshop, Bench(file)), cast(TreeSync, Tree())
            await Drone(about, link, bench, tree).live(once=True)
    return reports


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    made.write_bytes(b"p" * 2000)
    return made


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("400 Bad Request", "a package of the old format (xpak) cannot be signed"),
        ("400 Bad Request", "a binary package has at most 1048576 bytes here"),
        ("413 Content Too Large", "this is too much"),
    ],
)
async def test_what_a_node_refuses_as_it_is_has_failed(file: Path, status: str, words: str) -> None:
    """Each build of it comes to that: if it counted not, it would be built for ever."""
    (report,) = await reported(status, words, file)
    assert report["status"] == "failed" and words in report["error_detail"]
    assert "upload_failed" not in report and report["build_duration_s"] == 12.5


@pytest.mark.parametrize(
    "status", ["503 Service Unavailable", "429 Too Many Requests", "401 Unauthorized"]
)
async def test_what_a_node_cannot_take_now_is_no_package_s_fault(
    file: Path, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drone_work, "UPLOAD_S_MAX", 0.0)
    (report,) = await reported(status, "the disk is full", file)
    assert report["status"] == "failed" and report["upload_failed"] is True


async def test_a_file_that_cannot_be_read_is_no_package_s_fault(tmp_path: Path) -> None:
    (report,) = await reported("201 Created", "", tmp_path)
    assert report["status"] == "failed" and report["upload_failed"] is True


async def test_what_is_another_s_goes_back(file: Path) -> None:
    (report,) = await reported("409 Conflict", "this builder does not hold it", file)
    assert report["status"] == "returned" and "upload_failed" not in report


async def test_once_ends_when_there_is_nothing_a_moment_after_the_last_one(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waited for what was just built is let go a moment later."""
    monkeypatch.setattr(drone_work, "ASK_EVERY_S", 0.05)
    work = [PACKAGE, None, PACKAGE, PACKAGE, None, None, PACKAGE]
    assert len(await reported("201 Created", "", file, work)) == 3
    assert await reported("201 Created", "", file, [None, PACKAGE]) == []
