"""The build swarm's story: three nodes, two drones and a sweeper, of which a drone and the leader
are killed. Each package is received once, and can be installed from a node that is left."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from tests.daemon import await_builds
from tests.drones import Gate, gone, running_drone
from tests.installs import install, lay_user
from tests.parts import need
from tests.portage import Host, Overlay, lay_host, lay_overlay
from tests.swarms import Node, running_swarm, until

KEY = {"X-Admin-Key": "a-key-for-tests"}
PLAIN = [f"app-misc/hello-1.{number}" for number in range(3)]
NEEDED_BY_OTHERS, VIRTUAL = "app-misc/lib-1", "virtual/lib-0"
OTHERS = [f"app-misc/p{number}-2" for number in range(3)]
SLOW, HARD = "app-misc/slow-1", "app-misc/hard-1"
FREE = [NEEDED_BY_OTHERS, *PLAIN, *OTHERS]
TEN = [HARD, SLOW, NEEDED_BY_OTHERS, VIRTUAL, *PLAIN, *OTHERS]
SLOW_S = 150
"""Bounds a step, not a speed: a drone may be silent for 60 s before its packages are another's, and
on a machine that does much else Portage takes a quarter of a minute for one that has two lines."""


def ask(node: Node, method: str, path: str, body: object = None) -> Any:
    answer = node.request(method, path, body, surface="buildswarm", headers=KEY)
    assert answer.status < 300, (path, answer.status, answer.body)
    return answer.json


def lay_tree(path: Path, gate: Gate) -> Overlay:
    """What is hard wants something that only the sweeper's host has; what is slow waits at a gate
    on the drones."""
    tree = lay_overlay(path)
    main = "echo 'int main(){}' > m.c; gcc m.c -o ${PN} || die"
    for name in (*PLAIN, *OTHERS, NEEDED_BY_OTHERS):
        slot = name.rpartition(".")[2] if name in PLAIN else "0"
        install = "newbin ${PN} ${P}" if name in PLAIN else "dobin ${PN}"
        tree.ebuild(name, compile=main, slot=slot, install=install)
    needs = {"RDEPEND": "app-misc/lib"}
    tree.ebuild(VIRTUAL, compile="", install="", **needs)
    tree.ebuild(SLOW, compile=f"{gate.words}\n\t{main}")
    tree.ebuild(HARD, compile=f'[[ -n $ROOM ]] || die "there is no room here"\n\t{main}')
    return tree


def install_all(host: Host, packages: list[str]) -> None:
    done = install(host, *(f"={cpv}" for cpv in packages))
    assert done.returncode == 0, done.stdout[-4000:]


def installed(host: Host) -> set[str]:
    return {
        f"{path.parent.name}/{path.name}" for path in (host.root / "var/db/pkg").glob("*/*")
    }  # fmt: skip


def test_drone_and_leader_are_killed_and_each_package_is_received_once(tmp_path: Path) -> None:
    need("root", "portage", "gpg")
    gate = Gate(tmp_path / "gate")
    tree = lay_tree(tmp_path / "tree", gate)
    gate.shut()
    settings = {"environment": {"ADMIN_KEY": KEY["X-Admin-Key"]}}
    with running_swarm(tmp_path / "swarm", **settings) as swarm, ExitStack() as stack:
        leader = swarm.leader()
        left = [node for node in swarm.nodes if node is not leader]
        await_builds(leader.daemon)
        ask(leader, "POST", "/queue", {"packages": TEN, "session_name": "ten"})
        urls = [node.daemon.url("buildswarm") for node in (leader, *left)]
        drones = {}
        for name, first, jobs, make_conf in (
            ("drone-01", 1, 8, ""), ("drone-02", 0, 4, ""), ("sweeper-01", 0, 1, 'ROOM="much"'),
        ):  # fmt: skip
            host = lay_host(tmp_path / name, tree, make_conf=make_conf)
            turned = urls[first:] + urls[:first]
            drones[name] = stack.enter_context(running_drone(host, name, turned, "--jobs", jobs))

        # One of the two drones is at what is slow: it and the leader go at once.
        pid = gate.waiting()
        victim = next(d for d in drones.values() if str(d.host.path) in working_dir(pid))
        assert victim.name.startswith("drone-")
        assert SLOW in held_by(leader, victim.name)
        before = received(leader)
        victim.kill()
        leader.kill()
        gate.open()

        # The rest goes on meanwhile, and is installed as it comes.
        until(lambda: goes_on(left[0], before), "the rest does not go on", SLOW_S)
        early = [name for name in FREE if name in received(left[0])]
        key = left[1].daemon.request("GET", "/binhost/swarm.asc", surface="buildswarm")
        assert key.status == 200
        binhost = f"{left[1].daemon.url('buildswarm')}/binhost"
        fresh = lay_user(tmp_path / "fresh", tree, binhost, key.body)
        install_all(fresh, early)

        await_all(left[0])
        check_once(left[0], victim.name)
        install_all(fresh, [name for name in TEN if name not in early])
        assert installed(fresh) == set(TEN)
        assert subprocess.run([fresh.root / "usr/bin/hard"], check=False).returncode == 0
        until(lambda: gone(pid), "the build of the drone that was killed goes on", SLOW_S)
        assert swarm.leader(left) in left
        with ThreadPoolExecutor(len(drones)) as pool:
            survivors = [drone for drone in drones.values() if drone is not victim]
            assert [*pool.map(lambda drone: drone.stop(), survivors)] == [0, 0]


def received(node: Node) -> set[str]:
    entries = ask(node, "GET", "/queue")
    return {entry["package"] for entry in entries if entry["status"] == "received"}


def held_by(node: Node, drone: str) -> set[str]:
    (row,) = (row for row in ask(node, "GET", "/nodes?all=true") if row["name"] == drone)
    return set(row["assigned_packages"])


def goes_on(node: Node, before: set[str]) -> bool:
    """A package more."""
    return bool((received(node) - before) & set(FREE))


def await_all(node: Node) -> None:
    """For as long as there is one more within the bound."""
    while (known := received(node)) != set(TEN):
        until(partial(has_more, node, known), "no further one is received", SLOW_S)


def has_more(node: Node, known: set[str]) -> bool:
    return received(node) != known


def working_dir(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/cwd")


def check_once(node: Node, victim: str) -> None:
    """By the history, by the events, by the session, and by what the binary host has."""
    builds = ask(node, "GET", "/history?limit=1000")["builds"]
    good = [build for build in builds if build["status"] == "success"]
    assert Counter(build["package"] for build in good) == Counter(TEN)
    assert {b["drone_name"] for b in good if b["package"] == HARD} == {"sweeper-01"}
    assert {b["package"] for b in builds if b["status"] == "failed"} == {HARD}
    assert SLOW not in {b["package"] for b in good if b["drone_name"] == victim}
    events = ask(node, "GET", "/events/history?type=complete")["events"]
    assert Counter(event["details"]["package"] for event in events) == Counter(TEN)
    (session,) = ask(node, "GET", "/sessions")["sessions"]
    assert (session["status"], session["completed_packages"]) == ("completed", len(TEN))
    index = node.daemon.request("GET", "/binhost/Packages", surface="buildswarm").body.decode()
    assert sorted(re.findall(r"^CPV: (.*)$", index, re.MULTILINE)) == sorted(TEN)
