"""The exit journal: what was started and how it ended, kept on disk until the daemon has it.

Records are lines with a checksum, only ever appended; an end is told to the daemon only after
`sync`, one fdatasync for all that ended in a turn of the loop. A torn tail is what a crash leaves
and is cut off; a torn record *before* good ones is damage: the file is set aside, and told.
"""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

from swarmd.runner.spans import Spans
from swarmd.runner.wire import dumps

COMPACT_BYTES = 1024 * 1024
JOURNAL_BYTES_MAX = 256 * 1024 * 1024


class Began:
    """A start that the journal knows, of which it knows no end."""

    __slots__ = ("boot_id", "pid", "since_ns", "uid")

    def __init__(self, uid: int, since_ns: int, boot_id: str) -> None:
        self.uid = uid
        self.since_ns = since_ns
        self.boot_id = boot_id
        self.pid = 0


class Journal:
    """Opened by the one process that holds the data directory's lock."""

    def __init__(self, data_dir: str, boot_id: str) -> None:
        self.path = os.path.join(data_dir, "exits.log")
        self.boot_id = boot_id
        self.key = ""
        self.began: dict[int, Began] = {}
        self.ended: dict[int, str] = {}
        self.acked = Spans()
        self.damage = ""
        self._size = 0
        self._live_size = 0
        self._fd = -1
        data = self._read()
        good = self._replay(data)
        if not self.key:
            self.key = os.urandom(6).hex()
        if self.damage:
            os.replace(self.path, f"{self.path}.damaged")
        elif good < len(data):
            os.truncate(self.path, good)
        self.compact()

    def _read(self) -> bytes:
        try:
            if os.stat(self.path).st_size > JOURNAL_BYTES_MAX:
                os.replace(self.path, f"{self.path}.damaged")
                self.damage = "the exit journal was longer than any that is written; set aside"
                return b""
            with open(self.path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""

    def _replay(self, data: bytes) -> int:
        """Take in every good record; answer where the good part ends."""
        boot_id, at, good, bad_at = "", 0, 0, -1
        while at < len(data):
            end = data.find(b"\n", at)
            record = _parse(data[at:end]) if end >= 0 else None
            if record is None:
                bad_at = at if bad_at < 0 else bad_at
                at = len(data) if end < 0 else end + 1
                continue
            if bad_at >= 0:
                self.damage = f"the exit journal was damaged at byte {bad_at}; set aside"
            boot_id = record.get("boot_id", boot_id)
            self._take(record, boot_id)
            at = good = end + 1
        return good

    def _take(self, record: dict[str, Any], boot_id: str) -> None:
        self.key = record.get("key", self.key)
        if "acked_spans" in record:
            self.acked = Spans(record["acked_spans"])
        for attempt_id, uid, since_ns in record.get("began", ()):
            self.began[attempt_id] = Began(uid, since_ns, boot_id)
        for attempt_id, pid in record.get("started", ()):
            if attempt_id in self.began:
                self.began[attempt_id].pid = pid
        for end in record.get("ended", ()):
            self.began.pop(end["id"], None)
            if boot_id != self.boot_id:  # Times of another boot mean nothing in this one.
                end.pop("started_ns", None)
                end.pop("ended_ns", None)
            self.ended[end["id"]] = dumps(end)
        for attempt_id in record.get("acked", ()):
            self.began.pop(attempt_id, None)
            self.ended.pop(attempt_id, None)
            self.acked.add(attempt_id)

    # -- writing ---------------------------------------------------------------------------------

    def begin(self, attempts: list[tuple[int, int, int]]) -> None:
        """Remember (id, uid, boot ns) before they are started: none may run twice."""
        self._append(f'{{"began":{dumps(attempts)}}}')
        for attempt_id, uid, since_ns in attempts:
            self.began[attempt_id] = Began(uid, since_ns, self.boot_id)

    def commit(self, started: list[tuple[int, int]], ends: dict[int, str], acks: list[int]) -> None:
        """Write what a turn brought, and put ends on the disk. On OSError nothing was taken in."""
        parts = []
        if started:
            parts.append(f'"started":{dumps(started)}')
        if ends:
            parts.append(f'"ended":[{",".join(ends.values())}]')
        if acks:
            parts.append(f'"acked":{dumps(acks)}')
        if not parts:
            return
        self._append("{" + ",".join(parts) + "}")
        if ends:
            os.fdatasync(self._fd)
        for attempt_id, pid in started:
            if attempt_id in self.began:
                self.began[attempt_id].pid = pid
        for attempt_id, text in ends.items():
            self.began.pop(attempt_id, None)
            self.ended[attempt_id] = text
        for attempt_id in acks:
            self.ended.pop(attempt_id, None)
            self.acked.add(attempt_id)
        if self._size > max(COMPACT_BYTES, 2 * self._live_size):
            self.compact()

    def compact(self) -> None:
        """Write what still matters to a new file. Also the way back after a failed write or sync:
        pages that could not be written are not trusted again."""
        lines = [
            dumps({"boot_id": self.boot_id, "key": self.key, "acked_spans": self.acked.pairs()})
        ]
        for boot_id in dict.fromkeys(b.boot_id for b in self.began.values()):
            mine = {i: b for i, b in self.began.items() if b.boot_id == boot_id}
            lines.append(
                dumps(
                    {
                        "boot_id": boot_id,
                        "began": [(i, b.uid, b.since_ns) for i, b in mine.items()],
                        "started": [(i, b.pid) for i, b in mine.items() if b.pid],
                    }
                )
            )
        lines.append(dumps({"boot_id": self.boot_id}))
        lines += [f'{{"ended":[{text}]}}' for text in self.ended.values()]
        data = b"".join(map(_line, lines))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(f"{self.path}.new", flags, 0o600)
        try:
            _write(fd, data)
            os.fdatasync(fd)
            os.replace(f"{self.path}.new", self.path)
            folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except BaseException:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._size = self._live_size = len(data)

    def _append(self, text: str) -> None:
        data = _line(text)
        _write(self._fd, data)
        self._size += len(data)


def _line(text: str) -> bytes:
    data = text.encode("ascii")
    return b"%08x %b\n" % (zlib.crc32(data), data)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:]):
            return None
        record = json.loads(line[9:])
    except ValueError:
        return None
    return record if type(record) is dict else None


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
