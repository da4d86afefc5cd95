"""The tables and NOT_YET together are all that is documented, and what is not yet is not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from api.buildswarm import admin, binhost, care_routes, terminal
from api.buildswarm import routes as buildswarm_routes
from api.buildswarm.binhost import BinHost
from api.buildswarm.payload_routes import Admin
from api.common.surface import HotRoute, template_of
from api.jobqueue.routes import ROUTES
from swarmd.config import Config
from swarmd.ops.binhost import Staging
from tests.contract import buildswarm, buildswarm_admin, jobqueue
from tests.contract.not_yet import NOT_YET
from tests.contract.table import Operation
from tests.daemon import SURFACES, Daemon, running_daemon
from tests.parts import endpoints_file, need

TABLES: tuple[tuple[Operation, ...], ...] = (
    jobqueue.OPERATIONS, buildswarm.OPERATIONS, buildswarm_admin.OPERATIONS,
)  # fmt: skip
SERVED = [operation for table in TABLES for operation in table]
KEY = {"X-Admin-Key": "a-key-for-tests"}
UNDOCUMENTED_PORTS = {8470}
"""The console's own: its operations are nobody's contract."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(
        tmp_path_factory.mktemp("daemon"), jobs={"executor": False},
        environment={"ADMIN_KEY": KEY["X-Admin-Key"]},
    ) as daemon:  # fmt: skip
        yield daemon


def test_no_operation_is_named_twice() -> None:
    keys = [operation.key for operation in SERVED] + list(NOT_YET)
    assert len(keys) == len(set(keys))


def test_tables_and_not_yet_are_all_that_is_documented() -> None:
    need("endpoints")
    file = endpoints_file()
    assert file is not None
    lines = [line.split("\t") for line in file.read_text().splitlines()[1:]]
    documented = {(method, int(port), path) for _, port, method, path, *_ in lines}
    ours = {operation.key for operation in SERVED if operation.documented} | set(NOT_YET)
    assert ours == documented


def test_every_route_of_the_job_queue_is_in_its_table() -> None:
    routes = {(route.method, jobqueue.PORT, route.template) for route in ROUTES}
    table = {operation.key for operation in jobqueue.OPERATIONS if operation.method != "WS"}
    assert routes == table


def test_every_route_of_the_build_swarm_is_in_its_table() -> None:
    """A package lies under its name, or beside it where there is one instance alone; a directory
    may end with a slash."""
    table = {operation.key for operation in buildswarm.OPERATIONS}
    routes = {(route.method, buildswarm.PORT, route.template) for route in _hot_routes()}
    either = {
        ("GET", "/binhost"),
        ("GET", "/binhost/{category}/{file}"),
        ("PUT", "/binhost/staging/{category}/{name}/{file}"),
    }
    assert table | {(method, buildswarm.PORT, path) for method, path in either} == routes


def test_every_route_of_its_admin_port_is_in_its_table() -> None:
    table = {operation.key for operation in buildswarm_admin.OPERATIONS}
    nobody = Admin(cast(Any, None), cast(Any, None), lambda count: (None, []), Path(), 1, lambda: 0)
    served = {(route.method, route.template) for route in admin.all_routes(nobody)}
    rules = terminal.make_app(cast(Any, None)).url_map.iter_rules()
    served |= {("WS", template_of(str(rule.rule))) for rule in rules if rule.websocket}
    assert {(method, buildswarm_admin.PORT, path) for method, path in served} == table


def _hot_routes() -> tuple[HotRoute, ...]:
    return (
        *buildswarm_routes.hot_routes(
            cast(Any, None), (*buildswarm_routes.ROUTES, *care_routes.ROUTES)
        ),
        *binhost.hot_routes(BinHost(cast(Any, None), cast(Any, None), Staging(Path(), 1))),
    )


def test_every_surface_has_a_table() -> None:
    """A new surface brings its table, and is started by the daemon of these tests."""
    ports = {name: section.port for name, section in Config().surfaces.by_name().items()}
    assert ports == SURFACES
    assert set(ports.values()) - UNDOCUMENTED_PORTS == {operation.port for operation in SERVED}


def test_the_daemon_listens_on_its_surfaces_and_its_mesh_alone(daemon: Daemon) -> None:
    told = daemon.request("GET", "/api/v1/nodes", surface="console").json
    (mesh,) = {int(a.rpartition(":")[2]) for node in told["nodes"] for a in node["mesh"]}
    assert listening_ports(daemon.process.pid) == {*daemon.ports.values(), mesh}


def test_what_is_not_yet_is_not_served(daemon: Daemon) -> None:
    """Ports that are not listened on are left to the test above."""
    names = {port: name for name, port in SURFACES.items()}
    verbs = {"WS": "GET", "SSE": "GET", "GRAPHQL": "POST", "GRPC": "POST"}
    served = []
    for method, port, path in NOT_YET:
        if port in names:
            plain = path.replace("{", "").replace("}", "")
            answer = daemon.request(
                verbs.get(method, method), plain, surface=names[port], headers=KEY
            )
            if answer.status not in (404, 405):
                served.append((method, port, path))
    assert not served, "take these out of NOT_YET"


def listening_ports(pid: int) -> set[int]:
    """TCP ports that a process listens on, from what the kernel says of its descriptors."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports
