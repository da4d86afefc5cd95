"""Drones' own tokens where everybody else needs the admin key: by one a drone works, as itself, and
nothing else is open to it. In a network of the test's own, off loopback."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from swarmd.cli.drone_link import Link
from swarmd.cli.drone_wire import Place
from swarmd.domain.errors import Unauthorized
from tests.cli import swarmd
from tests.daemon import Daemon, Response, running_daemon
from tests.gpkgs import package
from tests.netns import own_network
from tests.parts import need
from tests.swarms import until

ADDRESS = "10.77.9.1"
KEY = "a-key-for-tests"
BY_TOKEN = [
    ("POST", "/api/v1/register"), ("GET", "/api/v1/work?id=id-one&cores=1"),
    ("POST", "/api/v1/complete"), ("PUT", "/binhost/staging/app-misc/hello-1.0.gpkg.tar"),
]  # fmt: skip
BY_KEY = [
    ("buildswarm", "GET", "/api/v1/status"), ("buildswarm", "GET", "/api/v1/nodes?all=true"),
    ("buildswarm", "GET", "/api/v1/queue"), ("buildswarm", "POST", "/api/v1/queue"),
    ("buildswarm", "POST", "/api/v1/control"), ("buildswarm", "GET", "/api/v1/events"),
    ("buildswarm", "POST", "/api/v1/nodes/one/pause"), ("buildswarm", "GET", "/binhost/Packages"),
    ("buildswarm", "GET", "/api/v1/register"), ("buildswarm", "POST", "/api/v1/work"),
    ("buildadmin", "GET", "/admin/api/payloads"), ("jobqueue", "GET", "/api/v1/jobs"),
    ("console", "GET", "/api/v1/status"), ("console", "POST", "/api/v1/drone-tokens"),
]  # fmt: skip


@dataclass
class Guarded:
    daemon: Daemon
    folder: Path
    shows: dict[str, str] = field(default_factory=dict)

    def ask(
        self, method: str, path: str, body: object = None, *, surface: str = "buildswarm",
        **headers: str,
    ) -> Response:  # fmt: skip
        sent = self.shows | {name.replace("_", "-"): value for name, value in headers.items()}
        return self.daemon.request(method, path, body, surface=surface, headers=sent)

    def with_token(self, token: str) -> Guarded:
        return Guarded(self.daemon, self.folder, {"X-Drone-Token": token})

    def register(self, name: str, drone_id: str | None = None) -> Response:
        says = {"id": drone_id or f"id-{name}", "name": name, "ip": "10.77.9.9"}
        return self.ask("POST", "/api/v1/register", says)

    def work(self, drone_id: str) -> Response:
        return self.ask("GET", f"/api/v1/work?id={drone_id}&cores=1")

    def complete(self, drone_id: str, wanted: str) -> Response:
        body = {"id": drone_id, "package": wanted, "status": "success"}
        return self.ask("POST", "/api/v1/complete", body)

    def stage(self, cpv: str, **headers: str) -> Response:
        file = package(self.folder / "made", cpv).read_bytes()
        return self.ask("PUT", f"/binhost/staging/{cpv}.gpkg.tar", file, **headers)

    def queue(self, *packages: str) -> None:
        body = {"packages": [*packages], "session_name": "s"}
        answer = self.ask("POST", "/api/v1/queue", body, X_Admin_Key=KEY)
        assert answer.status == 200, answer.body

    def token(self, name: str) -> str:
        """As the command line makes it; the node knows it at once, or a moment later."""
        said = swarmd("drone-token", name, "--data-dir", self.daemon.data_dir)
        assert said.status == 0 and len(said.out.split()) == 1, said
        made = said.out.strip()
        until(lambda: self.with_token(made).work("id-nobody").status != 401, "it is not known")
        return made


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    need("netns")
    folder = tmp_path_factory.mktemp("guarded")
    with own_network():
        subprocess.run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
        with running_daemon(
            folder / "node", environment={"ADMIN_KEY": KEY}, node={"bind": [ADDRESS]},
            jobs={"executor": False},
        ) as daemon:  # fmt: skip
            guarded = Guarded(daemon, folder)
            path = "/api/v1/status"
            until(lambda: guarded.ask("GET", path, X_Admin_Key=KEY).status == 200, "no builds yet")
            yield guarded


def test_without_a_token_nothing_is_open(guarded: Guarded) -> None:
    wrong = {"X-Drone-Token": "drone1.one.AAAA"}
    for shown in ({}, wrong, {"Authorization": "Bearer drone1.one."}, {"X-Admin-Key": "x"}):
        stranger = Guarded(guarded.daemon, guarded.folder, shown)
        for method, path in BY_TOKEN:
            answer = stranger.ask(method, path)
            assert answer.status == 401 and "swarmd drone-token NAME" in answer.json["hint"]
        for surface, method, path in BY_KEY:
            answer = stranger.ask(method, path, surface=surface)
            assert answer.status == 401 and b"drone-token" not in answer.body, (path, answer.body)


def test_with_its_own_token_a_drone_works_and_can_do_nothing_else(guarded: Guarded) -> None:
    wanted = "app-misc/hello-1.0"
    one = guarded.with_token(guarded.token("one"))
    guarded.queue(wanted)
    said = one.register("one")
    assert said.status == 200 and said.json["assigned_packages"] == []
    assert said.json["orchestrator_port"] == guarded.daemon.ports["buildswarm"]
    assert one.work("id-one").json["package"] == wanted
    assert one.register("one").json["assigned_packages"] == [wanted]
    # By the token that the registration gave, beside its own; and by its own alone.
    bearer = {"Authorization": f"Bearer {one.shows['X-Drone-Token']}"}
    given = Guarded(guarded.daemon, guarded.folder, bearer)
    assert given.stage(wanted, X_Drone_Token=said.json["token"]).status == 201
    assert one.stage(wanted).status == 201
    assert one.complete("id-one", wanted).json["accepted"] is True
    for surface, method, path in BY_KEY:
        assert one.ask(method, path, surface=surface).status == 401, path
        assert given.ask(method, path, surface=surface).status == 401, path


def test_it_speaks_for_no_other_drone(guarded: Guarded) -> None:
    two, three = (guarded.with_token(guarded.token(name)) for name in ("two", "three"))
    token = two.register("two").json["token"]
    guarded.queue("app-misc/two-1.0")
    assert two.work("id-two").json["package"] == "app-misc/two-1.0"
    for answer in (
        three.register("two"), three.register("two", "id-three"), three.register("three", "id-two"),
        three.work("id-two"), three.complete("id-two", "app-misc/two-1.0"),
    ):  # fmt: skip
        assert answer.status == 403 and "of three" in answer.json["error"], answer.body
        assert "bound to one name" in answer.json["hint"], answer.body
    assert three.stage("app-misc/two-1.0").status == 404  # it never registered
    bearer = {"Authorization": f"Bearer {three.shows['X-Drone-Token']}"}
    by_other = Guarded(guarded.daemon, guarded.folder, bearer)
    assert by_other.stage("app-misc/two-1.0", X_Drone_Token=token).status == 403
    assert two.stage("app-misc/two-1.0").status == 201
    assert two.complete("id-two", "app-misc/two-1.0").json["accepted"] is True


def test_one_that_was_replaced_or_revoked_is_good_no_longer(guarded: Guarded) -> None:
    old = guarded.with_token(guarded.token("four"))
    assert old.register("four").status == 200
    new = guarded.with_token(guarded.token("four"))
    assert new.register("four").status == 200 and old.register("four").status == 401
    at = ("--data-dir", guarded.daemon.data_dir)
    names = [each["name"] for each in swarmd("drone-token", "--json", *at).json["tokens"]]
    assert "four" in names and "four" in swarmd("drone-token", *at).out
    assert swarmd("drone-token", "four", "--revoke", *at).status == 0
    until(lambda: new.register("four").status == 401, "it is still good")
    assert swarmd("drone-token", "four", "--revoke", *at).status == 1
    assert swarmd("drone-token", "--revoke", *at).status == 2
    assert "must be a drone's" in swarmd("drone-token", "no name", *at).err


def test_nobody_keeps_it(guarded: Guarded) -> None:
    """Not the state, not the log of entries, not what the node says."""
    token = guarded.token("five")
    assert guarded.with_token(token).register("five").status == 200
    secret = token.rpartition(".")[2].encode()
    for path in (guarded.daemon.stderr_path, *guarded.daemon.data_dir.rglob("*")):
        if path.is_file():
            assert secret not in path.read_bytes(), path


def test_a_reference_drones_way_takes_it(guarded: Guarded) -> None:
    wanted, place = "app-misc/six-1.0", Place.of(guarded.daemon.url("buildswarm"))
    says: dict[str, object] = {"id": "id-six", "name": "six", "ip": "10.77.9.6"}
    link, stranger = Link([place], None, guarded.token("six")), Link([place], None)
    guarded.queue(wanted)

    async def work() -> None:
        with pytest.raises(Unauthorized, match="swarmd drone-token"):
            await stranger.introduce(says)
        await link.introduce(says)
        assert (await link.work("id-six", 1)).package == wanted
        assert await link.held(says) == [wanted]
        file = package(guarded.folder / "made", wanted)
        await link.upload(f"{wanted}.gpkg.tar", file, says)
        report = {"id": "id-six", "package": wanted, "status": "success"}
        assert not (await link.complete(report)).stale
        assert await link.held(says) == []

    trio.run(work)
