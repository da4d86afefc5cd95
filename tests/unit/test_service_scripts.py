"""Services as they are installed: OpenRC's scripts say what systemd's units say, in any shell, and
what was told to go, or does not know its words, is not started again."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmd.cli.main import cli
from tests.cli import ROOT

SCRIPTS = ROOT / "packaging" / "openrc"
SUPERVISED = SCRIPTS / "supervised"
SHELLS = [
    shell for shell in (["sh"], ["bash"], ["dash"], ["busybox", "ash"]) if shutil.which(shell[0])
]
OPTIONS = {
    "swarmd": ("SWARMD_OPTIONS", "--name n1 --bind 127.0.0.1", "up"),
    "swarm-drone": ("DRONE_OPTIONS", "--url http://n1:8100 --sync 'emerge --sync -q'", "drone"),
}
SERVICES = [*OPTIONS]

in_any_shell = pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[-1])
each_service = pytest.mark.parametrize("service", SERVICES)


def unit(service: str) -> dict[str, str]:
    """What the systemd unit says, by name."""
    lines = (ROOT / "systemd" / f"{service}.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"[A-Za-z]+=", line))


def words(shell: list[str], service: str, *names: str) -> list[str]:
    """What the script says, by name, as openrc-run would start it."""
    option, said, _ = OPTIONS[service]
    show = "; ".join(f'printf "%s\\n" "${name}"' for name in names)
    script = f". {SCRIPTS}/{service}.confd; {option}=$1; . {SCRIPTS}/{service}; {show}"
    env = {"PATH": os.environ["PATH"], "RC_SVCNAME": service}
    done = subprocess.run(
        [*shell, "-euc", script, "sh", said], env=env, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout.splitlines()


@in_any_shell
def test_every_shell_understands_the_scripts(shell: list[str]) -> None:
    for script in sorted(SCRIPTS.iterdir()):
        subprocess.run([*shell, "-n", str(script)], check=True)


@each_service
@in_any_shell
def test_a_script_starts_what_the_unit_starts(shell: list[str], service: str) -> None:
    command, args, user = words(shell, service, "command", "command_args", "{command_user-}")
    of_unit = unit(service)
    assert not user and "User" not in of_unit, "both are root's"
    # The script's words go through `eval`, the unit's through systemd's own splitting.
    said_service, secrets, *started = shlex.split(args)
    option, said, _ = OPTIONS[service]
    expected = shlex.split(of_unit["ExecStart"].replace(f"${option}", said))
    assert started[: len(expected)] == expected
    assert started[len(expected) :] in ([], shlex.split(said))
    assert said_service == service
    assert secrets == of_unit["EnvironmentFile"].removeprefix("-")
    assert command == "/usr/local/lib/swarmd/supervised"


@each_service
def test_what_a_script_starts_is_a_command_with_options_that_it_has(service: str) -> None:
    (args,) = words(["sh"], service, "command_args")
    _, _, _, command, *given = shlex.split(args)
    found = cli.get_command(None, command)  # type: ignore[arg-type]
    assert command == OPTIONS[service][2] and found is not None
    found.make_context(command, given)


@each_service
def test_a_script_waits_as_long_as_the_unit(service: str) -> None:
    retry, again_s, tries = words(["sh"], service, "retry", "respawn_delay", "respawn_max")
    of_unit = unit(service)
    assert retry == f"TERM/{of_unit['TimeoutStopSec']}/KILL/5"
    assert again_s == of_unit["RestartSec"]
    assert (tries, of_unit["StartLimitIntervalSec"]) == ("0", "0"), "it is never given up"
    assert of_unit["RestartPreventExitStatus"] == "2"


@each_service
def test_a_script_makes_the_directory_of_the_unit(service: str) -> None:
    made = subprocess.run(
        ["sh", "-euc", f'checkpath() {{ echo "$@"; }}; . {SCRIPTS}/{service}; start_pre'],
        env={"PATH": os.environ["PATH"], "RC_SVCNAME": service, OPTIONS[service][0]: ""},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    of_unit = unit(service)
    mode, folder = of_unit["StateDirectoryMode"], of_unit["StateDirectory"]
    assert made == f"--directory --mode {mode} /var/lib/{folder}\n"


class Supervised:
    """A program below what supervise-daemon starts; what rc-service is told is noted."""

    def __init__(self, folder: Path, shell: list[str]) -> None:
        self._shell = shell
        self._folder = folder
        self.told, self.secrets = folder / "told", folder / "secrets"
        fake = folder / "rc-service"
        fake.write_text(f'#!/bin/sh\necho "$@" > {self.told}.new; mv {self.told}.new {self.told}\n')
        fake.chmod(0o755)
        self._started: list[subprocess.Popen[str]] = []

    def start(self, script: str) -> subprocess.Popen[str]:
        env = {"PATH": f"{self._folder}:{os.environ['PATH']}", "KEPT": "as it was"}
        started = subprocess.Popen(
            [*self._shell, SUPERVISED, "a-service", self.secrets, "sh", "-c", script, "a b"],
            env=env, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._started.append(started)
        return started

    def is_told(self) -> str:
        deadline = time.monotonic() + 20
        while not self.told.exists():
            assert time.monotonic() < deadline, "rc-service was told nothing"
            time.sleep(0.02)
        return self.told.read_text()

    def end(self) -> None:
        for each in self._started:
            each.kill()
            each.communicate(timeout=20)


@pytest.fixture(params=SHELLS, ids=lambda shell: shell[-1])
def supervised(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Supervised]:
    found = Supervised(tmp_path, request.param)
    yield found
    found.end()


def test_a_program_has_its_words_and_the_secrets_as_they_stand(supervised: Supervised) -> None:
    supervised.secrets.write_text('# X=1\n\nKEY=a=b "c" $d=\nno name=2\nNOTHING\n9=3\nLAST=`x`')
    out, _ = supervised.start('echo "$0,$KEY,$LAST,$KEPT,$X,$NOTHING"; exit 7').communicate()
    assert out == 'a b,a=b "c" $d=,`x`,as it was,,\n'


def test_one_that_fails_is_left_to_who_starts_it_again(supervised: Supervised) -> None:
    for script, status in (("exit 1", 1), ("kill -9 $$", 137)):
        assert supervised.start(script).wait(20) == status
    assert not supervised.told.exists()


@pytest.mark.parametrize("status", [0, 2])
def test_one_that_was_told_to_go_stays_away(supervised: Supervised, status: int) -> None:
    started = supervised.start(f"exit {status}")
    assert supervised.is_told() == "a-service stop\n"
    assert started.poll() is None, "or it would be started again before it is stopped"
    started.terminate()
    assert started.wait(20) == -signal.SIGTERM


def test_told_to_stop_it_waits_for_the_end_of_the_program(supervised: Supervised) -> None:
    script = 'trap "sleep 0.3; echo ended; exit 0" TERM; echo began; while :; do sleep 0.05; done'
    started = supervised.start(script)
    assert started.stdout is not None and started.stdout.readline() == "began\n"
    started.terminate()
    out, _ = started.communicate(timeout=20)
    assert (out, started.returncode) == ("ended\n", 0)
    assert not supervised.told.exists()


def test_what_is_installed_is_uninstalled_but_for_what_is_yours(tmp_path: Path) -> None:
    to = tmp_path / "to"
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)

    def make(target: str, *more: str) -> set[str]:
        asked = ["make", "-s", "-C", ROOT, target, f"DESTDIR={to}", "PREFIX=/usr", *more]
        subprocess.run(asked, check=True, capture_output=True, timeout=60)
        return {f"/{p.relative_to(to)}" for p in to.rglob("*") if p.is_file()}

    units = {f"/usr/lib/systemd/system/{s}.service" for s in ("swarmd-runner", *SERVICES)}
    laid = make("install", f"BINARY={program}", "OPENRC=")
    kept = {"/etc/swarmd/swarmd.toml", "/etc/swarmd/swarmd.env"}
    documented = {path for path in laid if path.startswith("/usr/share/doc/swarmd/")}
    assert laid - documented == {"/usr/bin/swarmd", *units, *kept}
    laid_too = make("install", f"BINARY={program}", "OPENRC=yes") - laid
    kept_too = {f"/etc/conf.d/{service}" for service in SERVICES}
    scripts = {f"/etc/init.d/{service}" for service in SERVICES}
    assert laid_too == {"/usr/lib/swarmd/supervised", *scripts, *kept_too}
    for path in (*scripts, *units, "/usr/lib/swarmd/supervised"):
        assert "/usr/local/" not in (to / path[1:]).read_text()
        assert bool((to / path[1:]).stat().st_mode & 0o111) == (path not in units)
    (to / "etc/conf.d/swarm-drone").write_text('DRONE_OPTIONS="--url http://n1:8100"\n')
    make("install", f"BINARY={program}", "OPENRC=yes")
    assert make("uninstall", "OPENRC=yes") == kept | kept_too
    assert "n1" in (to / "etc/conf.d/swarm-drone").read_text()
