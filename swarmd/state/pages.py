"""Pages of the list of jobs: the numbers of those on a page, newest first, wherever it lies.

The spans' counts say in which of them the page begins and ends. Within those, jobs that agree in
kind, type, status and priority are a stream in order by an index; SQLite merges the streams. So a
page costs what it holds and less than one span that it skips, never a sort or a walk of the rest.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator

from swarmd.domain.jobs import JobFilter, JobKind
from swarmd.state.rules.spans import ALL_TYPES, SPAN_BITS, SPAN_JOBS

_STREAMS_A_QUERY = 64
"""SQLite takes some hundreds in one statement; beyond these, several answers are merged here."""


def find_page(conn: sqlite3.Connection, wanted: JobFilter) -> list[int]:
    """The numbers of the jobs on the page."""
    reach = _reach(conn, wanted)
    if reach is None:
        return []
    lowest, highest, skip = reach
    upto = skip + wanted.limit
    bounds = (lowest << SPAN_BITS, (highest << SPAN_BITS) + SPAN_JOBS - 1)
    streams = list(_streams(conn, wanted, lowest, highest))
    seqs: list[int] = []
    for start in range(0, len(streams), _STREAMS_A_QUERY):
        parts, values = [], []
        for sql, bound in streams[start : start + _STREAMS_A_QUERY]:
            parts.append(sql)
            values += [*bound, *bounds]
        merged = f"{' UNION ALL '.join(parts)} ORDER BY seq DESC LIMIT ?"
        seqs += [row[0] for row in conn.execute(merged, (*values, upto))]
    if len(streams) > _STREAMS_A_QUERY:
        seqs.sort(reverse=True)
    return seqs[skip:upto]


def _reach(conn: sqlite3.Connection, wanted: JobFilter) -> tuple[int, int, int] | None:
    """The lowest and the highest span of the page, and what is to be skipped of the highest."""
    where, values = _conditions(wanted)
    sql = f"SELECT span, sum(n) FROM spans{where} GROUP BY span ORDER BY span DESC"
    before = 0
    highest: int | None = None
    skip = 0
    for span, n in conn.execute(sql, values):
        if highest is None and before + n > wanted.offset:
            highest, skip = span, wanted.offset - before
        before += n
        if highest is not None and before >= wanted.offset + wanted.limit:
            break
    return None if highest is None else (span, highest, skip)


def _streams(
    conn: sqlite3.Connection, wanted: JobFilter, lowest: int, highest: int
) -> Iterator[tuple[str, list[object]]]:
    """Each that has jobs between the two spans, as a statement that wants the bounds of seq."""
    where, values = _conditions(wanted)
    found = conn.execute(
        f"SELECT DISTINCT kind, status, priority FROM spans{where} AND span BETWEEN ? AND ?"
        " ORDER BY kind, status, priority",
        (*values, lowest, highest),
    )
    index = "jobs_status" if wanted.type is None else "jobs_type"
    of_type: list[object] = [] if wanted.type is None else [wanted.type]
    sql = (
        f"SELECT seq FROM jobs INDEXED BY {index} WHERE kind = ? AND status = ? AND priority = ?"
        f"{' AND type = ?' if of_type else ''} AND seq BETWEEN ? AND ?"
    )
    for row in found.fetchall():
        yield sql, [*row, *of_type]


def _conditions(wanted: JobFilter) -> tuple[str, list[object]]:
    """What of the spans counts, in the order of their key."""
    kinds = [wanted.kind] if wanted.kind else list(JobKind)
    groups: list[tuple[str, list[object]]] = [
        ("kind", [kind.value for kind in kinds]),
        ("type", [ALL_TYPES if wanted.type is None else wanted.type]),
        ("status", [status.value for status in wanted.statuses]),
        ("priority", [] if wanted.priority is None else [wanted.priority]),
    ]
    terms = [f"{column} IN ({','.join('?' * len(of))})" for column, of in groups if of]
    values = list(itertools.chain.from_iterable(of for _, of in groups))
    return f" WHERE {' AND '.join(terms)}", values
