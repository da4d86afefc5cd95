"""A binary host of two daemons: what is put into staging at one is signed, and installed from the
other by a real Portage that believes nothing but the swarm's key."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from swarmd.drivers.openpgp import SigningKey
from tests.cli import Said, swarmd
from tests.daemon import Response, await_builds, running_daemon
from tests.gpkgs import package
from tests.installs import install, lay_user
from tests.parts import need
from tests.portage import Host, Overlay, build, lay_host, lay_overlay
from tests.swarms import Node, Swarm, running_swarm, until

KEY = "a-key-for-tests"
DRONE = "drone-01"
HELLO, DEP, TOOL = "app-misc/hello-1.0", "app-misc/dep-2.1", "app-misc/tool-1"

pytestmark = pytest.mark.xdist_group("binhost")


@dataclass(frozen=True)
class Built:
    overlay: Overlay
    builder: Host

    def file(self, cpv: str) -> bytes:
        category, _, pf = cpv.partition("/")
        name = pf.rpartition("-")[0]
        (file,) = (self.builder.pkgdir / category / name).glob(f"{pf}-*.gpkg.tar")
        return file.read_bytes()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Once, by Portage."""
    need("portage", "gpg")
    folder = tmp_path_factory.mktemp("built")
    overlay = lay_overlay(folder / "tree")
    overlay.ebuild(DEP)
    overlay.ebuild(TOOL)
    overlay.ebuild(HELLO, RDEPEND="app-misc/dep", IUSE="+loud extra")
    builder = lay_host(folder / "builder", overlay)
    build(builder, DEP, TOOL, HELLO)
    return Built(overlay, builder)


@pytest.fixture(scope="module")
def swarm(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    folder = tmp_path_factory.mktemp("swarm")
    settings: dict[str, dict[str, object]] = {
        "environment": {"ADMIN_KEY": KEY}, "jobs": {"executor": False},
    }  # fmt: skip
    with running_swarm(folder, 2, **settings) as swarm:
        for node in swarm.nodes:
            await_builds(node.daemon)
        for cpv in (DEP, HELLO):
            publish(swarm["n1"], built, cpv)
        yield swarm


def ask(node: Node, path: str, method: str = "GET", body: object = None) -> Response:
    where = path if path.startswith("/binhost") else f"/api/v1{path}"
    headers = {"X-Admin-Key": KEY}
    return node.daemon.request(method, where, body, surface="buildswarm", headers=headers)


def good(answer: Response) -> Any:
    assert answer.status in (200, 201), answer.body
    return answer.json


def publish(node: Node, built: Built, cpv: str) -> None:
    """As a drone does."""
    drone = {"id": DRONE, "name": DRONE, "capabilities": {"cores": 1, "ram_gb": 1}}
    good(ask(node, "/register", "POST", drone))
    good(ask(node, "/queue", "POST", {"packages": [cpv], "session_name": cpv}))
    assert good(ask(node, f"/work?id={DRONE}&cores=1"))["package"] == cpv
    good(ask(node, f"/binhost/staging/{cpv}.gpkg.tar", "PUT", built.file(cpv)))
    report = {"id": DRONE, "package": cpv, "status": "success", "build_duration_s": 1}
    assert good(ask(node, "/complete", "POST", report))["accepted"]


def public_key(node: Node) -> bytes:
    answer = ask(node, "/binhost/swarm.asc")
    assert answer.status == 200 and answer.headers["content-type"] == "application/pgp-keys"
    return answer.body


def host(folder: Path, built: Built, node: Node, *keys: bytes) -> Host:
    return lay_user(folder, built.overlay, f"{node.daemon.url('buildswarm')}/binhost", *keys)


def say(node: Node, *words: str) -> Said:
    return swarmd("binhost", *words, "--data-dir", node.data_dir)


def runs(host: Host, program: str) -> str:
    (found,) = host.root.rglob(f"bin/{program}")
    return subprocess.run([found], check=True, capture_output=True, text=True).stdout.strip()


def test_what_one_node_was_given_is_installed_from_the_other(
    built: Built, swarm: Swarm, tmp_path: Path
) -> None:
    one, other = swarm.nodes
    assert public_key(one) == public_key(other)
    index = ask(other, "/binhost/Packages")
    assert index.body == ask(one, "/binhost/Packages").body
    user = host(tmp_path, built, other, public_key(other))
    done = install(user, "app-misc/hello")
    assert done.returncode == 0, done.stdout
    assert runs(user, "hello") == "hello LOUD"
    assert [*user.root.rglob("bin/dep")], "what it depends on came with it"


def test_whoever_has_another_key_installs_nothing(
    built: Built, swarm: Swarm, tmp_path: Path
) -> None:
    stranger = SigningKey.make("Somebody else", 1_700_000_000).public.armored()
    user = host(tmp_path, built, swarm["n1"], stranger)
    done = install(user, "app-misc/dep")
    assert done.returncode != 0 and "GnuPG verification failed" in done.stdout
    assert not [*user.root.rglob("bin/dep")]


def test_what_is_not_signed_is_served_by_no_node_and_taken_by_no_host(
    built: Built, swarm: Swarm, tmp_path: Path
) -> None:
    """The swarm signs all that it serves; a host that finds unsigned bytes in its place refuses."""
    node = swarm["n1"]
    served = ask(node, f"/binhost/{path_of(node, HELLO)}").body
    assert served.count(b"BEGIN PGP SIGNATURE") == 3
    assert b"BEGIN PGP" not in built.file(HELLO) and served != built.file(HELLO)
    user = host(tmp_path, built, node, public_key(node))
    shutil.copytree(built.builder.pkgdir, user.pkgdir, dirs_exist_ok=True)
    done = user.emerge("--usepkgonly", "--oneshot", "--nodeps", "app-misc/hello")
    assert done.returncode != 0 and "GnuPG verification failed" in done.stdout
    assert not [*user.root.rglob("bin/hello")]


def path_of(node: Node, cpv: str) -> str:
    rows = node.console("GET", "/binhost")["packages"]
    return str(next(row["path"] for row in rows if row["package"] == cpv))


def blob(node: Node, sha256: str) -> Path:
    return node.data_dir / "blobs" / sha256[:2] / sha256


def test_what_was_changed_on_a_disk_is_not_served(built: Built, swarm: Swarm) -> None:
    one, other = swarm.nodes
    publish(one, built, TOOL)
    (row,) = one.console("GET", "/binhost?package=app-misc/tool")["packages"]
    where = f"/binhost/{row['path']}"
    true = ask(one, where).body
    until(lambda: blob(other, row["sha256"]).exists(), "the second node has no copy")
    tamper(blob(one, row["sha256"]))

    def healed() -> bool:
        answer = ask(one, where)
        assert answer.body == true or answer.status >= 400, "changed bytes were served"
        return answer.status == 200

    until(healed, "the other node's copy did not take its place")
    for node in swarm.nodes:
        tamper(blob(node, row["sha256"]))
    for node in (*swarm.nodes, *swarm.nodes):
        assert ask(node, where).status in (404, 503)
    assert say(one, "remove", row["path"]).status == 0


def tamper(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_full_store_refuses_what_is_uploaded_and_nothing_is_half_done(tmp_path: Path) -> None:
    with running_daemon(
        tmp_path, jobs={"executor": False, "blobs_total_bytes_max": 1024**2},
        environment={"ADMIN_KEY": KEY},
    ) as daemon:  # fmt: skip

        def ask(method: str, path: str, body: object = None) -> Response:
            headers = {"X-Admin-Key": KEY}
            return daemon.request(method, path, body, surface="buildswarm", headers=headers)

        await_builds(daemon)
        drone = {"id": DRONE, "name": DRONE, "capabilities": {"cores": 1}}
        good(ask("POST", "/api/v1/register", drone))
        good(ask("POST", "/api/v1/queue", {"packages": [TOOL]}))
        assert good(ask("GET", f"/api/v1/work?id={DRONE}&cores=1"))["package"] == TOOL
        large = package(tmp_path / "large", TOOL, image=os.urandom(2 * 1024**2))
        answer = ask("PUT", f"/binhost/staging/{TOOL}.gpkg.tar", large.read_bytes())
        assert answer.status == 503 and "full" in answer.json["error"]
        assert not [*(daemon.data_dir / "staging").iterdir()]
        assert not [*(daemon.data_dir / "blobs" / "tmp").iterdir()]
        report = {"id": DRONE, "package": TOOL, "status": "success"}
        good(ask("POST", "/api/v1/complete", report))
        (entry,) = good(ask("GET", "/api/v1/queue"))
        assert entry["status"] != "received", "nothing of it is there"
        assert b"PACKAGES: 0\n" in ask("GET", "/binhost/Packages").body


def test_the_index_is_fetched_once_and_packed(built: Built, swarm: Swarm) -> None:
    node = swarm["n2"]
    plain, packed = ask(node, "/binhost/Packages"), ask(node, "/binhost/Packages.gz")
    assert gzip.decompress(packed.body) == plain.body
    at_s = int(parsedate_to_datetime(plain.headers["last-modified"]).timestamp())
    assert f"TIMESTAMP: {at_s}\n".encode() in plain.body

    def status(name: str, value: str, path: str = "/binhost/Packages") -> int:
        return node.daemon.request(
            "GET", path, surface="buildswarm", headers={name: value}
        ).status  # fmt: skip

    assert status("If-None-Match", plain.headers["etag"]) == 304
    assert (
        status("If-None-Match", f'"x", W/{packed.headers["etag"]}', "/binhost/Packages.gz") == 304
    )
    assert status("If-None-Match", packed.headers["etag"]) == 200
    # What Portage asks with is five seconds later than the index that it has.
    assert status("If-Modified-Since", formatdate(at_s + 5, usegmt=True)) == 304
    for seconds in (-1, 0, 3, 4, 6):
        assert status("If-Modified-Since", formatdate(at_s + seconds, usegmt=True)) == 200
    assert status("If-Modified-Since", "yesterday") == 200


def test_the_command_line_shows_explains_and_changes_the_key(
    built: Built, swarm: Swarm, tmp_path: Path
) -> None:
    """Last, for what it does."""
    one, other = swarm.nodes
    listed = say(one, "list")
    assert listed.status == 0 and "app-misc/hello/hello-1.0-1.gpkg.tar" in listed.out
    assert say(one, "explain", "app-misc/hello").status == 0
    why = say(one, "explain", "app-misc/hello", "--use", "-loud extra")
    assert why.status == 1 and why.out == (
        "app-misc/hello-1.0 (build 1): USE flag extra is off, wanted on;"
        " USE flag loud is on, wanted off\n"
    )
    old = say(one, "key")
    assert old.out.encode() == public_key(other) and "fingerprint" in old.err
    new = say(other, "key", "--rotate")
    assert new.status == 0 and new.out != old.out and new.out.encode() == public_key(one)
    gone = say(one, "remove", path_of(one, DEP))
    assert gone.status == 0 and say(one, "remove", "a/b").status == 1
    publish(other, built, DEP)
    keys = (old.out.encode(), new.out.encode())
    user = host(tmp_path / "both", built, one, *keys)
    done = install(user, "app-misc/hello")
    assert done.returncode == 0, done.stdout
    stale = host(tmp_path / "stale", built, one, keys[0])
    assert install(stale, "app-misc/dep").returncode != 0
    # What the old key signed is signed by the new one, and once.
    for signed in (True, False):
        said = say(other, "resign", "--json")
        assert said.status == 0 and bool(said.json["signed"]) is signed, said
        assert said.json["failed"] == [] and said.json["packages"] > said.json["signed"]
    assert "0 signed anew" in say(one, "resign", "app-misc/hello").err
    late = host(tmp_path / "late", built, one, keys[1])
    done = install(late, "app-misc/hello")
    assert done.returncode == 0, done.stdout
    for node in swarm.nodes:
        assert "PRIVATE KEY" not in node.log() and "secret" not in node.log().lower()
