"""systemd as the first process of a machine of its own, for tests of units.

Namespaces make the machine: its processes, mounts, network, host name and cgroups are its own. Its
root is this machine's under a layer in memory, so what is installed in there is gone with it, and
of what this machine would boot nothing is started. Only v2 cgroups are in there, with those
controllers that this machine's other hierarchies have left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.parts import PARTS, Part

SYSTEMD = Path("/usr/lib/systemd/systemd")
BOOT_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 60.0

_TARGETS = ("sysinit.target", "basic.target", "network-online.target", "shutdown.target")
_INIT = """
set -eu
box=$1 init=$2
mount -t tmpfs -o mode=755 tmpfs "$box"
mkdir "$box/upper" "$box/work" "$box/root"
mount -t overlay -o "lowerdir=/,upperdir=$box/upper,workdir=$box/work" overlay "$box/root"
cd "$box/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for each in null zero full random urandom tty; do
  touch "dev/$each"; mount --bind "/dev/$each" "dev/$each"
done
mkdir dev/shm; mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s /proc/self/fd dev/fd
shift 2
while [ $# -gt 0 ]; do
  mkdir -p "./$1"; mount --bind -o ro "$2" "./$1"; shift 2
done
rm -rf etc/systemd/system var/lib/swarmd etc/swarmd etc/machine-id var/log/journal
mkdir -p etc/systemd/system var/lib
tr -d - < /proc/sys/kernel/random/uuid > etc/machine-id  # without one all services are switched on
for each in TARGETS; do
  printf '[Unit]\\nDescription=%s\\nDefaultDependencies=no\\n' "$each" > "etc/systemd/system/$each"
done
printf '[Unit]\\nAllowIsolate=yes\\nDefaultDependencies=no\\n' > etc/systemd/system/bare.target
ip link set lo up
hostname booted
mkdir -p old
pivot_root . old
exec env -i container=swarmd-tests PATH="$PATH" HOME=/root sh -c '
  umount -l /old; exec "$0" --system --unit=bare.target --log-target=null --show-status=no' "$init"
""".replace("TARGETS", " ".join(_TARGETS))


@dataclass
class Booted:
    """A machine whose first process is systemd."""

    pid: int
    """Of that process, as this machine counts."""

    def command(self, *args: object) -> list[str]:
        return ["nsenter", "--target", str(self.pid), "--mount", "--uts", "--ipc", "--net", "--pid",
                "--cgroup", "--root", "--wd", *map(str, args)]  # fmt: skip

    def run(
        self, *args: object, check: bool = True, timeout_s: float = CALL_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command("env", "-i", f"PATH={os.environ['PATH']}", "HOME=/root", *args),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, (args, done.stdout, done.stderr, self.journal())
        return done

    def out(self, *args: object) -> str:
        return self.run(*args).stdout.strip()

    def show(self, unit: str, name: str) -> str:
        return self.out("systemctl", "show", "--value", f"--property={name}", unit)

    def path(self, inside: str) -> Path:
        """A path in there, as this machine reaches it."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def journal(self) -> str:
        """What its services said; each has a file, for there is no journal."""
        folder = self.path("/var/log/units")
        parts = [f"{f.name}:\n{f.read_text(errors='replace')[-4000:]}" for f in folder.glob("*")]
        return "\n".join(parts)

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def keep_words_of(self, units: Sequence[str]) -> None:
        """Have what these say in a file each."""
        self.path("/var/log/units").mkdir(parents=True, exist_ok=True)
        for unit in units:
            words = (
                f"[Service]\nStandardOutput=append:/var/log/units/{unit}\nStandardError=inherit\n"
            )
            self.write(f"/etc/systemd/system/{unit}.service.d/words.conf", words)


@contextlib.contextmanager
def booted(directory: Path, shared: Mapping[str, Path]) -> Iterator[Booted]:
    """The machine, as long as the block; all its processes end with it. Directories of this machine
    are at the places in there that `shared` names; nothing else of its /tmp is."""
    box = directory / "box"
    box.mkdir()
    cgroup = _make_cgroup(f"swarmd-booted-{os.getpid()}")
    shell = shutil.which("sh")
    assert shell is not None
    binds = [str(item) for pair in shared.items() for item in pair]
    enter = 'echo 0 > "$0/cgroup.procs" && exec "$@"'
    unshare = ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--fork",
               "--kill-child", "--propagation", "private"]  # fmt: skip
    machine = subprocess.Popen(
        [shell, "-c", enter, cgroup, *unshare, shell, "-c", _INIT, "init", box, SYSTEMD, *binds],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        found = Booted(_first_process(machine))
        _wait_until_up(found, machine)
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(machine.pid, signal.SIGKILL)
        machine.wait(CALL_TIMEOUT_S)
        if machine.stdout is not None:
            machine.stdout.close()
        _remove_cgroup(cgroup)


def is_possible() -> bool:
    """Root may make such a machine here, and has what it is made of."""
    if os.geteuid() != 0 or not SYSTEMD.exists() or _unified() is None:
        return False
    if not all(map(shutil.which, ("unshare", "nsenter", "systemctl", "pivot_root", "ip"))):
        return False
    probe = ["unshare", "--mount", "--pid", "--fork", "--cgroup", "--net", "sh", "-c",
             "d=$(mktemp -d); mount -t tmpfs x $d && mkdir $d/u $d/w $d/r $d/c"
             " && mount -t overlay -o lowerdir=/,upperdir=$d/u,workdir=$d/w x $d/r"
             " && mount -t cgroup2 x $d/c; e=$?; umount -lR $d; rmdir $d; exit $e"]  # fmt: skip
    done = subprocess.run(probe, capture_output=True, timeout=20, check=False)
    return done.returncode == 0


PARTS.setdefault(
    "systemd", Part(is_possible, "run as root with systemd, util-linux and iproute2 installed")
)


def _unified() -> Path | None:
    """Where v2 cgroups are mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, at, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(at)
    return None


def _make_cgroup(name: str) -> Path:
    """What the machine takes for the root of all cgroups."""
    mount = _unified()
    assert mount is not None
    (own,) = [i[3:] for i in Path("/proc/self/cgroup").read_text().splitlines() if i[:3] == "0::"]
    path = mount / own.strip("/") / name
    if not path.parent.is_dir():
        path = mount / name
    path.mkdir()
    return path


def _remove_cgroup(path: Path) -> None:
    deadline = time.monotonic() + CALL_TIMEOUT_S
    while path.exists() and time.monotonic() < deadline:
        for folder, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
        time.sleep(0.02)


def _first_process(machine: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    children = Path(f"/proc/{machine.pid}/task/{machine.pid}/children")
    while machine.poll() is None and time.monotonic() < deadline:
        for pid in children.read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                    return int(pid)
        time.sleep(0.02)
    raise AssertionError(f"no systemd was started: {_said(machine)}")


def _wait_until_up(found: Booted, machine: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while machine.poll() is None and time.monotonic() < deadline:
        if found.run("systemctl", "is-active", "bare.target", check=False).returncode == 0:
            return
        time.sleep(0.05)
    raise AssertionError(f"systemd does not come up: {_said(machine)}")


def _said(machine: subprocess.Popen[bytes]) -> str:
    machine.kill()
    assert machine.stdout is not None
    return machine.stdout.read().decode(errors="replace")[-2000:]
