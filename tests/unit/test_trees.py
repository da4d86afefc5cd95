"""What is read out of Portage trees: how old they are, and who goes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.domain import trees
from swarmd.domain.build_order import Edge
from swarmd.domain.builds import Builder
from swarmd.domain.errors import Invalid, SwarmError, Unavailable
from swarmd.domain.jobs import DEPENDENCIES_MAX, NodeId
from swarmd.domain.packages import parse_all
from swarmd.domain.trees import Plan, Stands, in_order, is_older, needs_of, tree_time
from swarmd.ops.syncs import TOLD_S_MAX, Syncs
from swarmd.ops.trees import NOTES_MAX, _meant

OLD, NEW = "Thu, 12 Feb 2026 00:30:01 +0000", "Fri, 13 Feb 2026 00:30:01 +0000"


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (OLD, 1770856201.0),
        ("Thu, 12 Feb 2026 01:30:01 +0100\n", 1770856201.0),
        ("2026-02-12T00:30:01Z", 1770856201.0),
        ("2026-02-12T00:30:01", 1770856201.0),
        ("2026-02-12", 1770854400.0),
        ("20260212", 1770854400.0),
        ("1770856201", 1770856201.0),
        ("1770856201.5", 1770856201.5),
        *((text, None) for text in ("", "yesterday", "nan", "1e999", "-1", "Thu, 99 Feb 2026")),
    ],
)
def test_a_tree_says_in_its_own_words_how_old_it_is(text: str, time: float | None) -> None:
    assert tree_time(text) == time


@given(st.text(max_size=64))
def test_whatever_it_says_is_a_time_or_none(text: str) -> None:
    found = tree_time(text)
    assert found is None or isinstance(found, float)
    assert not is_older(text, text)


def test_what_cannot_be_told_is_not_older() -> None:
    assert is_older(OLD, NEW) and not is_older(NEW, OLD)
    assert not is_older("", NEW) and not is_older(OLD, "") and not is_older(OLD, "soon")


def test_needs_leave_circles_out_and_what_is_queued_alone() -> None:
    edges = (
        Edge("a/lib-1", "a/app-1", True), Edge("a/app-1", "a/lib-1", False),
        Edge("a/old-1", "a/app-1", False), Edge("a/app-1", "a/old-1", True),
    )  # fmt: skip
    assert needs_of(edges, ["a/app-1", "a/lib-1"]) == {"a/app-1": ("a/lib-1", "a/old-1")}


def test_of_very_many_needs_those_for_building_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = [Edge(f"a/p-{n:03}", "a/app-1", n >= 100) for n in range(2 * DEPENDENCIES_MAX)]
    (needs,) = needs_of(edges, ["a/app-1"]).values()
    assert needs == tuple(f"a/p-{n}" for n in range(100, 200))
    monkeypatch.setattr(trees, "NEEDS_MAX", 3)
    assert sum(map(len, needs_of(edges, ["a/app-1"]).values())) == 3


def test_what_others_need_goes_before_them() -> None:
    needs = {"app": ("lib", "tool", "elsewhere"), "lib": ("base",), "tool": ("base",)}
    assert in_order(["app", "x", "tool", "lib", "base"], needs) == (
        "base", "lib", "tool", "app", "x",
    )  # fmt: skip
    assert in_order(["a", "b"], {"a": ("b",), "b": ("a",)}) == ("b", "a")
    names = [f"p{number}" for number in range(5000)]
    row = {name: (names[n + 1],) for n, name in enumerate(names[:-1])}
    assert in_order(names, row) == tuple(reversed(names))


WANTS = parse_all(["a/b", "@world"])


@pytest.mark.parametrize(
    ("plan", "refusal", "words"),
    [
        (Plan(()), Unavailable, "answered for 0 of 2"),
        (Plan((Stands(("a/b",)), Stands())), Invalid, "has no version"),
        (Plan((Stands(("; rm -rf /-1",)), Stands())), Invalid, "names no category|category"),
        (Plan((Stands(error="no a/b"), Stands(error="no @world"))), Invalid, "and 1 more like it"),
        (Plan((Stands(), Stands())), Invalid, "name 1 to 1000 packages, not 0"),
        (Plan((Stands(("a/b-1",)), Stands(tuple(f"a/b-{n}" for n in range(1001))))), Invalid,
         "name 1 to 1000 packages, not 1001"),
    ],
)  # fmt: skip
def test_another_nodes_answer_is_checked(plan: Plan, refusal: type[SwarmError], words: str) -> None:
    with pytest.raises(refusal, match=words):
        _meant(WANTS, plan)


def test_another_nodes_words_are_cut_to_size() -> None:
    notes = tuple(map(str, range(500)))
    stands = (Stands(("a/b-1",), known=False), Stands(("a/c-2", "a/b-1"), notes))
    meant = _meant(WANTS, Plan(stands, "2026" * 50))
    assert meant.packages == ("a/b-1", "a/c-2") and meant.known == {"a/b-1", "a/c-2"}
    assert len(meant.notes) == NOTES_MAX and len(meant.tree_at) == 64
    assert _meant(WANTS, Plan(stands, "a\nb")).tree_at == ""


def test_a_note_is_said_once() -> None:
    stands = Stands(("a/b-1",), ("a/b-1 is masked here", "other")), Stands((), ("other",))
    wants, plan = parse_all(["a/b", "@world", "@world"]), Plan((*stands, stands[1]), notes=("p",))
    said = ("p", "a/b-1 is masked here", "other", "@world stands for no package here")
    assert _meant(wants, plan).notes == said
    many = Stands(("a/b-1",), ("x",) * 500), Stands(("a/c-1",), ("y",))
    assert _meant(WANTS, Plan(many)).notes == ("x", "y")


def drone(tree_at: str, name: str = "d") -> Builder:
    return Builder(NodeId(name), tree_at=tree_at)


def test_a_drone_with_an_old_tree_is_told_and_one_with_a_new_one_is_not() -> None:
    syncs = Syncs()
    assert syncs.must(drone(OLD), NEW, "", 0.0) and syncs.must(drone(OLD), NEW, "", 1.0)
    assert not syncs.must(drone(NEW), NEW, "", 2.0)
    assert not syncs.must(drone(""), NEW, "", 0.0) and not syncs.must(drone(OLD), "", "", 0.0)


def test_a_drone_that_tried_is_not_told_again_until_more_is_wanted() -> None:
    syncs, newer = Syncs(), "2026-03-01"
    assert syncs.must(drone(OLD), NEW, "", 0.0)
    assert not syncs.must(drone(OLD), NEW, NEW, 1.0)
    assert syncs.must(drone(OLD), newer, NEW, 2.0)
    assert not syncs.must(drone(OLD), newer, newer, 3.0)


def test_a_drone_that_says_nothing_of_it_gets_work_in_the_end() -> None:
    syncs = Syncs()
    assert syncs.must(drone(OLD), NEW, "", 0.0)
    assert syncs.must(drone(OLD), NEW, "", TOLD_S_MAX - 1)
    assert not syncs.must(drone(OLD), NEW, "", TOLD_S_MAX)
    # Its tree came nearer, if not near enough: it did what it could. A still older one did not.
    assert syncs.must(drone(OLD, "e"), NEW, "", 0.0)
    assert syncs.must(drone("2020-01-01", "e"), NEW, "", 1.0)
    assert not syncs.must(drone("2026-02-12T12:00:00Z", "e"), NEW, "", 1.0)


def test_as_many_drones_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.ops.syncs.BUILDERS_MAX", 2)
    syncs = Syncs()
    for name in "abcd":
        assert syncs.must(drone(OLD, name), NEW, "", 0.0)
    assert len(syncs._told) == 2
