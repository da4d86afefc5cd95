"""Binary packages: what there is, why none of them fits a host, and the key they are signed by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from swarmd.cli import options, show
from swarmd.cli.client import Daemon, NotRunning, Refused, find_daemon
from swarmd.cli.main import EXIT_REFUSED, tell

SHOWN_MAX = 100_000
RESIGN_S_MAX = 3600.0
"""Of one package."""


@click.group("binhost")
def binhost() -> None:
    """Binary packages that the swarm has built and serves, at /binhost/ of port 8100."""


@binhost.command("list")
@click.argument("package", required=False)
@options.as_json
@options.data_dir
def list_packages(package: str | None, as_json: bool, data_dir: Path | None) -> None:
    """What there is, by path; or of PACKAGE alone, such as dev-libs/openssl."""
    rows, after = _packages(find_daemon(data_dir), package)
    if as_json:
        show.emit_json({"packages": rows, "next": after})
        return
    show.emit_table(
        ["PATH", "SLOT", "USE", "SIZE", "BUILT"],
        [
            [p["path"], p["slot"], " ".join(p["use"]), show.size(p["size_bytes"]),
             p["built_at"] and f"{show.ago(p['built_at'])} ago"]
            for p in rows
        ],
    )  # fmt: skip
    if after is not None:
        tell(f"the first {len(rows)}; name a package to see all of its own")


def _packages(daemon: Daemon, package: str | None) -> tuple[list[Any], str | None]:
    """And from where on there are more, where these are enough."""
    rows: list[Any] = []
    after = None
    while len(rows) < SHOWN_MAX:
        seen = daemon.get("/api/v1/binhost", {"package": package, "after": after})
        rows += seen["packages"]
        if (after := seen["next"]) is None:
            break
    return rows, after


@binhost.command("explain")
@click.argument("atom")
@click.option("--use", metavar="FLAGS", help="The host's USE flags: 'ssl -doc'.")
@click.option("--chost", metavar="CHOST", help="The host's CHOST.")
@click.option("--cflags", metavar="FLAGS", help="The host's CFLAGS.")
@click.option("--keywords", metavar="WORDS", help="What it accepts: 'amd64 ~amd64'.")
@options.as_json
@options.data_dir
def explain(
    atom: str, use: str | None, chost: str | None, cflags: str | None, keywords: str | None,
    as_json: bool, data_dir: Path | None,
) -> int:  # fmt: skip
    """Why no package is what ATOM asks for on such a host. What is left out is any.

    Exit status 1 where none fits.
    """
    seen = find_daemon(data_dir).get("/api/v1/binhost/explain", {
        "package": atom, "use": use, "chost": chost, "cflags": cflags, "keywords": keywords,
    })  # fmt: skip
    if as_json:
        show.emit_json(seen)
    else:
        for path in seen["fitting"]:
            click.echo(f"fits: {show.printable(path)}")
        for reason in seen["reasons"]:
            click.echo(show.printable(reason))
    return 0 if seen["fitting"] else EXIT_REFUSED


@binhost.command("remove")
@click.argument("path")
@options.as_json
@options.data_dir
def remove(path: str, as_json: bool, data_dir: Path | None) -> None:
    """Take the package at PATH away, as `swarmd binhost list` shows it."""
    done = find_daemon(data_dir).post("/api/v1/binhost/remove", {"path": path})
    if as_json:
        show.emit_json(done)
    else:
        tell(f"{show.printable(done['removed'])} is not there any more")


@binhost.command("resign")
@click.argument("package", required=False)
@options.as_json
@options.data_dir
def resign(package: str | None, as_json: bool, data_dir: Path | None) -> int:
    """Sign anew what another key than the present one has signed; or of PACKAGE alone.

    One after the other, each checked before it takes its place; hosts get the former file until
    then. It may be ended at any time, and goes on where it was when it is called again. Exit status
    1 where some could not be signed.
    """
    daemon = find_daemon(data_dir)
    rows, after = _packages(daemon, package)
    signed, failed = 0, list[dict[str, str]]()
    for at, path in enumerate((row["path"] for row in rows), 1):
        try:
            done = daemon.post("/api/v1/binhost/resign", {"path": path}, timeout_s=RESIGN_S_MAX)
        except NotRunning:
            raise
        except Refused as refusal:
            failed.append({"path": path, "error": refusal.message})
            tell(f"not signed: {show.printable(path)}: {show.printable(refusal.message)}")
            continue
        signed += done["signed"]
        if done["signed"]:
            tell(f"{at} of {len(rows)}: {show.printable(path)}")
    if as_json:
        show.emit_json({"packages": len(rows), "signed": signed, "failed": failed})
    else:
        tell(f"{signed} signed anew, {len(rows) - signed - len(failed)} were, {len(failed)} failed")
    if after is not None:
        tell(f"these were the first {len(rows)}; name a package to go on with others")
    return EXIT_REFUSED if failed else 0


@binhost.command("key")
@click.option("--rotate", is_flag=True, help="Make a new key, and sign with it from now on.")
@options.as_json
@options.data_dir
def key(rotate: bool, as_json: bool, data_dir: Path | None) -> None:
    """The public half of the key that packages are signed by, for `gpg --import`.

    After --rotate hosts need the new key; what was signed with the old one stays so until `swarmd
    binhost resign`, so let them keep the old one beside it until then.
    """
    daemon = find_daemon(data_dir)
    if rotate:
        seen = daemon.post("/api/v1/binhost/key/rotate")
    else:
        seen = daemon.get("/api/v1/binhost/key")
    if as_json:
        show.emit_json(seen)
        return
    tell(f"fingerprint {seen['fingerprint']}, made {seen['made_at']}")
    click.echo(seen["armored"], nl=False)
