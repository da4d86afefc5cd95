"""This host's Portage: a real one with a tree of the tests' own, asked and made to build."""

# ruff: noqa: ASYNC240 - what is watched here are files

from __future__ import annotations

import functools
import gzip
import http.server
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from swarmd.domain.build_order import Edge, acyclic
from swarmd.domain.errors import Busy, Invalid, NotFound, SwarmError, TooLarge, Unavailable
from swarmd.domain.packages import parse, split
from swarmd.drivers import portage
from swarmd.drivers.portage import Missing, Planned, Portage, PortageSettings, find
from swarmd.drivers.portage_builds import (
    Built,
    Failed,
    FailureKind,
    build_command,
    build_log,
    find_packages,
    is_of,
    packages_dir,
    prepare_staging,
    read_outcome,
)
from tests.drivers.runners import client, data_directory, order, run
from tests.parts import need
from tests.portage import Host, build, lay_host, lay_overlay

pytestmark = pytest.mark.needs("root", "portage")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    need("root", "portage")
    folder = tmp_path_factory.mktemp("portage")
    tree = lay_overlay(folder / "tree")
    for version in ("1.0", "1.2", "1.10"):
        tree.ebuild(f"app-misc/hello-{version}")
    tree.ebuild("app-misc/hello-2.0", keywords="~amd64")
    tree.ebuild("app-misc/lib-1")
    tree.ebuild("app-misc/extra-1", BDEPEND="|| ( app-misc/nowhere >=app-misc/hello-1.1 )")
    tree.ebuild("virtual/lib-0", compile="", install="", RDEPEND="app-misc/lib")
    needs = "app-misc/hello loud? ( app-misc/extra ) !loud? ( app-misc/lib )"
    tree.ebuild("app-misc/greeter-2.1", RDEPEND=needs, DEPEND="virtual/lib")
    tree.ebuild("app-misc/egg-1", RDEPEND="app-misc/hen")
    tree.ebuild("app-misc/hen-1", DEPEND="app-misc/egg !app-misc/hello")
    tree.ebuild("app-misc/friend-1", RDEPEND="app-misc/lib")
    tree.ebuild("app-misc/needy-1", DEPEND="app-misc/lib")
    tree.ebuild("app-misc/unlucky-1", DEPEND="app-misc/broken")
    tree.ebuild("app-misc/lost-1", DEPEND="app-misc/nowhere")
    tree.ebuild("app-misc/picky-1", DEPEND="app-misc/lib[-loud]")
    tree.ebuild("app-misc/either-1", IUSE="a b", REQUIRED_USE="^^ ( a b )")
    tree.ebuild("app-misc/hidden-1")
    tree.ebuild("app-misc/behind-1", DEPEND="app-misc/hidden")
    tree.ebuild("app-misc/owned-1", license="Strange")
    tree.ebuild("app-misc/broken-1", compile="gcc nowhere.c -o x || die")
    tree.ebuild("app-misc/empty-1", install="dobin nothing")
    tree.ebuild("app-misc/wrong-1", compile="if then")
    tree.ebuild("app-misc/full-1", compile='echo "cc: No space left on device"; die')
    compile = "gcc a.c -o ${PN} || die"
    for name in ("source", "tampered", "longer", "gone", "unlisted"):
        file = f"{name}-1.tar.gz"
        tree.ebuild(f"app-misc/{name}-1", src_uri=f"mirror://gentoo/{file}", compile=compile)
        if name != "unlisted":
            archive = tree.distfile(f"app-misc/{name}", file, {"a.c": "int main(){return 0;}"})
            data = archive.read_bytes()
            if name == "tampered":
                archive.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            elif name == "longer":
                archive.write_bytes(data + b"x")
            elif name == "gone":
                archive.unlink()
    tree.mask("app-misc/hidden")
    tree.system("app-misc/lib")
    host = lay_host(folder / "builder", tree)
    host.world("app-misc/hello", "app-misc/greeter", "app-misc/removed")
    return host


@pytest.fixture
async def asked(host: Host) -> Portage:
    found = await find(host.settings())
    assert isinstance(found, Portage), found
    return found


async def test_portage_is_found_with_what_it_builds_for(host: Host, asked: Portage) -> None:
    said = asked.description
    assert said.version[0].isdigit()
    assert said.settings["ARCH"] == "amd64" and said.settings["CFLAGS"] == "-O2 -pipe"
    assert said.timestamp == ""
    stamp = host.overlay.path / "metadata" / "timestamp.chk"
    stamp.write_text("Thu, 12 Feb 2026 00:30:01 +0000\n")
    try:
        assert (await asked.describe()).timestamp == "Thu, 12 Feb 2026 00:30:01 +0000"
    finally:
        stamp.unlink()


async def test_a_tree_is_brought_up_to_date_in_bounded_time(
    host: Host, asked: Portage, tmp_path: Path
) -> None:
    stamp, at = host.overlay.path / "metadata" / "timestamp.chk", "Fri, 13 Feb 2026 00:30:01 +0000"
    try:
        said = await asked.sync(("sh", "-c", f"echo {at!r} > {stamp}"), 20)
        assert said.timestamp == at == asked.description.timestamp
    finally:
        stamp.unlink()
    with pytest.raises(Unavailable, match="ended with 3: the mirror is away"):
        await asked.sync(("sh", "-c", "echo the mirror is away >&2; exit 3"), 20)
    pid = tmp_path / "pid"
    with pytest.raises(Unavailable, match="no answer within 3 s"):
        await asked.sync(("sh", "-c", f"sleep 60 & echo $! > {pid}; wait"), 3)
    with suppress(ProcessLookupError), trio.fail_after(60):
        left = os.pidfd_open(int(pid.read_text()))
        try:
            await trio.lowlevel.wait_readable(left)  # it is killed, and may not have ended yet
        finally:
            os.close(left)


async def test_without_an_order_there_is_still_an_answer(host: Host, tmp_path: Path) -> None:
    says = tmp_path / "python"
    said = '{"answers": [{"packages": ["a/b-1"]}], "unordered": "KeyError: x"}'
    says.write_text(f"#!/bin/sh\ncat > /dev/null\necho '{said}'\n")
    says.chmod(0o755)
    asked = Portage(host.settings(), (str(says),), portage.Description("3"))
    planned = await asked.plan([parse("a/b")])
    assert planned.resolved[0].packages == ("a/b-1",)
    assert (planned.edges, planned.unordered) == ((), "KeyError: x")


async def test_an_order_that_takes_too_long_is_left_out(
    asked: Portage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portage, "ORDER_PART", 0.0)
    planned = await asked.plan([parse("app-misc/greeter"), parse("app-misc/hello")])
    assert [each.packages for each in planned.resolved] == [
        ("app-misc/greeter-2.1",), ("app-misc/hello-1.10",),
    ]  # fmt: skip
    assert planned.edges == () and "it takes too long" in planned.unordered


async def test_where_there_is_no_portage_the_words_say_what_to_do(
    host: Host, tmp_path: Path
) -> None:
    def script(text: str) -> tuple[str, ...]:
        file = tmp_path / f"emerge-{len(os.listdir(tmp_path))}"
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
        return (str(file),)

    there = host.settings()
    wrong = {
        "no program 'emerge-nowhere' on PATH": replace(there, command=("emerge-nowhere",)),
        "is empty; name emerge": replace(there, command=()),
        "says nothing of Portage": replace(there, command=script("echo Paludis 3")),
        "ended with 3: it is broken": replace(
            there, command=script("echo it is broken >&2;exit 3")
        ),
        "no answer within 0.2 s": replace(
            there, command=script("sleep 60 & sleep 60"), query_timeout_s=0.2
        ),
        "name it as the builder's python (/bin/true": replace(there, python=("/bin/true",)),
    }
    for words, settings in wrong.items():
        with trio.fail_after(10):
            found = await find(settings)
        assert isinstance(found, Missing) and words in found.why


async def test_names_stand_for_the_newest_that_this_host_accepts(asked: Portage) -> None:
    stands_for = {
        "app-misc/hello": "app-misc/hello-1.10",
        "app-misc/hello-1.2": "app-misc/hello-1.2",
        "<app-misc/hello-1.10": "app-misc/hello-1.2",
        "=app-misc/hello-1*": "app-misc/hello-1.10",
        "app-misc/hello:0::swarmrepo[loud]": "app-misc/hello-1.10",
        "app-misc/hello-2.0": "app-misc/hello-2.0",
        "app-misc/hidden-1": "app-misc/hidden-1",
    }
    answers = (await asked.plan([parse(text) for text in stands_for])).resolved
    assert [answer.packages for answer in answers] == [(cpv,) for cpv in stands_for.values()]
    assert [answer.masked for answer in answers] == [None] * 5 + ["~amd64 keyword", "package.mask"]
    assert await asked.plan([]) == Planned((), ())


async def test_what_the_tree_does_not_have_is_told_name_by_name(asked: Portage) -> None:
    refused = {
        "app-misc/helo": (NotFound, "did you mean app-misc/hello"),
        "sys-apps/hello": (NotFound, "did you mean app-misc/hello?"),
        "zz/qqqqqq": (NotFound, "emerge --search"),
        "app-misc/hello-9": (NotFound, "it has app-misc/hello-2.0, app-misc/hello-1.10"),
        "app-misc/hello:1": (NotFound, "it has app-misc/hello-2.0"),
        "app-misc/hidden": (Invalid, "app-misc/hidden-1, by package.mask"),
        "app-misc/owned": (Invalid, "by Strange license"),
        "@wold": (NotFound, "did you mean world?"),
    }
    answers = (await asked.plan([*map(parse, refused), parse("app-misc/lib")])).resolved
    for answer, (kind, words) in zip(answers, refused.values(), strict=False):
        assert type(answer.error) is kind and words in answer.error.message
        assert answer.packages == ()
    assert answers[-1].packages == ("app-misc/lib-1",)


async def test_sets_expand_and_say_what_of_them_is_gone(asked: Portage) -> None:
    planned = await asked.plan([parse("@world"), parse("@system")])
    world, system = planned.resolved
    assert world.packages == ("app-misc/greeter-2.1", "app-misc/hello-1.10", "app-misc/lib-1")
    assert world.error is None and len(world.notes) == 1
    assert world.notes[0].startswith("there is no package app-misc/removed in the tree")
    assert system.packages == ("app-misc/lib-1",)


async def test_a_request_may_not_stand_for_too_much(
    asked: Portage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portage, "PACKAGES_MAX", 2)
    planned = await asked.plan([parse(t) for t in ("app-misc/lib", "@world", "a/b")])
    one, world, other = planned.resolved
    assert one.error is None and isinstance(world.error, TooLarge)
    assert isinstance(other.error, TooLarge)
    with pytest.raises(TooLarge):
        await asked.plan([], ["a/b-1", "a/b-2", "a/b-3"])


async def test_packages_come_after_what_they_need(asked: Portage) -> None:
    given = ["greeter-2.1", "hello-1.10", "extra-1", "lib-1", "hello-1.0", "nowhere-7", "wrong-1"]
    edges = (await asked.plan([], [f"app-misc/{name}" for name in given])).edges
    assert edges == (
        Edge("app-misc/extra-1", "app-misc/greeter-2.1", False),
        Edge("app-misc/hello-1.0", "app-misc/greeter-2.1", False),
        Edge("app-misc/hello-1.10", "app-misc/extra-1", True),
        Edge("app-misc/hello-1.10", "app-misc/greeter-2.1", False),
        Edge("app-misc/lib-1", "app-misc/greeter-2.1", True),  # by way of virtual/lib
    )
    # Of what is wanted, and of what is queued, as if it were one.
    circle = (
        await asked.plan([parse("app-misc/hen")], ["app-misc/egg-1", "app-misc/hello-1.0"])
    ).edges
    built, run = Edge("app-misc/egg-1", "app-misc/hen-1", True), circle[1]
    assert circle == (built, Edge("app-misc/hen-1", "app-misc/egg-1", False))
    assert acyclic(circle) == ((built,), (run,))
    assert await asked.plan([], ["app-misc/hen-1"]) == Planned((), ())
    with pytest.raises(Invalid):
        await asked.plan([], ["app-misc/hen-1", "app-misc/egg"])


async def test_answers_that_cannot_be_believed_are_refused(host: Host, tmp_path: Path) -> None:
    liar = tmp_path / "python"

    async def ask(text: str, **more: float) -> None:
        liar.write_text(f"#!/bin/sh\ncat > /dev/null\n{text}\n")
        liar.chmod(0o755)
        settings = replace(host.settings(), **more)  # type: ignore[arg-type]
        asked = Portage(settings, (str(liar),), portage.Description("3"))
        with trio.fail_after(20):
            await asked.plan([parse("a/b")], ["a/b-1", "a/c-1"])

    for text, words in (
        ("echo nonsense", "is not understood"),
        ("printf '\\377'", "is not understood"),
        ("printf '[%.0s' $(seq 100000)", "is not understood"),
        ("echo '{\"answers\": []}'", "answered 0 of 1"),
        ("echo '{\"answers\": [{\"packages\": [\"a/b-1\"]}], \"edges\": [[\"x\", \"y\", true]]}'",
         "not asked for"),
        ("exec yes", "printed more than"),
        ("yes >&2 & sleep 0.2; kill $!; exit 5", "ended with 5: y"),
        ("sleep 60 & echo $! > pid; wait", "no answer within"),
    ):  # fmt: skip
        text = text.replace("> pid", f"> {tmp_path / 'pid'}")
        with pytest.raises(Unavailable, match=words):
            await ask(text, query_timeout_s=1 if "sleep 60" in text else 15)
    stat = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    with trio.fail_after(10), suppress(OSError):
        while b") Z " not in stat.read_bytes():  # told to end, it takes a turn of its own to do so
            await trio.sleep(0.01)


async def test_so_many_may_ask_at_once(host: Host, tmp_path: Path) -> None:
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nsleep 60\n")
    slow.chmod(0o755)
    asked = Portage(host.settings(), (str(slow),), portage.Description("3"))
    async with trio.open_nursery() as nursery:
        for _ in range(portage.WAITING_MAX + 1):
            nursery.start_soon(asked.plan, [parse("a/b")])
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Busy):
            await asked.plan([parse("a/b")])
        nursery.cancel_scope.cancel()


async def built(
    host: Host, cpv: str, folder: Path, *, settings: PortageSettings | None = None
) -> Built | Failed:
    """As a runner would do it: in a session of its own, with nothing but that environment."""
    settings = settings or host.settings()
    staging = folder / "staging"
    prepare_staging(staging)
    argv, env = build_command(settings, cpv, staging)
    with trio.fail_after(120):
        done = await trio.run_process(
            list(argv), env=env, capture_stdout=True, check=False, start_new_session=True,
            cwd="/", stdin=subprocess.DEVNULL,
        )  # fmt: skip
    return await trio.to_thread.run_sync(
        read_outcome, settings, cpv, staging, done.returncode, done.stdout
    )


async def test_a_package_is_built_by_the_runner_and_its_output_streams(host: Host) -> None:
    cpv = "app-misc/source-1"
    with data_directory() as folder:
        staging = folder / "staging"
        prepare_staging(staging)
        argv, env = build_command(host.settings(), cpv, staging)
        async with client(folder) as runner:
            job = order(folder, *argv, env=env, timeout_ms=120_000)
            end = await run(runner, job)
        said = Path(job.dir, "stdout").read_bytes()
        assert end.exit_code == 0, said
        assert b">>> Compiling source" in said and not Path(job.dir, "stderr").exists()
        outcome = read_outcome(host.settings(), cpv, staging, end.exit_code, said)
        assert isinstance(outcome, Built) and outcome.others == ()
        (package,) = outcome.packages
        assert package == packages_dir(staging) / "app-misc/source/source-1-1.gpkg.tar"
        assert not list(host.pkgdir.iterdir())  # the host's own is left alone


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("hidden-1", FailureKind.MASKED, "app-misc/hidden-1::swarmrepo by package.mask"),
        ("hello-2.0", FailureKind.MASKED, "by ~amd64 keyword"),
        ("owned-1", FailureKind.MASKED, "by Strange license"),
        ("behind-1", FailureKind.MASKED, "app-misc/hidden is masked"),
        ("nowhere-7", FailureKind.UNKNOWN, "does not have app-misc/nowhere-7"),
        ("lost-1", FailureKind.DEPENDENCY, "needs app-misc/nowhere, which the tree"),
        ("needy-1", FailureKind.DEPENDENCY, "has to have app-misc/lib-1 installed"),
        ("picky-1", FailureKind.USE, "app-misc/lib[-loud]"),
        ("either-1", FailureKind.USE, "exactly-one-of ( a b )"),
        ("broken-1", FailureKind.PHASE, "compile phase: cc1: fatal error: nowhere.c"),
        ("empty-1", FailureKind.PHASE, "install phase: dobin: nothing does not exist"),
        ("wrong-1", FailureKind.PHASE, "depend phase"),
        ("full-1", FailureKind.DISK, "no space left"),
        ("tampered-1", FailureKind.DIGEST, "tampered-1.tar.gz is spoilt: Failed on BLAKE2B"),
        ("longer-1", FailureKind.DIGEST, "longer-1.tar.gz is spoilt: Filesize does not match"),
        ("unlisted-1", FailureKind.DIGEST, "unlisted-1.tar.gz is spoilt: Insufficient data"),
        ("gone-1", FailureKind.FETCH, "gone-1.tar.gz cannot be fetched"),
    ],
)
async def test_failures_are_told_apart(
    host: Host, tmp_path: Path, name: str, kind: FailureKind, words: str
) -> None:
    outcome = await built(host, f"app-misc/{name}", tmp_path)
    assert isinstance(outcome, Failed)
    assert (outcome.kind, outcome.masked) == (kind, kind is FailureKind.MASKED), outcome
    assert words in outcome.reason and not outcome.missing
    assert outcome.log
    if name == "broken-1":
        assert outcome.phase == "compile"
        assert b"nowhere.c" in outcome.log and outcome.log.startswith(b" * Package:")


async def test_a_log_is_kept_to_its_bound(host: Host, tmp_path: Path) -> None:
    settings = replace(host.settings(), log_bytes_max=100)
    outcome = await built(host, "app-misc/broken-1", tmp_path, settings=settings)
    assert isinstance(outcome, Failed) and len(outcome.log) == 100


async def test_a_virtual_package_needs_no_file(host: Host, tmp_path: Path) -> None:
    settings = replace(host.settings(), install_dependencies=False)
    outcome = await built(host, "virtual/lib-0", tmp_path, settings=settings)
    assert isinstance(outcome, Built)
    assert read_outcome(settings, "virtual/lib-0", tmp_path / "none", 0, b"") == Built(())


async def test_success_without_a_package_is_none(host: Host, tmp_path: Path) -> None:
    settings = replace(host.settings(), options=("--pretend",))
    outcome = await built(host, "app-misc/hello-1.0", tmp_path, settings=settings)
    assert isinstance(outcome, Failed)
    assert outcome.kind is FailureKind.NO_PACKAGE and outcome.missing


async def test_what_a_build_needs_is_installed_where_that_is_wished(
    host: Host, tmp_path: Path
) -> None:
    own = lay_host(tmp_path / "own", host.overlay)
    settings = own.settings(install_dependencies=True)
    outcome = await built(own, "app-misc/needy-1", tmp_path, settings=settings)
    assert isinstance(outcome, Built), outcome
    assert [path.name for path in outcome.packages] == ["needy-1-1.gpkg.tar"]
    assert outcome.others == ()
    assert (own.root / "usr/bin/lib").is_file() and not (own.root / "usr/bin/needy").exists()
    (tmp_path / "again").mkdir()
    outcome = await built(own, "app-misc/unlucky-1", tmp_path / "again", settings=settings)
    assert isinstance(outcome, Failed) and outcome.kind is FailureKind.DEPENDENCY
    assert outcome.reason.startswith("app-misc/broken-1, which it needs, failed in its compile")


async def test_both_layouts_of_binary_packages_are_known(host: Host, tmp_path: Path) -> None:
    flat = lay_host(
        tmp_path / "flat", host.overlay, features="-binpkg-multi-instance",
        make_conf='BINPKG_FORMAT="xpak"\nBINPKG_COMPRESS="gzip"',
    )  # fmt: skip
    outcome = await built(flat, "app-misc/hello-1.10", tmp_path)
    assert isinstance(outcome, Built), outcome
    assert [path.relative_to(packages_dir(tmp_path / "staging")) for path in outcome.packages] == [
        Path("app-misc/hello-1.10.tbz2")
    ]


def test_hosts_stand_side_by_side_and_install_from_each_other(host: Host, tmp_path: Path) -> None:
    maker = lay_host(tmp_path / "maker", host.overlay)
    build(maker, "app-misc/lib-1", "app-misc/friend-1")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(maker.pkgdir))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fresh = lay_host(
            tmp_path / "fresh", host.overlay, binhost=f"http://127.0.0.1:{server.server_port}"
        )
        done = fresh.emerge("--getbinpkgonly", "--oneshot", "app-misc/friend")
        server.shutdown()
    assert done.returncode == 0, done.stdout
    for name in ("friend", "lib"):
        said = subprocess.run([fresh.root / "usr/bin" / name], capture_output=True, check=True)
        assert said.stdout == b"hello LOUD\n"
        assert not (maker.root / "usr/bin" / name).exists()


def test_nothing_but_packages_is_taken_for_one(tmp_path: Path) -> None:
    big = b"x" * 1024
    cpv = split("app-misc/hello-1")
    own = {
        "app-misc/hello/hello-1-1.gpkg.tar", "app-misc/hello/hello-1-23.xpak",
        "app-misc/hello-1.tbz2", "app-misc/hello-1.gpkg.tar",
    }  # fmt: skip
    others = {
        "app-misc/hello/hello-1-r1-1.gpkg.tar", "app-misc/hello/hello-1.gpkg.tar",
        "app-misc/hello/hello-1-.gpkg.tar", "app-misc/hello/hello-1-x.gpkg.tar",
        "app-misc/hello-1-1.gpkg.tar", "app-misc/hello-1.0.tbz2", "sys-apps/hello-1.tbz2",
        "sys-apps/hello/hello-1-1.gpkg.tar", "app-misc/other/hello-1-1.gpkg.tar",
    }  # fmt: skip
    for name in (*own, *others, "Packages", "app-misc/hello-1.tbz2.partial", "app-misc/a.tar"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(big)
    (tmp_path / "app-misc/small-1.tbz2").write_bytes(big[1:])
    (tmp_path / "app-misc/link-1.tbz2").symlink_to(tmp_path / "app-misc/hello-1.tbz2")
    (tmp_path / "linked").symlink_to(tmp_path / "app-misc")
    os.mkfifo(tmp_path / "app-misc/pipe-1.tbz2")
    found = {str(path.relative_to(tmp_path)): path for path in find_packages(tmp_path)}
    assert set(found) == own | others
    assert {name for name, path in found.items() if is_of(path, cpv)} == own


def test_a_log_is_read_only_where_it_is_one(tmp_path: Path) -> None:
    cpv = split("app-misc/hello-1")
    logs = tmp_path / "log"
    logs.mkdir()
    assert build_log(tmp_path, cpv, 100) == b""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (logs / "app-misc:hello-1:20260212-000000.log").symlink_to(secret)
    os.mkfifo(logs / "app-misc:hello-1:20260212-000001.log")
    (logs / "app-misc:hello-10:20260212-000002.log").write_text("another's")
    assert build_log(tmp_path, cpv, 100) == b""
    packed = logs / "app-misc:hello-1:20260212-000003.log.gz"
    packed.write_bytes(gzip.compress(b"a" * (8 << 20) + b"the end"))
    assert build_log(tmp_path, cpv, 9) == b"aathe end"
    packed.write_bytes(packed.read_bytes()[:1000])
    assert set(build_log(tmp_path, cpv, 9)) == {ord("a")}
    packed.unlink()
    plain = logs / "build" / "app-misc" / "hello-1:20260212-000004.log"
    plain.parent.mkdir(parents=True)
    plain.write_text("x" * 200 + "end")
    assert build_log(tmp_path, cpv, 5) == b"xxend"


def test_a_command_takes_nothing_from_this_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ADMIN_KEY", "secret")
    settings = PortageSettings(
        ("nice", "emerge"), ("--jobs=2",), {"USE": "x", "FEATURES": "ccache"}
    )
    argv, env = build_command(settings, "a/b-1", tmp_path)
    assert argv[:2] == ("/bin/sh", "-c") and argv[2].endswith(" --jobs=2 --buildpkgonly"
        " --oneshot --usepkg=n --getbinpkg=n =a/b-1")  # fmt: skip
    assert "secret" not in env.values() and env["USE"] == "x"
    assert env["FEATURES"].startswith("ccache ") and env["PKGDIR"] == f"{tmp_path}/packages"
    for wrong in ("a/b", "a/b-1;reboot", "--sync", "@world", ">=a/b-1", "a/b-1 c/d-1"):
        with pytest.raises(SwarmError):
            build_command(settings, wrong, tmp_path)


def test_the_child_imports_nothing_of_ours() -> None:
    script = Path(portage.__file__).with_name("portage_inside.py").read_text()
    code = f"import sys\nsys.modules['swarmd'] = None\nexec({script!r}, {{'__name__': 'x'}})"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
