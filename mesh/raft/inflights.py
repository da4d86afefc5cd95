"""The appends on their way to one peer: no more of them, nor more bytes, than was allowed.

Added in rising order of their last index, freed from the front.
"""

from __future__ import annotations

from collections import deque


class Inflights:
    __slots__ = ("_sent", "bytes", "bytes_max", "count_max")

    def __init__(self, count_max: int, bytes_max: int = 0) -> None:
        """`bytes_max` 0 means that bytes are not limited."""
        self.count_max = count_max
        self.bytes_max = bytes_max
        self.bytes = 0
        self._sent: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def full(self) -> bool:
        return len(self._sent) >= self.count_max or (
            self.bytes_max > 0 and self.bytes >= self.bytes_max
        )

    def add(self, last_index: int, size_bytes: int) -> None:
        """Note a message that is being sent. The last one may reach beyond `bytes_max`."""
        assert not self.full, "an append was sent to a peer with a full window"
        self._sent.append((last_index, size_bytes))
        self.bytes += size_bytes

    def free_up_to(self, index: int) -> None:
        """The peer has everything up to this index."""
        sent = self._sent
        while sent and sent[0][0] <= index:
            self.bytes -= sent.popleft()[1]

    def clear(self) -> None:
        self._sent.clear()
        self.bytes = 0
