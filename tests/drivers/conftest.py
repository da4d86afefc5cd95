"""What the drivers' tests of ssh share: a real sshd of the test's own, and a client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from swarmd.drivers.ssh import Ssh, SshSettings, open_ssh
from tests.parts import need
from tests.sshd import Sshd, running_sshd


@pytest.fixture
def sshd_env() -> dict[str, str]:
    """What is set in the sessions of `sshd`; a module has one of its own that wants something."""
    return {}


@pytest.fixture
def sshd(tmp_path: Path, sshd_env: dict[str, str]) -> Iterator[Sshd]:
    need("sshd")
    with running_sshd(tmp_path / "sshd", env=sshd_env) as sshd:
        yield sshd


@pytest.fixture
async def ssh() -> AsyncIterator[Ssh]:
    # What a late or cancelled command left is ended on a slow machine as well.
    async with open_ssh(SshSettings(end_timeout_s=30.0)) as ssh:
        yield ssh
