"""etcd's transcripts, every one to the letter. The data lies where SWARMD_CONFORMANCE says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance import quorums
from tests.conformance.datadriven import Directive, parse, replay
from tests.conformance.environment import Environment
from tests.conformance.memberships import Memberships
from tests.parts import conformance_dir, need

FILES = 41
DIRECTIVES = 743

HANDLERS: dict[str, Callable[[], Callable[[Directive], str]]] = {
    "quorum": lambda: quorums.handle,
    "confchange": lambda: Memberships().handle,
    "interaction": lambda: Environment().handle,
}


def data_dir() -> Path | None:
    folder = conformance_dir()
    data = folder / "etcd-raft" if folder else None
    return data if data is not None and data.is_dir() else None


def transcripts() -> list[str]:
    data = data_dir()
    if data is None:
        return []
    return sorted(path.relative_to(data).as_posix() for path in data.glob("*/*.txt"))


if data_dir() is None:

    def test_etcd_transcripts() -> None:
        need("conformance")

else:

    @pytest.mark.parametrize("name", transcripts(), ids=str)
    def test_transcript(name: str) -> None:
        data = data_dir()
        assert data is not None
        handle = HANDLERS[name.partition("/")[0]]()
        assert replay(data / name, handle) > 0

    def test_no_transcript_is_missing() -> None:
        data = data_dir()
        assert data is not None
        names = transcripts()
        texts = [(data / name).read_text(encoding="utf-8") for name in names]
        count = sum(1 for text in texts for _ in parse(text))
        assert (len(names), count) == (FILES, DIRECTIVES)
