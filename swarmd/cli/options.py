"""Options that many commands share, each with the same words everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from swarmd.domain.errors import Invalid

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

data_dir: Decorator = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, readable=False),
    metavar="D",
    help="Which node: its data directory. Also SWARMD_DATA_DIR.",
)
as_json: Decorator = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
config_file: Decorator = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, readable=False),
    metavar="F",
    help="A TOML file of settings. Also SWARMD_CONFIG.",
)


class Read(click.ParamType[Any]):
    """An option's text, read by a function that refuses with Invalid."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except Invalid as problem:
            self.fail(problem.message, param, ctx)


def _size(text: str) -> int:
    from swarmd.values import size_bytes

    return size_bytes(text)


def _duration(text: str) -> float:
    from swarmd.values import duration_s

    return duration_s(text)


SIZE = Read("size", _size)
DURATION = Read("duration", _duration)
