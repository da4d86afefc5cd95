"""Trust: tokens for nodes that are to join."""

from __future__ import annotations

from pathlib import Path

import click

from swarmd.cli import options, show
from swarmd.cli.client import find_daemon
from swarmd.cli.main import tell


@click.command("token")
@click.option("--ttl", "ttl_s", type=options.DURATION, default="24h", show_default=True,
              metavar="TIME", help="How long it is good, up to 90 days.")  # fmt: skip
@click.option("--rotate", is_flag=True, help="From now on no token made before is good.")
@click.option("--revoke", is_flag=True, help="Make none; from now on no token is good.")
@options.as_json
@options.data_dir
def token(ttl_s: float, rotate: bool, revoke: bool, as_json: bool, data_dir: Path | None) -> None:
    """A token with which nodes join this swarm, as often as they like until it ends.

    On the new node: swarmd up --join THIS-NODE --token TOKEN. Whoever has it can become a node of
    the swarm and run anything there: hand it on as you would a password.
    """
    daemon = find_daemon(data_dir)
    if revoke:
        seen = daemon.post("/api/v1/tokens/revoke")
        if as_json:
            show.emit_json(seen)
        else:
            tell("nobody can join by a token any more")
        return
    made = daemon.post("/api/v1/tokens", {"ttl_s": ttl_s, "rotate": rotate})
    if as_json:
        show.emit_json(made)
        return
    tell(f"good until {made['ends_at']}" + ("; those before are not any more" if rotate else ""))
    click.echo(made["token"])
