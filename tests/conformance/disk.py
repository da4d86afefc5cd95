"""A disk that keeps through a loss of power what was synced, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

from mesh.raft import MemoryStorage, Snapshot


class Disk(MemoryStorage):
    """The log on disk; a snapshot for others is made of the machine when it is asked for."""

    def __init__(self, machine: Callable[[], Snapshot]) -> None:
        super().__init__()
        self._machine = machine
        self._synced = MemoryStorage()

    @property
    def base(self) -> Snapshot:
        """The snapshot that the log on disk begins with."""
        return super().snapshot()

    def snapshot(self) -> Snapshot:
        return self._machine()

    def sync(self) -> None:
        _copy(self, self._synced)

    def after_power_loss(self) -> Disk:
        disk = Disk(self._machine)
        _copy(self._synced, disk)
        _copy(self._synced, disk._synced)
        return disk


def _copy(source: MemoryStorage, target: MemoryStorage) -> None:
    target.hard_state = source.hard_state
    target._snapshot = source._snapshot
    target._base = source._base
    target._entries = list(source._entries)
