"""About this program itself: its settings, its version, its place in your shell."""

from __future__ import annotations

import os
from pathlib import Path

import click

import swarmd
from swarmd.cli import options, show
from swarmd.cli.client import find_daemon


@click.command("config")
@click.option("--running", is_flag=True, help="Ask the running daemon for its own.")
@options.config_file
@options.data_dir
@options.as_json
def config(running: bool, config_file: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Every setting that `swarmd up` would have here, and where its value comes from."""
    if running:
        told = find_daemon(data_dir).get("/api/v1/config")
        rows = [(row["setting"], row["value"], row["source"]) for row in told["settings"]]
    else:
        from swarmd.config_sources import load, report

        rows = report(load(os.environ, {"node.data_dir": data_dir}, file=config_file))
    if as_json:
        settings = [
            {"setting": path, "value": value, "source": origin} for path, value, origin in rows
        ]
        show.emit_json({"settings": settings})
        return
    show.emit_table(
        ["SETTING", "VALUE", "FROM"],
        [[path, _shown(path, value), origin] for path, value, origin in rows],
    )


@click.command("version")
@options.as_json
def version(as_json: bool) -> None:
    """The version of this program."""
    if as_json:
        show.emit_json({"version": swarmd.__version__})
    else:
        click.echo(swarmd.__version__)


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """A script that completes commands in your shell.

    \b
    bash:  eval "$(swarmd completion bash)"       in ~/.bashrc
    zsh:   eval "$(swarmd completion zsh)"        in ~/.zshrc
    fish:  swarmd completion fish | source        in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    from swarmd.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"click knows no completion for {shell}")
    script = kind(cli, {}, "swarmd", "_SWARMD_COMPLETE")
    click.echo(script.source_template % script.source_vars())


def _shown(path: str, value: object) -> object:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={text}" for name, text in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return value
