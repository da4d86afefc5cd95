"""The table of commands and the way out: what ends a command, in which words, with which status.

A command's module is imported when it is called, so that the quick ones stay quick.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click

from swarmd import __version__
from swarmd.domain.errors import SwarmError

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("node", "Run one node in the foreground."),
    "down": ("node", "Stop the node; its jobs go on unless told otherwise."),
    "demo": ("demo", "Try it: a swarm of its own, a sample job, nothing left behind."),
    "status": ("swarm", "The swarm as this node sees it."),
    "nodes": ("swarm", "Every node with what it offers and what it is used for."),
    "jobs": ("jobs", "Jobs, the newest first."),
    "submit": ("submit", "Run a command somewhere in the swarm."),
    "logs": ("jobs", "What a job wrote."),
    "cancel": ("jobs", "End a job, whether it waits or runs."),
    "explain": ("jobs", "Why a job waits, node by node."),
    "binhost": ("binhost", "Binary packages: what there is, why none fits, their key."),
    "terminal": ("terminal", "A terminal on a builder's host, through this node or another."),
    "terminals": ("terminals", "Who had which terminal, and what was on the screen."),
    "token": ("trust", "A token with which nodes join this swarm."),
    "doctor": ("doctor", "What is wrong, and what to do; with the daemon down as well."),
    "ping": ("members", "How far the other nodes are, and whose clock is off."),
    "promote": ("members", "Have a learner vote at once."),
    "leave": ("members", "Take this node out of its swarm, and stop it."),
    "remove": ("members", "Take a node that is gone out of the swarm, for good."),
    "keyring": ("members", "The keys that seal what nodes tell each other over UDP."),
    "recover": ("recover", "Go on with this node alone: a majority is gone for good."),
    "raft": ("raft", "The swarm's log: its standing, who leads, backup and restore."),
    "sim": ("sim", "What becomes of a swarm when machines go: simulated, in one process."),
    "drone-token": ("trust", "A token with which a drone works where others need the admin key."),
    "drone": ("drone", "Build packages for a swarm, on a host that runs no node of it."),
    "admin-key": ("swarm", "The key that protected surfaces ask for."),
    "config": ("about", "Every setting in force, and where it came from."),
    "version": ("about", "The version of this program."),
    "completion": ("about", "A script that completes commands in your shell."),
}

EXIT_REFUSED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class Commands(click.Group):
    """A group whose commands are looked up in the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        from importlib import import_module

        module = import_module(f"swarmd.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"there is no command {args[0][:80]!r}{_suggestion(args[0])}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in COMMANDS.items()])


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`swarmd COMMAND --help` tells more. Data goes to stdout, talk to stderr.",
)
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """swarmd: a handful of machines become one swarm."""


def main(args: list[str] | None = None) -> int:
    """Run one command; the status to exit with."""
    try:
        return _status(cli.main(args, prog_name="swarmd", standalone_mode=False))
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as problem:
        problem.show()
        return EXIT_USAGE
    except click.ClickException as problem:
        problem.show()
        return problem.exit_code
    except SwarmError as refusal:
        tell(f"error: {refusal.message}")
        return EXIT_REFUSED
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _leave_quietly()


def tell(words: str) -> None:
    """A line for the person, apart from the data."""
    click.echo(words, err=True)


def _status(result: Any) -> int:
    return result if isinstance(result, int) else 0


def _suggestion(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "; `swarmd --help` lists all"


def _leave_quietly() -> NoReturn:
    """Whoever read our stdout has gone (`swarmd jobs | head`); Python must not try to flush it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    os._exit(EXIT_REFUSED)
