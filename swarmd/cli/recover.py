"""Recovery from the command line: a majority is gone for good, and this node goes on."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click

from swarmd.cli import options, show
from swarmd.cli.client import Refused
from swarmd.cli.main import tell

if TYPE_CHECKING:
    from swarmd.cluster.recovering import Done, Survivor

KNOCK_S_MAX = 2.0
KNOCKS_AT_ONCE = 16


@click.command("recover")
@click.option("--yes-majority-is-lost", "sure", is_flag=True,
              help="Do not ask: enough voters are gone for good.")  # fmt: skip
@options.as_json
@options.data_dir
def recover(sure: bool, as_json: bool, data_dir: Path | None) -> None:
    """Go on with this node alone, where a majority of the voters is gone FOR GOOD.

    With the daemon stopped, on the survivor that is furthest: `swarmd doctor` says which. The
    swarm keeps its jobs, keys and settings; what others had beyond this node's log is lost. A copy
    of the files is made first. Others that come back follow by themselves, or join anew.
    """
    import trio

    from swarmd.cluster import recovering
    from swarmd.paths import claimed, find_data_dir

    target = find_data_dir(os.environ, data_dir, os.geteuid())
    if not (target / "raft.db").is_file():
        raise Refused(f"there is no node in {target}; name another with --data-dir")
    with claimed(target):
        found = trio.run(_inspect, target)
        recovering.check_survivor(found)
        _check_lost(found.name, len(found.voters), reached(found.addresses), found.votes)
        if not sure:
            _ask(found)
        done = trio.run(_recover, target)
    if as_json:
        import msgspec

        show.emit_json(msgspec.to_builtins(done))
        return
    for name, value in (
        ("cluster", f"{done.cluster_id}, the same swarm from here on"),
        ("node", f"{done.name}, the only voter"),
        ("log", f"kept up to {done.last}; the term is {done.term} now"),
        ("lost", f"the votes of {', '.join(done.voters_lost)}, and what they had beyond that"),
        ("copy", done.kept),
    ):
        click.echo(f"{name:8} {show.printable(value)}")
    tell(f"`swarmd up --data-dir {target}` goes on; start others that are left after it")


async def _inspect(target: Path) -> Survivor:
    from swarmd.cluster import recovering

    return await recovering.inspect(target)


async def _recover(target: Path) -> Done:
    from swarmd.cluster import recovering

    return await recovering.recover(target, now_ms=time.time_ns() // 1_000_000, entropy=os.urandom)


def reached(addresses: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Who of these listens on the mesh's port, by name."""
    with ThreadPoolExecutor(KNOCKS_AT_ONCE) as pool:
        names = list(addresses)
        answers = pool.map(lambda name: any(map(listens, addresses[name])), names)
        return [name for name, there in zip(names, answers, strict=True) if there]


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S_MAX):
            return True
    except (OSError, ValueError):
        return False


def _check_lost(name: str, voters: int, there: list[str], votes: bool) -> None:
    needed = voters // 2 + 1
    if len(there) + votes >= needed:
        raise Refused(
            f"a majority is not lost: {', '.join(sorted(there))} listen, and with {name} that is"
            f" enough of {voters} voters. Start this node with `swarmd up` and look at `swarmd"
            " doctor`; stop their daemons first if they are broken for good"
        )


def _ask(found: Survivor) -> None:
    others = [name for name in found.voters if name != found.name]
    tell(
        f"{found.name} becomes the only voter of its swarm. Voters until now:"
        f" {', '.join(found.voters)}.\n"
        f"Its log ends at {found.last} (term {found.term}), and it knew {found.committed} to be"
        " agreed on. What others had beyond its end is lost for good, acknowledged or not.\n"
        f"If enough of {', '.join(others)} can be brought back, bring them back instead: that loses"
        " nothing."
    )
    typed = click.prompt(f"Type the node's name ({found.name}) to go on", err=True, default="",
                         show_default=False)  # fmt: skip
    if typed.strip() != found.name:
        raise Refused("nothing was changed")
