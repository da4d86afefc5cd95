"""`swarmd raft snapshot save` where something goes wrong: FILE is whole, or is not there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import resource
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli import Said, command, environment, swarmd

DATA = os.urandom(300_000)


def answer(data: bytes, *, said: str = "", length: int | None = None) -> bytes:
    digest = said or hashlib.sha256(data).hexdigest()
    head = (
        f"HTTP/1.1 200 OK\r\nX-Snapshot-Index: 7\r\nX-Snapshot-Term: 2\r\n"
        f"X-Snapshot-Sha256: {digest}\r\nContent-Length: {length or len(data)}\r\n\r\n"
    )
    return head.encode() + data


@contextmanager
def impostor(data_dir: Path, *answers: bytes) -> Iterator[None]:
    """A daemon that answers so, once each, to whatever it is asked."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(data_dir / "swarmd.sock"))
        listener.listen()

        def serve() -> None:
            for one in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    try:
                        connection.sendall(one)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(10)
        assert not thread.is_alive()


def save(place: Path, file: Path, *more: object) -> Said:
    return swarmd("raft", "snapshot", "save", "--data-dir", place, file, *more)


def test_a_copy_is_for_its_owner_alone_and_what_is_there_stays(tmp_path: Path) -> None:
    file = tmp_path / "copy.db"
    old = os.umask(0)
    try:
        with impostor(tmp_path, answer(DATA)):
            said = save(tmp_path, file, "--json")
    finally:
        os.umask(old)
    assert said.status == 0, said.err
    assert said.json == {
        "file": str(file), "index": 7, "term": 2, "size_bytes": len(DATA),
        "sha256": hashlib.sha256(DATA).hexdigest(),
    }  # fmt: skip
    assert file.read_bytes() == DATA
    assert file.stat().st_mode & 0o777 == 0o600
    again = save(tmp_path, file)  # refused before anybody is asked
    assert (again.status, again.out) == (1, "")
    assert "is there already" in again.err
    (tmp_path / "link.db").symlink_to(tmp_path / "nowhere")
    assert "is there already" in save(tmp_path, tmp_path / "link.db").err


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (answer(DATA, said="0" * 64), "not what was sent"),
        (answer(DATA[:1000], length=len(DATA)), "went away"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsome", "not what was sent"),
    ],
)
def test_what_comes_damaged_or_cut_off_gets_no_name(
    tmp_path: Path, sent: bytes, words: str
) -> None:
    with impostor(tmp_path, sent):
        said = save(tmp_path, tmp_path / "copy.db")
    assert (said.status, said.out) == (1, "")
    assert words in said.err
    assert [p.name for p in tmp_path.iterdir()] == ["swarmd.sock"]


def test_a_disk_that_takes_no_more_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    with impostor(tmp_path, answer(DATA)):
        done = subprocess.run(
            command("raft", "snapshot", "save", "--data-dir", tmp_path, tmp_path / "copy.db"),
            env=environment(), capture_output=True, text=True, preexec_fn=limit, timeout=60,
            check=False,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "was not saved: File too large" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["swarmd.sock"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with impostor(tmp_path, answer(DATA)):
        said = save(tmp_path, tmp_path / "none" / "copy.db")
    assert said.status == 1
    assert "none/copy.db.part cannot be written: No such file" in said.err


def test_what_a_save_left_that_was_killed_is_used_again(tmp_path: Path) -> None:
    part = tmp_path / "copy.db.part"
    part.write_bytes(bytes(1_000_000))
    with impostor(tmp_path, answer(DATA)):
        assert save(tmp_path, tmp_path / "copy.db").status == 0
    assert (tmp_path / "copy.db").read_bytes() == DATA
    assert not part.exists()


def test_two_saves_to_one_file_do_not_mix(tmp_path: Path) -> None:
    part = tmp_path / "copy.db.part"
    part.write_bytes(b"another's")
    with part.open("rb") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        with impostor(tmp_path, answer(DATA)):
            said = save(tmp_path, tmp_path / "copy.db")
    assert said.status == 1
    assert "another save" in said.err
    assert part.read_bytes() == b"another's"


def test_a_part_that_points_elsewhere_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "copy.db.part").symlink_to(victim)
    with impostor(tmp_path, answer(DATA)):
        assert save(tmp_path, tmp_path / "copy.db").status == 1
    assert victim.read_bytes() == b"precious"


def test_restore_of_what_is_no_copy_leaves_nothing_to_start_from(tmp_path: Path) -> None:
    file = tmp_path / "copy.db"
    file.write_bytes(DATA)
    said = swarmd("raft", "restore", file, "--data-dir", tmp_path / "new")
    assert said.status == 1
    assert "cannot be used" in said.err
    assert not (tmp_path / "new" / "state.db").exists()
    assert swarmd("raft", "restore", tmp_path / "none", "--data-dir", tmp_path).status == 2
