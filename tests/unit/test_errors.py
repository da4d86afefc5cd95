"""How errors come out of the groups that nurseries make of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import trio

from swarmd.domain.errors import Conflict, SwarmError, Unavailable, instead

ROOT = Path(__file__).parents[2]


def unavailable(error: BaseException) -> BaseException:
    return Unavailable(f"instead of {error}")


async def fail(*errors: BaseException) -> None:
    """Each in a task of its own, within two nurseries."""

    async def one(error: BaseException) -> None:
        raise error

    with instead((KeyError, Conflict), unavailable):
        async with trio.open_nursery(), trio.open_nursery() as nursery:
            for error in errors:
                nursery.start_soon(one, error)


def test_an_error_alone() -> None:
    with pytest.raises(Unavailable, match=r"^instead of it is so$"), instead(Conflict, unavailable):
        raise Conflict("it is so")
    with pytest.raises(SwarmError, match=r"^it is so$"), instead(Conflict, lambda error: error):
        raise Conflict("it is so")
    with pytest.raises(ValueError), instead(Conflict, unavailable):
        raise ValueError


async def test_an_error_out_of_groups() -> None:
    with pytest.raises(Unavailable, match=r"^instead of it is so$"):
        await fail(Conflict("it is so"))
    with pytest.raises(Unavailable, match=r"^instead of "):
        await fail(Conflict("one"), KeyError(2))


async def test_what_else_failed_is_not_lost() -> None:
    with pytest.raises(BaseExceptionGroup) as failed:
        await fail(Conflict("it is so"), ValueError("and this"))
    assert failed.value.subgroup(Unavailable) and failed.value.subgroup(ValueError)
    assert not failed.value.subgroup(Conflict)
    with pytest.raises(BaseExceptionGroup) as failed:
        await fail(ValueError("only this"))
    assert failed.value.subgroup(ValueError)


def test_nothing_is_raised_within_except_star() -> None:
    """Before Python 3.11.4 that makes a group of the one error, which nobody above expects."""
    found = [
        f"{path.relative_to(ROOT)}:{raised.lineno}"
        for room in ("api", "mesh", "swarmd")
        for path in (ROOT / room).rglob("*.py")
        for block in ast.walk(ast.parse(path.read_text()))
        if isinstance(block, ast.TryStar)
        for handler in block.handlers
        for raised in ast.walk(handler)
        if isinstance(raised, ast.Raise) and raised.exc is not None
    ]
    assert not found
