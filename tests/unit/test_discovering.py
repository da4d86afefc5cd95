"""Where nobody answers, a node that is to join says so, and what would help."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

import pytest

from mesh.identity.tokens import Token
from swarmd.cluster import discovering
from swarmd.cluster.identity import prepare
from swarmd.domain.errors import Invalid, Unavailable
from swarmd.domain.jobs import NodeId

PIN, NOW = bytes(range(16)), 1.8e9


async def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovering, "SEEK_S_MAX", 0.2)
    with pytest.raises(
        Unavailable, match=r"on this host within 0\.2 s: start one of them with --d"
    ):
        await discovering.find_members(PIN, loopback_only=True)


def test_the_mark_shows_nothing_of_the_token() -> None:
    mark = discovering.mark_of(PIN)
    assert len(mark) == 16 and mark != PIN and discovering.mark_of(PIN[::-1]) != mark


def test_a_token_without_a_way_in_founds_no_swarm(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="give --join with the address of a member, or --discover"):
        prepare(
            tmp_path, NodeId(str(UUID(int=7))), joins=False, token=Token(PIN, PIN),
            earlier=None, alone=True, entropy=os.urandom, now=NOW,
        )  # fmt: skip
