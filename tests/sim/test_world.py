"""The simulated world itself: the same seed is the same run, and its witness sees what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import trio

from mesh.raft import Entry, MemoryStorage, Message, MessageKind
from swarmd.sim.witness import Broken, Witness
from swarmd.sim.world import World
from swarmd.state.machine import Place
from swarmd.state.store import Slot, encode_batch
from tests.sim.chaos import Chaos, Shape, quick
from tests.sim.registers import History, Read, Stale, Write
from tests.sim.world import run_world

ROOT = Path(__file__).parent.parent.parent


def fingerprint(seed: int, place: Path) -> str:
    found = ""

    async def body(world: World) -> None:
        nonlocal found
        await Chaos(seed, 5, Shape(newcomers=("d", "e"), members_change=True)).run(world)
        found = world.fingerprint()

    run_world(seed, place, body, quick())
    return found


def test_the_same_seed_is_the_same_run_to_the_byte(tmp_path: Path) -> None:
    """In this process, after whatever came before, and in others that order sets otherwise."""
    (tmp_path / "here").mkdir()
    found = {fingerprint(42, tmp_path / "here")}
    for hash_seed in ("0", "4711"):
        (tmp_path / hash_seed).mkdir()
        program = (
            "import sys; from pathlib import Path; from tests.sim.test_world import fingerprint;"
            "print(fingerprint(42, Path(sys.argv[1])))"
        )
        ran = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / hash_seed)],
            cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, timeout=60, check=True,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        found.add(ran.stdout.strip())
    assert len(found) == 1


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
    assert fingerprint(1, tmp_path / "1") != fingerprint(2, tmp_path / "2")


def test_a_failure_says_how_to_see_it_again(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await trio.sleep(1)
        raise AssertionError("as if")

    with pytest.raises(AssertionError, match="as if") as failed:
        run_world(77, tmp_path, body)
    (note,) = failed.value.__notes__
    assert "seed 77" in note
    assert "python -m pytest 'tests/sim/test_world.py::test_a_failure_says" in note


def test_a_world_that_hangs_fails(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await trio.sleep_forever()

    with pytest.raises(trio.TooSlowError):
        run_world(1, tmp_path, body)


def test_what_is_wrong_while_a_process_stands_still_is_told(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.swarm_of("a", "b", "c")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.freeze, "b", 8)
            await trio.sleep(2)
            raise AssertionError("as if")

    with pytest.raises(AssertionError, match="as if"):
        run_world(1, tmp_path, body)


def test_a_world_ends_though_a_process_in_it_stands_still(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.swarm_of("a", "b", "c")
        world.freezer.freeze(world.hosts["b"].gate)
        await trio.sleep(2)

    run_world(1, tmp_path, body)


def test_who_stood_still_for_less_long_than_was_meant_goes_on(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.swarm_of("a", "b", "c")
        with trio.move_on_after(4):
            await world.freeze("b", 60)
        assert not world.network.stopped
        await world.put("b", "key", "value")
        await world.settle()

    run_world(1, tmp_path, body)


# The witness


def slot(index: int, at: int = 10, term: int = 1) -> Slot:
    return Slot(index, term, encode_batch(at, []))


def test_the_witness_sees_two_leaders_of_one_term() -> None:
    witness = Witness()
    encode = msgspec.msgpack.encode
    witness.sent("a", "b", encode(Message(MessageKind.HEARTBEAT, to=2, sender=1, term=3)))
    witness.sent("a", "c", encode(Message(MessageKind.APPEND, to=3, sender=1, term=3)))
    with pytest.raises(Broken, match="both lead in term 3"):
        witness.sent("b", "c", encode(Message(MessageKind.APPEND, to=3, sender=2, term=3)))


def test_the_witness_sees_another_entry_a_gap_and_time_that_goes_back() -> None:
    witness = Witness()
    witness.applies("a", Place(4, 1), [slot(5)], Place(5, 1))
    with pytest.raises(Broken, match="another entry 5"):
        witness.applies("b", Place(4, 1), [slot(5, term=2)], Place(5, 2))
    with pytest.raises(Broken, match="applies 7 to 7 after 5"):
        witness.applies("a", Place(5, 1), [slot(7)], Place(7, 1))
    with pytest.raises(Broken, match="time goes back"):
        witness.applies("a", Place(5, 1), [slot(6, at=9)], Place(6, 1))


def test_the_witness_sees_what_too_few_have_on_disk() -> None:
    witness = Witness()
    disks = {name: MemoryStorage() for name in "abc"}
    witness.voters = lambda: disks
    disks["a"].append([Entry(1, 1)])
    with pytest.raises(Broken, match="which only"):
        witness.applies("a", Place(0, 0), [slot(1)], Place(1, 1))
    disks["b"].append([Entry(1, 1)])
    Witness().applies("a", Place(0, 0), [slot(1)], Place(1, 1))


def test_the_witness_sees_logs_that_differ_below_where_they_agree() -> None:
    a, b = MemoryStorage(), MemoryStorage()
    a.append([Entry(1, 1, b"x"), Entry(2, 2)])
    b.append([Entry(1, 1, b"y"), Entry(2, 2)])
    with pytest.raises(Broken, match="differ below 2"):
        Witness().check_logs({"a": a, "b": b})


# Registers

ORDER = {b"1": 0, b"2": 1, b"3": 2}


@pytest.mark.parametrize(
    ("writes", "reads", "wrong"),
    [
        ([Write("k", b"1", 0, 1)], [Read("k", 2, 3, b"1")], False),
        ([Write("k", b"1", 0, 1)], [Read("k", 2, 3, None)], True),
        ([Write("k", b"1", 0, 1)], [Read("k", 0.5, 3, None)], False),
        ([Write("k", b"1", 0, 1), Write("k", b"2", 2, 3)], [Read("k", 4, 5, b"1")], True),
        ([Write("k", b"1", 0, 1), Write("k", b"2", 2, 3)], [Read("k", 2.5, 5, b"1")], False),
        ([Write("k", b"2", 0, 1), Write("k", b"1", 2, 3)], [], True),
        # A write that nobody was told of may be seen, but not unseen again.
        ([Write("k", b"1", 0)], [Read("k", 2, 3, b"1"), Read("k", 4, 5, None)], True),
        ([Write("k", b"1", 0)], [Read("k", 2, 3, None), Read("k", 4, 5, b"1")], False),
        ([], [Read("k", 2, 3, b"1")], True),
        ([Write("k", b"1", 4, 5)], [Read("k", 2, 3, b"1")], True),
        ([Write("k", b"9", 4, 5)], [], True),
        ([Write("k", b"9", 4)], [], False),
        # Another register has an order of its own.
        ([Write("k", b"1", 0, 1), Write("l", b"2", 2, 3)], [Read("k", 4, 5, b"1")], False),
    ],
)  # fmt: skip
def test_stale_reads_are_seen(writes: list[Write], reads: list[Read], wrong: bool) -> None:
    history = History(writes, reads)
    if wrong:
        with pytest.raises(Stale):
            history.check(ORDER)
    else:
        history.check(ORDER)
