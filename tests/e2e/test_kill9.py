"""kill -9 under load, at random moments: what was acknowledged is not lost, nor repeated.

Five kills, or as many as `SWARMD_SOAK_KILLS` says, which is fifty in `make soak`. They fall where
`SWARMD_SOAK_SEED` has them; the seed is in the failure, and its folder holds the state, the traces
and the logs.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.daemon import runner_pids, start_daemon
from tests.durability import JobSeen, check_jobs, check_state
from tests.load import QUICK, SHELL, Load, drain
from tests.swarms import until

# Read at import: no test sees settings of whoever runs it.
KILLS = int(os.environ.get("SWARMD_SOAK_KILLS", "5"))
SEED = int(os.environ.get("SWARMD_SOAK_SEED", "") or random.SystemRandom().randrange(10**6))
SLOTS = 6


class Swarm:
    """A daemon that is killed and started again on the same data and ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trace = folder / "trace"
        self.trace.touch()
        self.trace.chmod(0o666)  # jobs may run as another account
        self.daemon = start_daemon(folder, jobs={"slots": SLOTS})
        self.blobs = {path: self._upload(path) for path in (QUICK, SHELL)}

    def _upload(self, path: Path) -> str:
        data = path.read_bytes()
        answer = self.daemon.request("PUT", "/api/v1/blobs", data, surface="console")
        assert answer.status == 201, answer.body
        return hashlib.sha256(data).hexdigest()

    def kill_daemon(self) -> None:
        self.daemon.kill()

    def start(self) -> None:
        ports = self.daemon.ports
        self.daemon = start_daemon(
            self.folder, jobs={"slots": SLOTS},
            surfaces__jobqueue={"port": ports["jobqueue"]},
            surfaces__console={"port": ports["console"]},
        )  # fmt: skip

    def kill_runner(self) -> None:
        (pid,) = self.wait_runner()
        os.kill(pid, signal.SIGKILL)

    def wait_runner(self) -> list[int]:
        """There is one, as soon as it was started."""

        def one() -> list[int] | None:
            pids = runner_pids(self.daemon.data_dir)
            return pids if len(pids) == 1 else None

        return until(one, "there is not one runner")

    def wait_work(self, since: int) -> None:
        """Until something runs that began after so many bytes of the trace, and has not ended."""

        def under_way() -> bool:
            *lines, _ = self.trace.read_bytes()[since:].split(b"\n")
            said = {line.rpartition(b" ")[0]: line.rpartition(b" ")[2] for line in lines}
            begun = {line.rpartition(b" ")[0] for line in lines if line.endswith(b" start")}
            return any(said[tag] != b"end" for tag in begun)

        until(under_way, "nothing begins")

    def drain(self) -> None:
        """Wait until nothing waits or runs any more."""
        stats = "/api/v1/admin/stats"
        drain(lambda: self.daemon.request("GET", stats).json["jobs_by_status"])


@contextmanager
def swarm_under_load(folder: Path, *, quick: bool = True) -> Iterator[tuple[Swarm, Load]]:
    """Load for the block; then all of it is worked off, and the daemon has stopped."""
    swarm = Swarm(folder)
    try:
        place = ("127.0.0.1", swarm.daemon.ports["jobqueue"])
        load = Load([place], swarm.trace, swarm.blobs, SEED)
        with load.running(quick=quick):
            yield swarm, load
            load.stop_submitting()
            swarm.drain()
        assert swarm.daemon.stop() == 0
    except BaseException as failure:
        failure.add_note(f"SWARMD_SOAK_SEED={SEED}; see {folder}")
        failure.add_note(f"the daemon's log ends:\n{swarm.daemon.stderr()[-4000:]}")
        raise
    finally:
        swarm.daemon.end()


def state_of(swarm: Swarm) -> Path:
    return swarm.daemon.data_dir / "state.db"


def ran(jobs: list[JobSeen]) -> Counter[str]:
    return Counter(job.type for job in jobs)


def test_no_job_is_lost_or_run_twice_when_the_daemon_is_killed(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    with swarm_under_load(tmp_path) as (swarm, load):
        for _ in range(KILLS):
            time.sleep(rng.uniform(0.05, 1.5))
            swarm.kill_daemon()
            swarm.start()
        time.sleep(0.3)
    try:
        check_state(state_of(swarm))
        jobs = check_jobs(state_of(swarm), swarm.trace, load, recoveries=False)
    except BaseException as failure:
        failure.add_note(f"SWARMD_SOAK_SEED={SEED}; see {tmp_path}")
        raise
    # The proof is worth something only if all of this took place.
    assert load.losses and load.completed, "no client noticed a kill, or no executor worked"
    assert min(ran(jobs)[kind] for kind in ("quick", "trace", "outside")) > 5, ran(jobs)


def test_no_job_runs_twice_when_the_runner_is_killed(tmp_path: Path) -> None:
    """With the daemon, and without: what ran is lost, ended with its whole tree, and run again."""
    rng = random.Random(SEED + 1)
    with swarm_under_load(tmp_path, quick=False) as (swarm, load):
        for number in range(max(3, KILLS // 2)):
            began = swarm.trace.stat().st_size
            time.sleep(rng.uniform(0.6, 1.5))
            swarm.wait_runner()
            swarm.wait_work(began)
            if number % 3 == 1:
                swarm.kill_daemon()
                swarm.kill_runner()
                swarm.start()
            elif number % 3 == 2:
                swarm.kill_runner()
                swarm.kill_daemon()
                swarm.start()
            else:
                swarm.kill_runner()
        time.sleep(0.5)
    try:
        check_state(state_of(swarm))
        jobs = check_jobs(state_of(swarm), swarm.trace, load, recoveries=True)
    except BaseException as failure:
        failure.add_note(f"SWARMD_SOAK_SEED={SEED}; see {tmp_path}")
        raise
    lost = [job for job in jobs if len(job.attempts) > 1]
    assert lost, "no attempt was lost: the kills met nothing"
    assert any(len(job.runs) > 1 for job in lost), "nothing that had begun was run again"
