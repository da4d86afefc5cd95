"""Binary packages as facts: what is let in, the index, and why none fits."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.domain.binpkgs import (
    EXPLAINED_MAX,
    METADATA_BYTES_MAX,
    VALUE_BYTES_MAX,
    BinPkg,
    Measured,
    Wanted,
    described,
    explain,
    index,
    path_of,
    placed,
    reduced,
)
from swarmd.domain.errors import Invalid, SwarmError, TooLarge

FILE = Measured("gpkg", "a" * 64, 10_240, "b" * 32, "c" * 40, 1_700_000_000)
SAID = {
    "CATEGORY": "dev-libs\n",
    "PF": "openssl-3.2.0-r1\n",
    "SLOT": "0/3\n",
    "EAPI": "8\n",
    "USE": "amd64 asm elibc_glibc\n",
    "IUSE": "+asm fips test\n",
    "KEYWORDS": "amd64 ~arm64\n",
    "CHOST": "x86_64-pc-linux-gnu\n",
    "CFLAGS": "-O2 -pipe\n",
    "BUILD_ID": "3\n",
    "BUILD_TIME": "1700000001\n",
    "RDEPEND": "fips? ( app/fips )  asm? ( app/asm )\n\tapp/all",
    "repository": "gentoo\n",
    "environment.bz2": "much",
}


def pkg(**said: str) -> BinPkg:
    return described(SAID | said, FILE)


def test_what_a_package_says_is_kept_as_the_index_has_it() -> None:
    made = pkg()
    assert (made.cpv, made.package, made.slot) == (
        "dev-libs/openssl-3.2.0-r1", "dev-libs/openssl", "0/3",
    )  # fmt: skip
    assert (made.build_id, made.build_time_s) == (3, 1_700_000_001)
    assert made.metadata["RDEPEND"] == "app/asm app/all"
    assert made.use == {"asm"}
    assert made.flags == {"asm", "fips", "test"}
    assert "environment.bz2" not in made.metadata
    assert path_of(made) == "dev-libs/openssl/openssl-3.2.0-r1-3.gpkg.tar"
    assert msgspec.json.decode(msgspec.json.encode(made), type=BinPkg) == made


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("CATEGORY", ""), ("CATEGORY", "../etc"), ("CATEGORY", "a/b"), ("CATEGORY", ".x"),
        ("PF", ""), ("PF", "openssl"), ("PF", "../x-1"), ("PF", "x/y-1"), ("PF", "foo-1-2"),
        ("SLOT", ""), ("SLOT", "0/../.."), ("SLOT", "a/b/c"), ("SLOT", "-x"),
        ("BUILD_ID", "-1"), ("BUILD_ID", "1" * 16), ("BUILD_TIME", "soon"), ("BUILD_ID", "٣"),
        ("USE", "a\x00b"), ("KEYWORDS", "\x1b[2J"), ("RDEPEND", "a\u202eb"),
        ("RDEPEND", "a? ( b"), ("RDEPEND", "a? b"), ("RDEPEND", "a? ( b ) )"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_package_is_refused(key: str, value: str) -> None:
    with pytest.raises(Invalid):
        pkg(**{key: value})


def test_more_than_is_kept_is_refused_and_libraries_are_left_out_instead() -> None:
    with pytest.raises(TooLarge, match="RDEPEND"):
        pkg(RDEPEND="x" * (VALUE_BYTES_MAX + 1))
    with pytest.raises(TooLarge, match="of itself"):
        pkg(DEPEND="x" * VALUE_BYTES_MAX, BDEPEND="y" * VALUE_BYTES_MAX)
    assert "PROVIDES" not in pkg(PROVIDES="x" * (VALUE_BYTES_MAX + 1)).metadata
    made = pkg(REQUIRES="x" * VALUE_BYTES_MAX, DEPEND="y" * VALUE_BYTES_MAX)
    assert "REQUIRES" not in made.metadata
    assert "DEPEND" in made.metadata
    assert len(json.dumps(made.metadata)) < 2 * METADATA_BYTES_MAX


@given(st.dictionaries(st.sampled_from([*SAID]), st.text()))
def test_whatever_is_said_the_index_has_a_line_a_value(said: dict[str, str]) -> None:
    try:
        made = described(SAID | said, FILE)
    except SwarmError as error:
        assert error.message.isprintable()
        return
    _, entry, end = b"".join(index([made], {}, 1)).decode().split("\n\n")
    assert end == ""
    lines = dict(line.split(": ", 1) for line in entry.splitlines())
    assert lines["CPV"] == made.cpv
    assert lines["PATH"] == path_of(made)
    assert ".." not in lines["PATH"].split("/")


def test_the_index_is_sorted_stable_and_leaves_out_what_goes_without_saying() -> None:
    others = [pkg(PF=f"openssl-{n}", BUILD_ID="1", SLOT="0", USE="", EAPI="0") for n in (3, 10, 2)]
    pkgs = [pkg(), *others, msgspec.structs.replace(pkg(), build_id=1)]
    header = {"ARCH": "amd64", "CHOST": "x86_64-pc-linux-gnu", "REPO": "gentoo", "URI": ""}
    text = b"".join(index(pkgs, header, 1_700_000_002)).decode()
    assert text == b"".join(index(reversed(pkgs), header, 1_700_000_002)).decode()
    head, *entries = text.removesuffix("\n\n").split("\n\n")
    assert head.splitlines() == [
        "ARCH: amd64", "CHOST: x86_64-pc-linux-gnu", "PACKAGES: 5", "TIMESTAMP: 1700000002",
        "VERSION: 0", "REPO: gentoo",
    ]  # fmt: skip
    assert [entry.split("PATH: ")[1].split("\n")[0].split("/")[-1] for entry in entries] == [
        "openssl-10-1.gpkg.tar", "openssl-2-1.gpkg.tar", "openssl-3-1.gpkg.tar",
        "openssl-3.2.0-r1-1.gpkg.tar", "openssl-3.2.0-r1-3.gpkg.tar",
    ]  # fmt: skip
    assert entries[0].splitlines() == [
        "BUILD_ID: 1", "BUILD_TIME: 1700000001", "CPV: dev-libs/openssl-10", "IUSE: +asm fips test",
        "KEYWORDS: amd64 ~arm64", f"MD5: {FILE.md5}",
        "PATH: dev-libs/openssl/openssl-10-1.gpkg.tar",
        "RDEPEND: app/all", f"SHA1: {FILE.sha1}", "SIZE: 10240", "MTIME: 1700000000",
    ]  # fmt: skip
    assert "REPO: gentoo" in b"".join(index(pkgs, {"REPO": "mine"}, 1)).decode()


@pytest.mark.parametrize("header", [{"A B": "x"}, {"A": "x\nPACKAGES: 9"}, {"A\n": "x"}, {"": "x"}])
def test_a_header_that_no_line_can_hold_is_refused(header: dict[str, str]) -> None:
    with pytest.raises(Invalid, match="line of the index"):
        [*index([], header, 1)]


def test_each_instance_has_a_place_of_its_own() -> None:
    one = pkg(BUILD_ID="1")
    assert placed(one, []) == one
    assert placed(one, [one]).build_id == 2
    assert placed(one, [one, msgspec.structs.replace(one, build_id=7)]).build_id == 8
    assert placed(one, [pkg(PF="openssl-3", BUILD_ID="1")]) == one
    assert placed(pkg(BUILD_ID=""), []).build_id == 1
    assert path_of(pkg(BUILD_ID="")) == "dev-libs/openssl-3.2.0-r1.gpkg.tar"
    assert path_of(msgspec.structs.replace(one, format="xpak")).endswith("-r1-1.xpak")


@pytest.mark.parametrize(
    ("text", "use", "meant"),
    [
        ("a/b  c/d", "", "a/b  c/d"),
        ("x? ( a/b )", "x", "a/b"),
        ("x? ( a/b )", "", ""),
        ("!x? ( a/b ) c/d", "x", "c/d"),
        ("!x? ( a/b ) c/d", "", "a/b c/d"),
        ("x? ( y? ( a/b ) c/d )", "x", "c/d"),
        ("|| ( x? ( a/b ) c/d )", "", "|| ( c/d )"),
        ("|| ( x? ( a/b e/f ) c/d )", "x", "|| ( a/b e/f c/d )"),
        ("|| ( x? ( ( a/b e/f ) ) c/d )", "x", "|| ( ( a/b e/f ) c/d )"),
        ("?? ( a x? ( b ) )", "x", "?? ( a b )"),
        (">=a/b-1:=[x?]", "", ">=a/b-1:=[x?]"),
    ],
)
def test_conditions_on_use_flags_are_decided(text: str, use: str, meant: str) -> None:
    assert reduced(text, frozenset(use.split())) == meant


def test_a_dependency_nested_without_end_is_refused() -> None:
    with pytest.raises(Invalid, match="nested"):
        reduced("a? ( " * 1000 + ") " * 1000, frozenset("a"))


def wanted(**more: object) -> Wanted:
    return replace(Wanted("dev-libs/openssl"), **more)


def test_what_fits_needs_no_words() -> None:
    fits = wanted(
        version="3.2.0-r1", slot="0", use={"asm": True, "fips": False, "X": True},
        chost="x86_64-pc-linux-gnu", keywords=frozenset({"amd64"}),
        flags={"CFLAGS": "-O2  -pipe"},
    )  # fmt: skip
    assert explain(fits, [pkg(PF="openssl-1"), pkg()]) == []
    assert explain(wanted(), [pkg()]) == []
    assert explain(wanted(slot="0/3", accepts=lambda version: version > "3"), [pkg()]) == []


def test_nothing_of_that_name_or_version_is_said_so() -> None:
    assert explain(wanted(), [pkg(PF="openssl-compat-1")]) == [
        "there is no binary package of dev-libs/openssl"
    ]
    there = [pkg(PF="openssl-1"), pkg(), pkg(BUILD_ID="4")]
    assert explain(wanted(version="4"), there) == [
        "there is no binary package of dev-libs/openssl in version 4, only in 1, 3.2.0-r1"
    ]
    assert "and 5 more" in explain(
        wanted(version="x"), [pkg(PF=f"openssl-{n}") for n in range(EXPLAINED_MAX + 5)]
    )[0]  # fmt: skip


def test_every_difference_is_named_the_nearest_package_first() -> None:
    near, far = pkg(), pkg(BUILD_ID="4", USE="fips", CHOST="", SLOT="1", KEYWORDS="~amd64 -arm")
    host = wanted(
        slot="0", use={"asm": True, "fips": True}, chost="x86_64-pc-linux-gnu",
        keywords=frozenset({"amd64", "arm"}), flags={"CFLAGS": "-O3"},
    )  # fmt: skip
    assert explain(host, [far, near]) == [
        "dev-libs/openssl-3.2.0-r1 (build 3): USE flag fips is off, wanted on; "
        'it is built with CFLAGS "-O2 -pipe", the host has "-O3" '
        "(Portage would install it all the same)",
        "dev-libs/openssl-3.2.0-r1 (build 4): it is for slot 1, wanted is 0; "
        "USE flag asm is off, wanted on; "
        "it is built for CHOST none, the host is x86_64-pc-linux-gnu; "
        "its keywords are ~amd64 -arm, accepted are amd64 arm; "
        'it is built with CFLAGS "-O2 -pipe", the host has "-O3" '
        "(Portage would install it all the same)",
    ]
    many = [pkg(BUILD_ID=str(n)) for n in range(1, 60)]
    lines = explain(host, many)
    assert len(lines) == EXPLAINED_MAX + 1
    assert lines[-1] == f"and {59 - EXPLAINED_MAX} more that differ further"


@pytest.mark.parametrize(
    ("keywords", "accepted", "fits"),
    [
        ("amd64", "amd64", True), ("~amd64", "amd64", False), ("~amd64", "~amd64", True),
        ("amd64", "~amd64", True), ("", "amd64", False), ("", "**", True), ("~arm", "~*", True),
        ("arm", "*", True), ("~arm", "*", False), ("-*", "~*", False), ("", "", False),
    ],
)  # fmt: skip
def test_keywords_are_accepted_as_portage_does(keywords: str, accepted: str, fits: bool) -> None:
    host = wanted(keywords=frozenset(accepted.split()))
    assert (explain(host, [pkg(KEYWORDS=keywords)]) == []) is fits
