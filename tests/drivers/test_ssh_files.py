"""Files over ssh, against real sftp-servers: whole, verified and swapped at once, or not at all."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from swarmd.domain.blobs import BlobInfo
from swarmd.domain.errors import Conflict, Forbidden, Invalid, NotFound, TooLarge, Unavailable
from swarmd.drivers.ssh import Ssh, SshSettings, open_ssh
from tests.sshd import Sshd, descendants, running_sshd

SIZE_BYTES = 3 * 1024 * 1024 + 17


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where it goes on the far side, with a name that a shell would trip over."""
    folder = tmp_path / "far 'side'; $(exit) \"ünï\""
    folder.mkdir()
    return folder


@pytest.fixture
def data() -> bytes:
    return os.urandom(SIZE_BYTES)


def announced(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}


async def in_pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def stays_so(folder: Path, *names: str) -> None:
    with trio.fail_after(60):
        while sorted(os.listdir(folder)) != sorted(names):
            await trio.sleep(0.02)


@pytest.mark.parametrize("piece_bytes", [1000, 100_000, 5_000_000])
async def test_a_file_arrives_whole_and_comes_back(
    ssh: Ssh, sshd: Sshd, folder: Path, data: bytes, tmp_path: Path, piece_bytes: int
) -> None:
    there = folder / "file"
    pieces = in_pieces(data, piece_bytes)
    await ssh.put(sshd.target(), pieces, str(there), **announced(data), mode=0o751)
    assert there.read_bytes() == data and there.stat().st_mode & 0o7777 == 0o751
    assert await ssh.sha256(sshd.target(), str(there)) == BlobInfo(**announced(data))
    back = tmp_path / "back"
    got = await ssh.get(sshd.target(), str(there), back, bytes_max=len(data))
    assert got == BlobInfo(**announced(data)) and back.read_bytes() == data
    await stays_so(folder, "file")


async def test_a_file_of_this_node_replaces_one_and_the_former_stays(
    ssh: Ssh, sshd: Sshd, folder: Path, tmp_path: Path
) -> None:
    there, here = folder / "file", tmp_path / "here"
    for number in range(4):
        data = b"" if number == 0 else f"version {number}".encode()
        here.write_bytes(data)
        await ssh.put(sshd.target(), here, str(there), **announced(data), keep_previous=True)
        assert there.read_bytes() == data
        if number == 0:
            await stays_so(folder, "file")
    await stays_so(folder, "file", "file.previous")
    assert (folder / "file.previous").read_bytes() == b"version 2"
    # A true rollback: at once, and no copy.
    await ssh.rename(sshd.target(), f"{there}.previous", str(there))
    assert there.read_bytes() == b"version 2"
    await stays_so(folder, "file")
    await ssh.remove(sshd.target(), str(there))
    await stays_so(folder)


async def test_what_is_not_there_is_not_found(
    ssh: Ssh, sshd: Sshd, folder: Path, tmp_path: Path
) -> None:
    target, none = sshd.target(), str(folder / "none")
    with pytest.raises(NotFound):
        await ssh.sha256(target, none)
    with pytest.raises(NotFound):
        await ssh.remove(target, none)
    with pytest.raises(NotFound):
        await ssh.rename(target, none, none + "2")
    with pytest.raises(NotFound):
        await ssh.get(target, none, tmp_path / "back", bytes_max=10)
    with pytest.raises(NotFound):
        await ssh.put(target, in_pieces(b"x"), f"{none}/file", **announced(b"x"))
    with pytest.raises(Invalid):
        await ssh.sha256(target, str(folder))
    with pytest.raises(TooLarge):
        (folder / "large").write_bytes(b"x" * 1000)
        await ssh.get(target, str(folder / "large"), tmp_path / "back", bytes_max=999)
    assert not await trio.Path(tmp_path / "back").exists()


@pytest.mark.parametrize("path", ["", "relative", "/", "/a/", "/a/..", "/a\0b", "/" + "x" * 5000])
async def test_what_is_no_path_is_refused(ssh: Ssh, sshd: Sshd, path: str) -> None:
    with pytest.raises(Invalid):
        await ssh.put(sshd.target(), in_pieces(b"x"), path, **announced(b"x"))
    with pytest.raises(Invalid):
        await ssh.remove(sshd.target(), path)


async def test_what_is_not_as_announced_leaves_nothing(
    ssh: Ssh, sshd: Sshd, folder: Path, data: bytes
) -> None:
    there = folder / "file"
    there.write_bytes(b"before")

    async def breaks_off() -> AsyncIterator[bytes]:
        yield data[:2_000_000]
        raise Conflict("the source broke off")

    tries = [
        (in_pieces(data[:-1]), Invalid),
        (in_pieces(data + b"x"), Invalid),
        (in_pieces(bytes(len(data))), Invalid),
        (breaks_off(), Conflict),
        (folder / "nowhere", Unavailable),
    ]
    for source, refusal in tries:
        with pytest.raises(refusal):
            await ssh.put(
                sshd.target(), source, str(there), **announced(data), keep_previous=True
            )  # fmt: skip
        await stays_so(folder, "file")
        assert there.read_bytes() == b"before"


async def test_a_cancelled_or_late_upload_leaves_nothing(
    ssh: Ssh, sshd: Sshd, folder: Path, data: bytes
) -> None:
    there = folder / "file"
    for after_bytes in (0, 1_500_000, len(data)):

        async def stalls(after_bytes: int = after_bytes) -> AsyncIterator[bytes]:
            yield data[:after_bytes]
            await trio.sleep_forever()

        with trio.move_on_after(0.5) as scope:
            await ssh.put(sshd.target(), stalls(), str(there), **announced(data))
        assert scope.cancelled_caught
        await stays_so(folder)
        with pytest.raises(Unavailable, match="did not end within"):
            await ssh.put(
                sshd.target(), stalls(), str(there), **announced(data), timeout_s=0.3
            )  # fmt: skip
        await stays_so(folder)


async def test_a_cancel_at_any_moment_leaves_all_or_nothing(
    ssh: Ssh, sshd: Sshd, folder: Path, data: bytes
) -> None:
    there, target = folder / "file", sshd.target()
    await ssh.exec(target, "true", timeout_s=20)
    for tenth in range(1, 20):
        with trio.move_on_after(tenth / 200):
            await ssh.put(target, in_pieces(data), str(there), **announced(data))
        await trio.sleep(0.05)
        found = await trio.to_thread.run_sync(os.listdir, folder)
        assert found in ([], ["file"])
        if found:
            assert there.read_bytes() == data
            there.unlink()


@pytest.mark.parametrize("victim", ["server", "connection"])
async def test_a_way_that_breaks_in_the_middle_leaves_nothing(
    ssh: Ssh, sshd: Sshd, folder: Path, data: bytes, victim: str
) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield data[:2_000_000]
        pids = sshd.sessions()
        if victim == "server":
            pids = [pid for each in pids for pid in descendants(each) if "sftp" in name_of(pid)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        yield data[2_000_000:]

    with pytest.raises(Unavailable):
        await ssh.put(sshd.target(), breaks(), str(folder / "file"), **announced(data))
    await stays_so(folder)


async def test_a_server_that_stops_in_the_middle_ends_within_its_bound(
    sshd: Sshd, folder: Path, data: bytes
) -> None:
    stopped: list[int] = []

    async def stops() -> AsyncIterator[bytes]:
        yield data[:1_000_000]
        for session in sshd.sessions():
            stopped.extend(pid for pid in descendants(session) if "sftp" in name_of(pid))
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        yield data[1_000_000:]
        yield data  # more than it takes in while it is stopped

    settings = SshSettings(stall_timeout_s=5)
    async with open_ssh(settings) as ssh:
        with trio.fail_after(60), pytest.raises(Unavailable, match=r"did not go on within 5 s"):
            facts = {**announced(data), "size_bytes": 10**9}
            await ssh.put(sshd.target(), stops(), str(folder / "file"), **facts)
        assert stopped
        await stays_so(folder)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        await trio.sleep(0.2)
        await stays_so(folder)


@pytest.mark.needs("sshd", "root")
async def test_a_full_disk_leaves_nothing(ssh: Ssh, sshd: Sshd, folder: Path, data: bytes) -> None:
    await trio.run_process(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)])
    try:
        (folder / "file").write_bytes(b"before")
        with pytest.raises(Unavailable, match="space"):
            await ssh.put(
                sshd.target(), in_pieces(data), str(folder / "file"), **announced(data)
            )  # fmt: skip
        await stays_so(folder, "file")
        assert (folder / "file").read_bytes() == b"before"
    finally:
        await trio.run_process(["umount", "--lazy", str(folder)])


async def test_what_cannot_be_put_in_place_leaves_all_as_it_was(
    ssh: Ssh, sshd: Sshd, folder: Path
) -> None:
    # No rename goes over a directory: neither to the place itself, nor to that of the former.
    (folder / "taken").mkdir()
    with pytest.raises(Unavailable):
        await ssh.put(sshd.target(), in_pieces(b"x"), str(folder / "taken"), **announced(b"x"))
    await stays_so(folder, "taken")
    (folder / "file").write_bytes(b"before")
    (folder / "file.previous").mkdir()
    with pytest.raises(Unavailable):
        await ssh.put(
            sshd.target(), in_pieces(b"x"), str(folder / "file"), **announced(b"x"),
            keep_previous=True,
        )  # fmt: skip
    await stays_so(folder, "taken", "file", "file.previous")
    assert (folder / "file").read_bytes() == b"before"
    assert (folder / "file").stat().st_nlink == 1


async def test_a_host_without_tools_is_read_back(tmp_path: Path, data: bytes) -> None:
    need_tools = tmp_path / "bin"
    need_tools.mkdir()
    with running_sshd(tmp_path / "sshd", env={"PATH": str(need_tools)}) as sshd:
        (sshd.folder / ".bashrc").write_text(f"PATH={need_tools}\n")
        async with open_ssh() as ssh:
            there = tmp_path / "file"
            await ssh.put(sshd.target(), in_pieces(data), str(there), **announced(data))
            assert there.read_bytes() == data
            assert await ssh.sha256(sshd.target(), str(there)) == BlobInfo(**announced(data))


async def test_a_host_where_it_lies_otherwise_is_a_conflict(tmp_path: Path, folder: Path) -> None:
    """A tool of the host's own that says something else, as a disk that spoils it would have."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sha256sum").write_text(f"#!/bin/sh\necho '{'0' * 64}  -'\n")
    (tools / "sha256sum").chmod(0o755)
    with running_sshd(tmp_path / "sshd", env={"PATH": f"{tools}:{os.environ['PATH']}"}) as sshd:
        async with open_ssh() as ssh:
            with pytest.raises(Conflict, match="another hash"):
                await ssh.put(
                    sshd.target(), in_pieces(b"x"), str(folder / "file"), **announced(b"x")
                )  # fmt: skip
            await stays_so(folder)


@pytest.mark.parametrize(
    "server",
    ["/bin/false", "/bin/cat", "/bin/sleep 20", "/usr/bin/yes", "/no/such/server",
     "/usr/bin/head -c 5000000 /dev/urandom"],
)  # fmt: skip
async def test_what_is_no_sftp_server_is_unavailable(
    tmp_path: Path, folder: Path, server: str
) -> None:
    with running_sshd(tmp_path / "sshd", sftp_server=server) as sshd:
        async with open_ssh(SshSettings(stall_timeout_s=1.0)) as ssh:
            with trio.fail_after(20), pytest.raises(Unavailable):
                await ssh.put(sshd.target(), in_pieces(b"x"), f"{folder}/x", **announced(b"x"))
            await ssh.exec(sshd.target(), "true", timeout_s=20)


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack(">IBI", 5, 2, 2),  # a version from before
        struct.pack(">IBI", 5, 2, 3) + struct.pack(">IBI", 2**31, 102, 1),  # a packet of 2 GiB
        struct.pack(">IBI", 5, 2, 3) + struct.pack(">IBI", 5, 102, 1),  # a handle that is cut
        struct.pack(">IBI", 5, 2, 3) + struct.pack(">IBII", 9, 102, 1, 2**31),  # longer than all
        struct.pack(">IBI", 5, 2, 3) + struct.pack(">IBI", 5, 101, 77),  # to what nobody asked
        struct.pack(">IBI", 9, 2, 3) + b"\xff\xff\xff\xff",  # an extension that is cut
    ],
)
async def test_an_sftp_server_that_means_harm_is_unavailable(
    tmp_path: Path, folder: Path, answer: bytes
) -> None:
    script = tmp_path / "server"
    said = "".join(f"\\{byte:03o}" for byte in answer)
    script.write_text(f"#!/bin/sh\nprintf '{said}'\ncat >/dev/null\n")
    script.chmod(0o755)
    with running_sshd(tmp_path / "sshd", sftp_server=str(script)) as sshd:
        async with open_ssh(SshSettings(stall_timeout_s=2.0)) as ssh:
            with trio.fail_after(20), pytest.raises(Unavailable):
                await ssh.remove(sshd.target(), f"{folder}/file")


@pytest.mark.needs("sshd", "root")
async def test_what_the_account_may_not_do_is_forbidden(ssh: Ssh, sshd: Sshd) -> None:
    # Even root may not: the kernel's own files are of no mode that would let it.
    with pytest.raises((Forbidden, Unavailable, NotFound)):
        await ssh.put(sshd.target(), in_pieces(b"x"), "/proc/self/x", **announced(b"x"))


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""
