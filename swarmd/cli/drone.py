"""`drone`: a host that runs no node builds packages for a swarm, by its documented HTTP API alone.

It ends with SIGTERM or Ctrl-C: the build is ended, and what it holds goes back.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from swarmd.cli import options
from swarmd.domain.errors import Invalid, SwarmError, instead

if TYPE_CHECKING:
    from swarmd.cli.drone_wire import Place
    from swarmd.drivers.portage import PortageSettings

WORKDIR = Path("/var/lib/swarmd-drone")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,62}")
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+\-]{0,127}")
ID_BYTES_MAX = 1024
BUILD_S_MAX = 7 * 86_400.0


def _place(text: str) -> Place:
    from swarmd.cli.drone_wire import Place

    return Place.of(text)


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise Invalid(f"{text[:80]!r} is no name; write up to 63 letters, digits and . _ -")
    return text


def _words(text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as problem:
        raise Invalid(f"{text[:80]!r} is no command: {problem}") from None
    if not words:
        raise Invalid("the command is empty; write emerge, or what stands for it here")
    return words


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name:
        raise Invalid("write NAME=VALUE, or NAME to pass on your own")
    if not equals and name not in os.environ:
        raise Invalid(f"{name[:80]} is not set here; write {name[:80]}=VALUE")
    return name, value if equals else os.environ[name]


@click.command("drone")
@click.option("--url", "urls", multiple=True, required=True, metavar="URL",
              type=options.Read("url", _place),
              help="A node's build swarm: http://node:8100. Repeatable: any of them will do."
              )  # fmt: skip
@click.option("--name", metavar="N", type=options.Read("name", _name),
              help="The host's, where none is given. sweeper-… gets what others failed."
              )  # fmt: skip
@click.option("--id-file", type=click.Path(path_type=Path), metavar="F",
              help="Its id is kept here. drone.id in the working directory, where none is given."
              )  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, 4096), metavar="N",
              help="Build with so many cores: make -jN. All, where none is given.")  # fmt: skip
@click.option("--emerge", "command", type=options.Read("command", _words), default="emerge",
              show_default=True, metavar="CMD", help="May be a chroot and more.")  # fmt: skip
@click.option("--option", "emerge_options", multiple=True, metavar="O",
              help="For emerge: --option=--nodeps. Repeatable.")  # fmt: skip
@click.option("--env", "env", multiple=True, type=options.Read("variable", _variable),
              metavar="K[=V]", help="A variable for emerge; K alone passes yours on. Repeatable."
              )  # fmt: skip
@click.option("--install-deps", is_flag=True,
              help="Install on this host what a build needs, first.")  # fmt: skip
@click.option("--sync", type=options.Read("command", _words), metavar="CMD",
              help="Brings this host's tree up to date. emerge --sync, where none is given."
              )  # fmt: skip
@click.option("--no-sync", is_flag=True, help="Leave the tree as it is, whatever the swarm wants.")
@click.option("--timeout", type=options.DURATION, default="6h", show_default=True, metavar="T",
              help="A build that takes longer has failed.")  # fmt: skip
@click.option("--no-reboot", is_flag=True, help="The swarm must not restart this host.")
@click.option("--workdir", type=click.Path(path_type=Path), default=WORKDIR, show_default=True,
              metavar="D", help="Builds, and the logs of those that failed.")  # fmt: skip
@click.option("--once", is_flag=True, help="End as soon as there is no work.")
def drone(
    urls: tuple[Place, ...], name: str | None, id_file: Path | None, jobs: int | None,
    command: tuple[str, ...], emerge_options: tuple[str, ...], env: tuple[tuple[str, str], ...],
    install_deps: bool, sync: tuple[str, ...] | None, no_sync: bool, timeout: float,
    no_reboot: bool, workdir: Path, once: bool,
) -> int:  # fmt: skip
    """Build packages for a swarm, on a host that runs no node of it.

    It asks any of the nodes for work, builds it with this host's Portage, and uploads what it
    built. Where the surface asks everybody for the admin key, give its own token in DRONE_TOKEN, as
    `swarmd drone-token` makes it, or that key in ADMIN_KEY. SIGTERM and Ctrl-C end the build, and
    give back what it holds.
    """
    import trio

    from swarmd import logs
    from swarmd.drivers.portage import PortageSettings

    if not 1 <= timeout <= BUILD_S_MAX:
        raise click.BadParameter("a build may take 1s to 7d", param_hint="--timeout")
    variables = dict(env)
    if jobs is not None:
        variables["MAKEOPTS"] = f"-j{jobs}"
    settings = PortageSettings(
        command=command, options=emerge_options, env=variables,
        install_dependencies=install_deps, build_timeout_s=timeout,
    )  # fmt: skip
    logs.set_up("info", "text")
    workdir = workdir.absolute()
    run = partial(
        _run, urls, name or _host_name(), id_file or workdir / "drone.id",
        jobs or len(os.sched_getaffinity(0)), not no_reboot, settings,
        None if no_sync else sync or (*command, "--sync", "--quiet"), workdir, once,
    )  # fmt: skip
    with instead(SwarmError, lambda refusal: refusal):
        trio.run(run)
    return 0


def _host_name() -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip(".-_")[:63]
    return host or "drone"


async def _run(
    urls: tuple[Place, ...], name: str, id_file: Path, cores: int, auto_reboot: bool,
    settings: PortageSettings, sync: tuple[str, ...] | None, workdir: Path, once: bool,
) -> None:  # fmt: skip
    import trio

    from swarmd.cli.drone_builds import open_workshop
    from swarmd.cli.drone_link import Link
    from swarmd.cli.drone_work import About, Drone
    from swarmd.drivers.portage import Missing, find
    from swarmd.drivers.portage_sync import TreeSync

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        portage = await find(settings)
        if isinstance(portage, Missing):
            raise Invalid(f"nothing can be built here: {portage.why}")
        async with open_workshop(workdir, settings) as workshop:
            about = About(_id(id_file), name, cores, auto_reboot)
            keys = (os.environ.get(name) or None for name in ("ADMIN_KEY", "DRONE_TOKEN"))
            link = Link(urls, *keys)
            drone = Drone(about, link, workshop, TreeSync(portage, sync))
            told = False

            async def heed_signals() -> None:
                nonlocal told
                async for _ in signals:
                    told = True
                    living.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(heed_signals)
                with trio.CancelScope() as living:
                    await drone.live(once=once)
                if told:
                    await drone.leave()
                nursery.cancel_scope.cancel()


def _id(file: Path) -> str:
    """The one it has had from its first start on: by it the swarm knows what it holds."""
    try:
        with suppress(FileNotFoundError), file.open("rb") as known:
            text = known.read(ID_BYTES_MAX).decode(errors="replace").strip()
            if not ID.fullmatch(text):
                raise Invalid(f"{file} holds no id of a drone; delete it to begin anew")
            return text
        new = uuid.uuid4().hex
        temporary = file.with_name(f"{file.name}.new")
        temporary.write_text(f"{new}\n")
        temporary.replace(file)
        return new
    except OSError as problem:
        raise Invalid(f"the id cannot be kept in {file}: {problem.strerror}") from None
