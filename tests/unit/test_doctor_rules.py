"""What the doctor says of a picture: enough voters or not, clocks, certificates, disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmd.cluster.handle import Doubles
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.ops import doctor
from swarmd.ops.doctor import NOTE, WARNING, WRONG, Finding, Voter, examined, quorum

DAY_MS = 24 * 3600_000


def voters(there: str, gone: str = "") -> list[Voter]:
    lasts = {"a": (4, 90), "b": (5, 10), "c": (5, 12)}
    return [
        *(Voter(n, True, last=lasts.get(n)) for n in there),
        *(Voter(n, False, f"{n}:8473") for n in gone),
    ]


@pytest.mark.parametrize(
    ("there", "gone", "leader", "level", "words"),
    [
        ("abc", "", "a", None, ""),
        ("a", "", "a", None, ""),
        ("ab", "", "a", WARNING, "two nodes vote"),
        ("ab", "c", "a", WARNING, r"c \(c:8473\). 2 are needed: no further voter may be lost"),
        ("abcd", "e", "a", WARNING, "more may be lost"),
        ("abc", "", None, WRONG, "nobody leads, although 3 of 3"),
        ("a", "bc", None, WRONG, "of 3 voters .* reaches 1 .*, 2 are needed, so 1 more"),
        ("ab", "cde", "a", WRONG, "no quorum"),
    ],
)
def test_enough_voters_or_not(
    there: str, gone: str, leader: str | None, level: str | None, words: str
) -> None:
    import re

    found = quorum("a", voters(there, gone), leader, True)
    if level is None:
        assert found == []
        return
    assert found[0].level == level and re.search(words, found[0].what), found
    assert found[0].todo


def test_who_is_furthest_is_named_by_term_first() -> None:
    (found,) = quorum("a", voters("abc", "defg"), None, True)
    assert "on c (run" in found.todo[2] and "start d (d:8473), e" in found.todo[0]


def test_clocks_and_certificates() -> None:
    assert doctor.clock("b", None) == doctor.clock("b", -999) == []
    assert doctor.clock("b", 1500)[0].level == WARNING
    assert "7.2 s behind" in doctor.clock("b", -7200)[0].what
    assert doctor.clock("b", -7200)[0].level == WRONG
    assert doctor.certificate(None, 0) == doctor.certificate(60 * DAY_MS, 0) == []
    assert doctor.certificate(5 * DAY_MS, 0)[0].level == WARNING
    (ended,) = doctor.certificate(0, 3 * DAY_MS)
    assert ended.level == WRONG and "3 days ago" in ended.what


def test_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.disk(tmp_path / "none")[0].level == WRONG
    for free, level in ((10 << 20, WRONG), (500 << 20, WARNING)):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: _Usage(free))
        assert doctor.disk(tmp_path)[0].level == level


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_the_worst_comes_first_and_alone_makes_ill() -> None:
    found = [Finding(NOTE, "n"), Finding(WARNING, "w"), Finding(WRONG, "x")]
    ill = examined("a", "", True, found)
    assert [f.what for f in ill.findings] == ["x", "w", "n"] and not ill.healthy
    assert examined("a", "", True, found[:2]).healthy


def test_two_of_one_name_or_one_id_are_told_of() -> None:
    a, b, c = NodeId("a" * 36), NodeId("b" * 36), NodeId("c" * 36)
    nodes = {a: Node(a, "web"), b: Node(b, "other")}
    assert doctor.doubles(Doubles(), a, nodes) == []
    shared = {"web": ((a, "h1:1"), (b, "h2:1"), (c, ""))}
    (found,) = doctor.doubles(Doubles(shared), a, nodes)
    assert found.level == WARNING
    assert found.what.startswith("3 nodes that are alive are called web: aaaaaaaa at h1:1, the old")
    assert "bbbbbbbb at h2:1; cccccccc at an unknown place" in found.what
    assert "give bbbbbbbb a name of its own there" in found.todo[0]
    assert found.todo[-1].startswith("cccccccc: no member")
    (found,) = doctor.doubles(Doubles({}, ("h9:1",)), a, nodes)
    assert found.level == WRONG and "under the id of this node (aaaaaaaa), at h9:1" in found.what
