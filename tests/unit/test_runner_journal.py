"""The exit journal, damaged in every way that a crash or a disk can."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from swarmd.runner.journal import COMPACT_BYTES, Journal

BOOT = "boot-1"


def end(number: int) -> str:
    return json.dumps({"id": number, "reason": "exit", "exit_code": 0, "ended_ns": 5})


def filled(folder: Path) -> Journal:
    journal = Journal(str(folder), BOOT)
    journal.begin([(1, 0, 100), (2, 0, 100), (3, 0, 100)])
    journal.commit([(1, 11), (2, 12)], {}, [])
    journal.commit([(3, 13)], {1: end(1), 2: end(2)}, [])
    journal.commit([], {}, [1])
    return journal


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    key = filled(tmp_path).key
    journal = Journal(str(tmp_path), BOOT)
    assert journal.key == key and not journal.damage
    assert list(journal.ended) == [2]
    assert {i: b.pid for i, b in journal.began.items()} == {3: 13}
    assert 1 in journal.acked and 2 not in journal.acked


def test_every_torn_tail_is_cut_off_and_nothing_before_it(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "exits.log"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        journal = Journal(str(tmp_path), BOOT)
        assert not journal.damage
        lines = whole[:length].count(b"\n")
        assert set(journal.began) | set(journal.ended) <= {1, 2, 3}
        if lines == 5:
            assert set(journal.ended) == {1, 2}


def test_a_tail_of_zeros_is_a_torn_tail(tmp_path: Path) -> None:
    filled(tmp_path)
    with (tmp_path / "exits.log").open("ab") as file:
        file.write(bytes(5000))
    journal = Journal(str(tmp_path), BOOT)
    assert not journal.damage and list(journal.ended) == [2]


def test_a_torn_middle_is_told_and_the_rest_is_kept(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "exits.log"
    lines = path.read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"ended"' in line)
    lines[at] = lines[at].replace(b"exit", b"exot")
    path.write_bytes(b"".join(lines))
    journal = Journal(str(tmp_path), BOOT)
    assert "damaged" in journal.damage
    assert (tmp_path / "exits.log.damaged").read_bytes() == b"".join(lines)
    assert set(journal.began) == {2, 3} and 1 in journal.acked
    assert not Journal(str(tmp_path), BOOT).damage


def test_another_boot_is_noticed_and_its_times_are_dropped(tmp_path: Path) -> None:
    filled(tmp_path)
    journal = Journal(str(tmp_path), "boot-2")
    assert journal.began[3].boot_id == BOOT
    assert "ended_ns" not in json.loads(journal.ended[2])
    assert Journal(str(tmp_path), "boot-2").began[3].boot_id == BOOT


def test_it_stays_small_however_many_jobs_there_were(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), BOOT)
    path = tmp_path / "exits.log"
    for base in range(0, 20_000, 100):
        ids = range(base, base + 100)
        journal.begin([(i, 0, 1) for i in ids])
        journal.commit([(i, i) for i in ids], {i: end(i) for i in ids}, [])
        journal.commit([], {}, list(ids))
        assert path.stat().st_size < COMPACT_BYTES + 50_000
    journal = Journal(str(tmp_path), BOOT)
    assert not journal.ended and not journal.began
    assert 19_999 in journal.acked and 0 in journal.acked and 20_000 not in journal.acked


def test_nothing_is_taken_in_when_the_disk_refuses(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    read_only = os.open(tmp_path / "exits.log", os.O_RDONLY)
    os.dup2(read_only, journal._fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        journal.commit([], {3: end(3)}, [])
    assert 3 not in journal.ended and 3 in journal.began
    journal.compact()
    journal.commit([], {3: end(3)}, [])
    assert 3 in Journal(str(tmp_path), BOOT).ended
