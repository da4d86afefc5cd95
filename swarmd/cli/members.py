"""Members from the command line: who leaves, who votes, the keys they share, how far they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from swarmd.cli import options, show
from swarmd.cli.client import find_daemon
from swarmd.cli.main import tell
from swarmd.cli.node import wait_for_end

CHANGE_TIMEOUT_S = 90.0
PING_TIMEOUT_S = 60.0


@click.command("remove")
@click.argument("node")
@click.option("--force", is_flag=True, help="Also a node that is alive.")
@options.as_json
@options.data_dir
def remove(node: str, force: bool, as_json: bool, data_dir: Path | None) -> None:
    """Take NODE (a name or an id) out of the swarm for good.

    For a host that does not come back. Its jobs are queued again once nothing of them can run there
    any more, its id is never taken in again; the host can only join as a new node. A node that runs
    had better leave: `swarmd leave` on it. A drone that runs no node is forgotten so, once it is
    stopped and counts as offline; it may register again.
    """
    done = find_daemon(data_dir).post(
        "/api/v1/members/remove", {"node": node, "force": force}, timeout_s=CHANGE_TIMEOUT_S
    )
    if as_json:
        show.emit_json(done)
    else:
        tell(f"{show.printable(done['removed'])} is removed; {_voters(done['voters'])}")


@click.command("leave")
@options.as_json
@options.data_dir
def leave(as_json: bool, data_dir: Path | None) -> None:
    """Take this node out of its swarm, and stop it.

    Its jobs are ended here and queued again, another node leads if this one did, and a learner
    votes in its place where there is one. What it had is set aside; the next `swarmd up` here is
    a new node's first.
    """
    daemon = find_daemon(data_dir)
    with wait_for_end(daemon):
        done = daemon.post("/api/v1/members/leave", timeout_s=CHANGE_TIMEOUT_S)
    if as_json:
        show.emit_json(done)
    else:
        tell(
            f"{show.printable(done['left'])} has left its swarm and stopped; what it had is in"
            f" {daemon.data_dir / 'set-aside'}"
        )


@click.command("promote")
@click.argument("node")
@options.as_json
@options.data_dir
def promote(node: str, as_json: bool, data_dir: Path | None) -> None:
    """Have a learner vote at once, and not only when a voter is wanted."""
    done = find_daemon(data_dir).post(
        "/api/v1/members/promote", {"node": node}, timeout_s=CHANGE_TIMEOUT_S
    )
    if as_json:
        show.emit_json(done)
        return
    tell(f"{show.printable(done['promoted'])} votes; {_voters(done['voters'])}")
    if done["voters"] % 2 == 0:
        tell(
            "note: an even number of voters bears no more losses than one fewer, and needs one"
            " more for each write"
        )


def _voters(count: int) -> str:
    if count <= 0:
        return "see `swarmd raft status`"
    may = (count - 1) // 2
    down = "none of them may be down" if not may else f"{may} of them may be down at once"
    return f"{count} {'votes' if count == 1 else 'vote'}, {down}"


@click.group("keyring", invoke_without_command=True)
@options.as_json
@options.data_dir
@click.pass_context
def keyring(context: click.Context, as_json: bool, data_dir: Path | None) -> None:
    """The keys that seal what nodes tell each other over UDP: by their ids, never themselves."""
    if context.invoked_subcommand is not None:
        return
    seen = find_daemon(data_dir).get("/api/v1/keyring")
    if as_json:
        show.emit_json(seen)
        return
    _show_ring(seen["ring"])
    show.emit_table(
        ["NODE", "GENERATION", "NOTE"],
        [[n.get("node"), n.get("generation"), n.get("note")] for n in seen["nodes"]],
    )


@keyring.command("rotate")
@options.as_json
@options.data_dir
def rotate(as_json: bool, data_dir: Path | None) -> None:
    """Change the key, without a pause: all have the new one before it is used, and the old one
    goes when all use it. One that was cut short is gone on with."""
    done = find_daemon(data_dir).post("/api/v1/keyring/rotate", timeout_s=CHANGE_TIMEOUT_S)
    if as_json:
        show.emit_json(done)
        return
    _show_ring(done["ring"])
    tell(
        ("a change that had been cut short is finished" if done["finished"] else "changed")
        + f"; {done['nodes']} nodes have the key"
    )


def _show_ring(ring: dict[str, Any]) -> None:
    click.echo(f"generation {ring['generation']}")
    for key in ring["keys"]:
        click.echo(f"key        {key}{', used for sealing' if key == ring['primary'] else ''}")


@click.command("ping")
@click.argument("node", required=False)
@click.option("--count", type=int, default=3, show_default=True, metavar="N",
              help="Questions to each node, 1 to 20.")  # fmt: skip
@click.option("--from", "source", metavar="NODE", help="Measured by that node, not by this one.")
@options.as_json
@options.data_dir
def ping(
    node: str | None, count: int, source: str | None, as_json: bool, data_dir: Path | None
) -> int:
    """How far the other nodes are, or NODE alone; and whose clock or version is another.

    Exit status 1 where one of them did not answer.
    """
    seen = find_daemon(data_dir).post(
        "/api/v1/ping", {"node": node, "source": source, "count": count}, timeout_s=PING_TIMEOUT_S
    )
    if as_json:
        show.emit_json(seen)
    else:
        click.echo(f"from {show.printable(seen['source'])}")
        show.emit_table(
            ["NODE", "ANSWERED", "LAST", "AVG", "MIN", "MAX", "CLOCK", "VERSION", "NOTE"],
            [
                [p["node"], f"{p['answered']}/{p['asked']}", _ms(p["last_ms"]), _ms(p["avg_ms"]),
                 _ms(p["min_ms"]), _ms(p["max_ms"]), _ahead(p["clock_ahead_ms"]), p["version"],
                 p["note"]]
                for p in seen["peers"]
            ],
        )  # fmt: skip
    return int(any(p["answered"] < p["asked"] for p in seen["peers"]))


def _ms(milliseconds: Any) -> str | None:
    return None if milliseconds is None else f"{milliseconds:.2f} ms"


def _ahead(milliseconds: Any) -> str | None:
    return None if milliseconds is None else f"{milliseconds:+d} ms"
