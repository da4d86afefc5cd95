"""Raw bytes against a running daemon: whatever comes, it goes on serving and holds nothing back."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest
import trio

from tests.daemon import Daemon, running_daemon
from tests.fuzz import fuzz

FUZZ_S = float(os.environ.get("SWARMD_FUZZ_S", "30"))
SETTLE_S = 20.0


def descriptors(daemon: Daemon) -> list[str]:
    """All but the state's own files: a reader more may have been opened meanwhile."""
    found = []
    for entry in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return sorted(name for name in found if "state.db" not in name)


@pytest.mark.xdist_group("fuzz")
async def test_a_daemon_survives_raw_bytes_and_leaks_no_descriptor(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    http = {"idle_timeout_s": 2.0, "header_timeout_s": 2.0, "body_timeout_s": 2.0}
    with running_daemon(tmp_path, http=http) as daemon:
        assert daemon.request("GET", "/api/v1/health").status == 200
        before = descriptors(daemon)
        async with trio.open_nursery() as nursery:
            for number, surface in enumerate(("jobqueue", "console")):
                address = ("127.0.0.1", daemon.ports[surface])
                nursery.start_soon(fuzz, address, FUZZ_S, seed + number)
        assert daemon.process.poll() is None, f"it died; seed {seed}"
        for surface in ("jobqueue", "console"):
            found = daemon.request("GET", "/api/v1/health", surface=surface)
            assert found.status == 200, f"seed {seed}"
        # A connection that was left hanging goes when its time is up, and no later.
        with trio.move_on_after(SETTLE_S):
            while len(descriptors(daemon)) > len(before):
                await trio.sleep(0.1)
        after = descriptors(daemon)
        assert len(after) <= len(before), f"seed {seed}: {before} became {after}"
        assert "Traceback" not in daemon.stderr(), f"seed {seed}"
        assert daemon.stop() == 0
