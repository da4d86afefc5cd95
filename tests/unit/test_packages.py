"""Names of packages, versions in their order, and dependencies without their circles."""

from __future__ import annotations

import importlib
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.domain.build_order import Edge, acyclic
from swarmd.domain.errors import Invalid, TooLarge
from swarmd.domain.packages import (
    ATOM_CHARS_MAX,
    ATOMS_MAX,
    Atom,
    Cpv,
    PackageSet,
    newest,
    parse,
    parse_all,
    split,
    vercmp,
    version_key,
)

NUMBERS = st.one_of(st.integers(0, 120).map(str), st.sampled_from(["00", "01", "010", "09", "100"]))
SUFFIXES = st.builds(
    "_{}{}".format, st.sampled_from(["alpha", "beta", "pre", "rc", "p"]),
    st.sampled_from(["", "0", "1", "01", "20260212"]),
)  # fmt: skip
VERSIONS = st.builds(
    "{}{}{}{}".format,
    st.lists(NUMBERS, min_size=1, max_size=4).map(".".join),
    st.sampled_from(["", "", "a", "b", "z"]),
    st.lists(SUFFIXES, max_size=3).map("".join),
    st.sampled_from(["", "-r0", "-r1", "-r01", "-r10"]),
)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("dev-libs/openssl", Atom("dev-libs", "openssl")),
        ("dev-libs/openssl-3.2.0", Atom("dev-libs", "openssl", "=", "3.2.0")),
        ("=dev-libs/openssl-3.2.0-r1", Atom("dev-libs", "openssl", "=", "3.2.0-r1")),
        ("=dev-libs/openssl-3*", Atom("dev-libs", "openssl", "=", "3", glob=True)),
        ("~sys-apps/portage-3.0.83", Atom("sys-apps", "portage", "~", "3.0.83")),
        (
            ">=cat/pkg-1:slot::repo[use]",
            Atom("cat", "pkg", ">=", "1", slot="slot", repository="repo", use=("use",)),
        ),
        ("dev-lang/python:3.12/3.12t", Atom("dev-lang", "python", slot="3.12/3.12t")),
        ("a/b[x,-y,z(+)]", Atom("a", "b", use=("x", "-y", "z(+)"))),
        ("x11-libs/gtk+-2.24.33", Atom("x11-libs", "gtk+", "=", "2.24.33")),
        ("dev-cpp/gtkmm-x-y", Atom("dev-cpp", "gtkmm-x-y")),
        ("media-libs/foo-1a", Atom("media-libs", "foo", "=", "1a")),
        ("cat/pkg-1_beta2_p3-r4", Atom("cat", "pkg", "=", "1_beta2_p3-r4")),
        ("cat/lib-3d", Atom("cat", "lib", "=", "3d")),
        ("cat/pkg-r1", Atom("cat", "pkg-r1")),
        ("@world", PackageSet("world")),
        ("@my-set.1", PackageSet("my-set.1")),
    ],
)
def test_what_users_write_is_understood(text: str, meant: Atom | PackageSet) -> None:
    assert parse(text) == meant
    assert parse(str(meant)) == meant


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no package name"),
        (7, "no package name"),
        (None, "no package name"),
        ("openssl", "names no category"),
        ("dev-libs/", "package name after"),
        ("/openssl", "category before"),
        ("-dev/openssl", "category before"),
        ("a/b/c", "package name after"),
        ("dev-libs/+x", "package name after"),
        ("dev-libs/open ssl", "package name after"),
        ("dev-libs/openssl\n", "package name after"),
        ("dev-libs/öpenssl", "package name after"),
        ("dev-libs/foo-1-2", "ends in a version"),
        ("../etc", "category before"),
        ("a/b;reboot", "package name after"),
        ("--sync", "names no category"),
        ("-a/b", "category before"),
        ("*/*", "a * elsewhere"),
        ("dev-libs/*", "a * elsewhere"),
        ("dev-libs/openssl-3*", "a * elsewhere"),
        (">=dev-libs/openssl-3*", "a * elsewhere"),
        (">=dev-libs/openssl", "no version after"),
        ("=dev-libs/openssl*", "no version after"),
        ("~a/b-1-r1", "for any revision"),
        ("!a/b", "blocker"),
        ("a/b:", "slot after"),
        ("a/b:1=", "slot operator"),
        ("a/b:=", "slot operator"),
        ("a/b:*", "slot operator"),
        ("a/b:1/2/3", "slot after"),
        ("a/b::", "repository after"),
        ("a/b::repo-1", "repository after"),
        ("a/b[]", "USE flags"),
        ("a/b[x?]", "USE flags"),
        ("a/b[x,]", "USE flags"),
        ("a/bx]", "USE flags"),
        ("@", "name of a set"),
        ("@world{x}", "name of a set"),
        ("@-x", "name of a set"),
        ("a/" + "b" * ATOM_CHARS_MAX, "is longer than"),
        ("a/b-" + "1." * 5000 + "1", "is longer than"),
    ],
)
def test_anything_else_is_refused_with_a_hint(text: object, why: str) -> None:
    with pytest.raises(Invalid, match="write dev-libs/openssl") as refused:
        parse(text)
    assert why in refused.value.message and len(refused.value.message) < 400


@given(st.text(st.sampled_from("ab1-_.r/:[]=~<>!@*+,() \n\x00é"), max_size=24))
def test_what_is_taken_is_written_back_as_it_was_meant(text: str) -> None:
    try:
        want = parse(text)
    except Invalid:
        return
    assert parse(str(want)) == want
    assert str(want) in (text, f"={text}")


def test_a_request_is_bounded_and_names_what_is_wrong_with_it() -> None:
    assert parse_all(["a/b", "@world"]) == (Atom("a", "b"), PackageSet("world"))
    with pytest.raises(Invalid) as refused:
        parse_all(["a/b", "c"])
    assert refused.value.facts == {"field": "packages", "index": 1}
    with pytest.raises(TooLarge):
        parse_all(["a/b"] * (ATOMS_MAX + 1))


def test_a_version_of_a_package_comes_apart() -> None:
    cpv = split("dev-libs/openssl-3.2.0_rc1-r2")
    assert cpv == Cpv("dev-libs", "openssl", "3.2.0_rc1-r2")
    assert (cpv.key, cpv.upstream, cpv.revision) == ("dev-libs/openssl", "3.2.0_rc1", 2)
    assert (str(cpv), cpv.file_stem) == ("dev-libs/openssl-3.2.0_rc1-r2", "openssl-3.2.0_rc1-r2")
    literal = parse("dev-libs/openssl-3.2.0_rc1-r2")
    assert isinstance(literal, Atom) and literal.literal == cpv
    for vague in ("~a/b-1", "=a/b-1*", ">=a/b-1", "a/b"):
        want = parse(vague)
        assert isinstance(want, Atom) and want.literal is None
    for text in ("dev-libs/openssl", "=a/b-1", "a/b-1:0", "a/b-1*", "x" * 300, 3):
        with pytest.raises(Invalid):
            split(text)


def test_versions_are_in_the_order_of_the_specification() -> None:
    ordered = [
        "0.9", "1_alpha", "1_alpha1", "1_alpha1_p1", "1_beta", "1_pre2", "1_rc1", "1_rc1-r1", "1",
        "1-r1", "1_p0", "1_p1_rc1", "1_p1", "1_p1_p1", "1a", "1b", "1.0", "1.00.1", "1.01", "1.011",
        "1.02", "1.1", "1.2", "1.10", "1.10.0", "2", "10",
    ]  # fmt: skip
    shuffled = ordered[:]
    random.Random(5).shuffle(shuffled)
    assert sorted(shuffled, key=version_key) == ordered
    assert newest(shuffled) == "10" and newest([]) is None
    for same in (("1", "1-r0"), ("1_p", "1_p0"), ("1.010", "1.01"), ("1.0", "1.00"), ("01", "1")):
        assert vercmp(*same) == 0
    for wrong in (
        "",
        "1.",
        ".1",
        "1-r",
        "1_x",
        "1ab",
        "a",
        "1 ",
        "1\n",
        "\u0661",
        "1." * 200 + "1",
    ):
        with pytest.raises(Invalid, match="is no version"):
            version_key(wrong)


@pytest.mark.needs("portage")
@settings(max_examples=1000)
@given(VERSIONS, VERSIONS)
def test_portage_orders_versions_alike(one: str, other: str) -> None:
    theirs = importlib.import_module("portage.versions").vercmp(one, other)
    assert vercmp(one, other) == (theirs > 0) - (theirs < 0)


@pytest.mark.needs("portage")
@settings(max_examples=500)
@given(st.text(st.sampled_from("ab19-_.rp+/"), max_size=16))
def test_portage_takes_names_apart_alike(text: str) -> None:
    """Where it is stricter than the specification, or less strict, we go by the latter."""
    theirs = importlib.import_module("portage.versions").catpkgsplit(text)
    try:
        cpv = split(text)
    except Invalid:
        return
    assert theirs is not None
    version = theirs[2] if theirs[3] == "r0" else f"{theirs[2]}-{theirs[3]}"
    assert (theirs[0], theirs[1]) == (cpv.category, cpv.name)
    assert version_key(version) == version_key(cpv.version)


EDGES = st.lists(
    st.builds(Edge, st.sampled_from("abcdefg"), st.sampled_from("abcdefg"), st.booleans()),
    max_size=30,
)


@given(EDGES, st.randoms(use_true_random=False))
def test_circles_are_broken_always_alike(edges: list[Edge], chance: random.Random) -> None:
    kept, dropped = acyclic(edges)
    shuffled = edges[:]
    chance.shuffle(shuffled)
    assert acyclic(shuffled) == (kept, dropped)
    given_pairs = {(e.before, e.after) for e in edges if e.before != e.after}
    assert {(e.before, e.after) for e in (*kept, *dropped)} == given_pairs
    assert not circles(kept)
    building = [edge for edge in edges if edge.build]
    if not circles([edge for edge in building if edge.before != edge.after]):
        assert not any(edge.build for edge in dropped)


def circles(edges: list[Edge] | tuple[Edge, ...]) -> bool:
    left = list(edges)
    while left:
        needing = {edge.after for edge in left}
        rest = [edge for edge in left if edge.before in needing]
        if len(rest) == len(left):
            return True
        left = rest
    return False


def test_needs_of_running_give_way_to_needs_of_building() -> None:
    run, build = Edge("a", "b", False), Edge("b", "a", True)
    assert acyclic([run, build]) == ((build,), (run,))
    assert acyclic([Edge("a", "a", True)]) == ((), ())
    assert acyclic([Edge("a", "b", False), Edge("a", "b", True)]) == ((Edge("a", "b", True),), ())


def test_a_world_in_one_row_is_put_in_order() -> None:
    names = [f"a/p{number:05}-1" for number in range(5000)]
    edges = [Edge(one, other, True) for one, other in itertools.pairwise(names)]
    circle = Edge(names[-1], names[0], False)
    assert acyclic([*edges, circle]) == (tuple(edges), (circle,))
