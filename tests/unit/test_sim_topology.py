"""Topologies that a person describes: what the file says is there, or what is wrong is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmd.domain.errors import Invalid
from swarmd.domain.jobs import Constraint, Resources
from swarmd.domain.nodes import Capacity
from swarmd.sim.topology import (
    NODES_MAX,
    Link,
    equal_nodes,
    listed,
    load_of,
    read_topology,
    usual_load,
)

RACKS = """
[[nodes]]
name = "db"
slots = 2
memory = "16GiB"
gpus = 2
labels = { site = "berlin" }

[[nodes]]
name = "web"
count = 3
cpu = 2
labels = { site = "paris" }

[[links]]
between = ["db", "web"]
delay_ms = [10, 30]
loss = 0.01

[load]
name = "thumbs"
jobs_a_minute = 30
seconds = [2, 10]
memory = "1GiB"
priority = "foreground"
constraints = ["node.labels.site==paris"]
"""


def described(place: Path, text: str) -> Path:
    path = place / "swarm.toml"
    path.write_text(text)
    return path


def test_a_file_says_which_nodes_links_and_jobs_there_are(tmp_path: Path) -> None:
    found = read_topology(described(tmp_path, RACKS))
    assert [node.name for node in found.nodes] == ["db", "web1", "web2", "web3"]
    assert found.nodes[0].capacity == Capacity(2, 4.0, 16 << 30, ("gpu0", "gpu1"))
    assert found.nodes[3].capacity == Capacity(4, 2.0, 8 << 30)
    assert found.links == (Link(("db",), ("web1", "web2", "web3"), (0.01, 0.03), 0.01),)
    assert len({*found.links[0].ways()}) == 6
    (load,) = found.load
    assert (load.jobs_a_minute, load.length_s, load.priority) == (30, (2, 10), 100)
    assert load.resources == Resources(None, 1 << 30)
    assert load.constraints == (Constraint("node.labels.site", "==", "paris"),)


def test_nodes_are_chosen_by_name_group_and_label(tmp_path: Path) -> None:
    found = read_topology(described(tmp_path, RACKS))
    assert found.choose(["web2", "db"]) == ("web2", "db")
    assert found.choose(["web"]) == ("web1", "web2", "web3")
    assert found.choose(["site=berlin", " db"]) == ("db",)
    for unknown in ("web4", "", "site=", "site=rome", "color=red"):
        with pytest.raises(Invalid, match=r"there are db, web1, web2, web3"):
            found.choose([unknown], "--kill: ")


NODES = '[[nodes]]\nname = "a"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "missing required field `nodes`"),
        ("nodes = 3", "Expected `array`"),
        ("[[nodes]", "is no TOML"),
        ("[[nodes]]\ncount = 3", "`name`"),
        (NODES + "colour = 1", "unknown field `colour`"),
        (NODES + "slots = -1", "Expected `int` >= 0"),
        (NODES + "slots = 1.5", "Expected `int`"),
        (NODES + "cpu = nan", "Expected `float`"),
        (NODES + "cpu = 0", "> 0"),
        (NODES + 'memory = "lots"', "64MiB"),
        (NODES + 'memory = -1', "is no size"),
        (NODES + 'memory = "99999999TiB"', "more memory than"),
        (NODES + f"count = {NODES_MAX + 1}", f"<= {NODES_MAX}"),
        (NODES + f'count = {NODES_MAX}\n[[nodes]]\nname = "b"', f"1 to {NODES_MAX} nodes"),
        (NODES + NODES, "more than one node called a"),
        ('[[nodes]]\nname = "../../etc"', "is no node name"),
        ('[[nodes]]\nname = "a b"', "is no node name"),
        (NODES + '[[links]]\nbetween = ["a", "z"]', "'z' is no node"),
        (NODES + '[[links]]\nbetween = ["a"]', "length 2"),
        (NODES + '[[links]]\nbetween = ["a", "a"]\nloss = 1.0', "<= 0.9"),
        (NODES + '[[links]]\nbetween = ["a", "a"]\ndelay_ms = [9, 1]', "the smaller first"),
        (NODES + "count = 1000\n" + '[[links]]\nbetween = ["a", "a"]', "link smaller groups"),
        (NODES + "[load]\njobs_a_minute = 0", "> 0"),
        (NODES + "[load]\njobs_a_minute = 1\nseconds = 0", ">= 0.01"),
        (NODES + '[load]\njobs_a_minute = 1\npriority = "urgent"', "is no priority"),
        (NODES + '[load]\njobs_a_minute = 1\nconstraints = ["x"]', "is not understood"),
        (NODES + "[[load]]\njobs_a_minute = 1\n" * 2, "more than one load called job"),
        (NODES + '[load]\njobs_a_minute = 1\nname = "a b"', "matching regex"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(Invalid) as refused:
        read_topology(described(tmp_path, text))
    assert words in refused.value.message
    assert "swarm.toml" in refused.value.message
    assert "\n" not in refused.value.message


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be read: No such file"):
        read_topology(tmp_path / "none.toml")
    with pytest.raises(Invalid, match="cannot be read: Is a directory"):
        read_topology(tmp_path)
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(Invalid, match="UTF-8"):
        read_topology(path)
    path.write_bytes(b"#" * (1 << 21))
    with pytest.raises(Invalid, match="larger than"):
        read_topology(path)
    path.write_text("a = " + "[" * 100_000)
    with pytest.raises(Invalid, match="no TOML"):
        read_topology(path)


def test_equal_nodes_have_work_for_half_of_their_slots() -> None:
    five = equal_nodes(5)
    assert [node.name for node in five.nodes] == ["n1", "n2", "n3", "n4", "n5"]
    load = usual_load(five.nodes, 30.0)
    assert (load.jobs_a_minute, load.length_s) == (20.0, (15.0, 45.0))
    assert usual_load(equal_nodes(NODES_MAX).nodes, 1.0).jobs_a_minute == 600.0
    for count in (0, -3, NODES_MAX + 1):
        with pytest.raises(Invalid, match=f"1 to {NODES_MAX} nodes, not {count}"):
            equal_nodes(count)
    assert load_of(0, 30.0) == ()
    for rate in (-1.0, float("nan"), float("inf")):
        with pytest.raises(Invalid, match="jobs come a minute"):
            load_of(rate, 30.0)


def test_long_lists_are_cut() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([f"n{i}" for i in range(20)], 2) == "n0, n1 and 18 more"
