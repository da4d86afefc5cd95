"""Trust: tokens for nodes that are to join, and for drones that come from outside."""

from __future__ import annotations

import secrets
from pathlib import Path

import click

from swarmd.cli import options, show
from swarmd.cli.client import find_daemon
from swarmd.cli.main import tell
from swarmd.domain.drone_tokens import SECRET_BYTES, encode_token, hash_token


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


@click.command("drone-token")
@click.argument("name", required=False)
@click.option("--revoke", is_flag=True, help="Make none; from now on NAME's is not good.")
@options.as_json
@options.data_dir
def drone_token(name: str | None, revoke: bool, as_json: bool, data_dir: Path | None) -> None:
    """A token with which the drone NAME works where everybody else needs the admin key.

    It registers, asks for work, uploads and reports with it, as itself, and can do nothing else. A
    new one takes the place of the one before. Give it to `swarmd drone` in DRONE_TOKEN. Without
    NAME: which drones have one.
    """
    daemon = find_daemon(data_dir)
    if name is None:
        if revoke:
            raise click.UsageError("say whose: swarmd drone-token NAME --revoke")
        seen = daemon.get("/api/v1/drone-tokens")
        if as_json:
            show.emit_json(seen)
        else:
            rows = [[t["name"], f"{show.ago(t['at'])} ago"] for t in seen["tokens"]]
            show.emit_table(["DRONE", "TOKEN SINCE"], rows)
        return
    if revoke:
        done = daemon.post("/api/v1/drone-tokens/revoke", {"name": name})
        if as_json:
            show.emit_json(done)
        else:
            tell(f"{show.printable(name)} has no token any more")
        return
    # It is made here, and the swarm hears of its hash alone.
    made = encode_token(name, secrets.token_bytes(SECRET_BYTES))
    daemon.post("/api/v1/drone-tokens", {"name": name, "hash": hash_token(made).hex()})
    if as_json:
        show.emit_json({"name": name, "token": made})
        return
    tell(f"good until `swarmd drone-token {name} --revoke`; it is not shown again")
    click.echo(made)
