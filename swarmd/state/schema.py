"""The tables of the state, as migrations that only ever add to the end of the list.

A migration belongs to a version of the machine, and is made where that one comes into force: until
then a program of the version before reads this state, and copies of it."""

from __future__ import annotations

import sqlite3

from swarmd.domain.errors import Unavailable
from swarmd.state.commands import VERSION
from swarmd.state.versions import check_known, in_force_in

_FIRST = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE settings(key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE shapes(
    id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL UNIQUE,
    jobs INTEGER NOT NULL DEFAULT 0, ready INTEGER NOT NULL DEFAULT 0);
CREATE INDEX shapes_ready ON shapes(id) WHERE ready > 0;
CREATE TABLE jobs(
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
    tenant TEXT NOT NULL, type TEXT NOT NULL, priority INTEGER NOT NULL, status TEXT NOT NULL,
    ready INTEGER NOT NULL, waits TEXT, shape INTEGER NOT NULL, group_id TEXT,
    deps_left INTEGER NOT NULL DEFAULT 0,
    not_before INTEGER, created_at INTEGER NOT NULL, started_at INTEGER, ended_at INTEGER,
    attempt_id INTEGER, node_id TEXT, failures INTEGER NOT NULL DEFAULT 0,
    recoveries INTEGER NOT NULL DEFAULT 0, dead INTEGER NOT NULL DEFAULT 0, error TEXT,
    revision INTEGER NOT NULL);
CREATE INDEX jobs_kind ON jobs(kind, seq);
CREATE INDEX jobs_status ON jobs(kind, status, seq);
CREATE INDEX jobs_type ON jobs(kind, type, seq);
CREATE INDEX jobs_priority ON jobs(kind, priority, seq);
CREATE INDEX jobs_ready ON jobs(shape, priority DESC, seq) WHERE ready = 1;
CREATE INDEX jobs_delayed ON jobs(not_before) WHERE waits = 'backoff';
CREATE INDEX jobs_ended ON jobs(ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX jobs_group ON jobs(group_id, seq) WHERE group_id IS NOT NULL;
CREATE TABLE job_specs(seq INTEGER PRIMARY KEY, spec BLOB NOT NULL);
CREATE TABLE job_results(seq INTEGER PRIMARY KEY, result BLOB NOT NULL);
CREATE TABLE job_deps(
    dep_seq INTEGER NOT NULL, job_seq INTEGER NOT NULL, PRIMARY KEY(dep_seq, job_seq))
    WITHOUT ROWID;
CREATE TABLE settled(seq INTEGER PRIMARY KEY, completed INTEGER NOT NULL);
CREATE TABLE idempotency(
    tenant TEXT NOT NULL, key TEXT NOT NULL, seq INTEGER NOT NULL UNIQUE, spec_hash BLOB NOT NULL,
    PRIMARY KEY(tenant, key)) WITHOUT ROWID;
CREATE TABLE attempts(
    id INTEGER PRIMARY KEY AUTOINCREMENT, job_seq INTEGER NOT NULL, node_id TEXT NOT NULL,
    external INTEGER NOT NULL, address TEXT NOT NULL, status TEXT NOT NULL,
    active INTEGER NOT NULL, shape INTEGER NOT NULL, assigned_at INTEGER NOT NULL,
    started_at INTEGER, ended_at INTEGER, deadline_at INTEGER, devices TEXT NOT NULL DEFAULT '',
    exit_code INTEGER, error TEXT);
CREATE INDEX attempts_job ON attempts(job_seq);
CREATE INDEX attempts_active ON attempts(node_id, id) WHERE active = 1;
CREATE TABLE groups(id TEXT PRIMARY KEY, body BLOB NOT NULL, revision INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE nodes(
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, body BLOB NOT NULL,
    completed INTEGER NOT NULL DEFAULT 0, revision INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE blobs(
    sha256 TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, refs INTEGER NOT NULL DEFAULT 0,
    idle_since INTEGER) WITHOUT ROWID;
CREATE INDEX blobs_idle ON blobs(idle_since) WHERE idle_since IS NOT NULL;
CREATE TABLE blob_holders(
    sha256 TEXT NOT NULL, node_id TEXT NOT NULL, PRIMARY KEY(sha256, node_id)) WITHOUT ROWID;
CREATE TABLE blob_refs(
    job_seq INTEGER NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY(job_seq, sha256)) WITHOUT ROWID;
CREATE INDEX blob_refs_sha ON blob_refs(sha256);
CREATE TABLE counts(
    kind TEXT NOT NULL, status TEXT NOT NULL, priority INTEGER NOT NULL, type TEXT NOT NULL,
    n INTEGER NOT NULL, PRIMARY KEY(kind, status, priority, type)) WITHOUT ROWID;
CREATE TABLE totals(
    kind TEXT NOT NULL, name TEXT NOT NULL, label TEXT NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY(kind, name, label)) WITHOUT ROWID;
CREATE TABLE events(
    seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, entry INTEGER NOT NULL, actor BLOB NOT NULL,
    body BLOB NOT NULL, hash BLOB NOT NULL);
"""

_REQUESTS = """
CREATE TABLE sessions(
    origin INTEGER PRIMARY KEY, boot INTEGER NOT NULL, floor INTEGER NOT NULL,
    next_place INTEGER NOT NULL);
CREATE TABLE outcomes(
    origin INTEGER NOT NULL, place INTEGER NOT NULL, seq INTEGER NOT NULL, outcome BLOB NOT NULL,
    PRIMARY KEY(origin, place)) WITHOUT ROWID;
"""

_SPANS = """
DROP INDEX jobs_kind;
DROP INDEX jobs_status;
DROP INDEX jobs_type;
DROP INDEX jobs_priority;
CREATE INDEX jobs_status ON jobs(kind, status, priority, seq);
CREATE INDEX jobs_type ON jobs(kind, type, status, priority, seq);
CREATE TABLE spans(
    kind TEXT NOT NULL, type TEXT NOT NULL, span INTEGER NOT NULL, status TEXT NOT NULL,
    priority INTEGER NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY(kind, type, span, status, priority)) WITHOUT ROWID;
INSERT INTO spans SELECT kind, type, seq >> 11, status, priority, count(*) FROM jobs
    GROUP BY 1, 2, 3, 4, 5;
INSERT INTO spans SELECT kind, '', span, status, priority, sum(n) FROM spans GROUP BY 1, 3, 4, 5;
"""

_GONE = """
CREATE TABLE gone(id TEXT PRIMARY KEY, name TEXT NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX gone_at ON gone(at, id);
CREATE INDEX blob_holders_node ON blob_holders(node_id, sha256);
"""

_HOLDS = """
CREATE TABLE holds(node_id TEXT PRIMARY KEY, for_ms INTEGER, revision INTEGER NOT NULL)
    WITHOUT ROWID;
"""

_TRUST = """
CREATE TABLE secrets(name TEXT PRIMARY KEY, sealed BLOB NOT NULL, revision INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE wraps(node_id TEXT PRIMARY KEY, box BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE tokens(hash BLOB PRIMARY KEY, ends_at INTEGER NOT NULL) WITHOUT ROWID;
"""

_BUILDS = """
CREATE TABLE builders(node_id TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE build_failures(
    job_seq INTEGER NOT NULL, node_id TEXT NOT NULL, PRIMARY KEY(job_seq, node_id))
    WITHOUT ROWID;
CREATE TABLE revoked(
    id INTEGER PRIMARY KEY AUTOINCREMENT, node_id TEXT NOT NULL, package TEXT NOT NULL);
CREATE INDEX revoked_node ON revoked(node_id, id);
CREATE TABLE builds(
    id INTEGER PRIMARY KEY AUTOINCREMENT, job_id TEXT NOT NULL, package TEXT NOT NULL,
    node_id TEXT NOT NULL, node_name TEXT NOT NULL, ok INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL, error TEXT, session_id TEXT, at INTEGER NOT NULL);
CREATE INDEX builds_node ON builds(node_name, id);
CREATE INDEX builds_ok ON builds(ok, id);
CREATE TABLE build_sessions(n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE);
CREATE TABLE staged(
    node_id TEXT NOT NULL, file TEXT NOT NULL, cpv TEXT NOT NULL, body BLOB NOT NULL,
    at INTEGER NOT NULL, PRIMARY KEY(node_id, file)) WITHOUT ROWID;
CREATE INDEX staged_cpv ON staged(cpv, node_id, file);
CREATE INDEX staged_at ON staged(at, node_id, file);
CREATE TABLE binpkgs(
    path TEXT PRIMARY KEY, cpv TEXT NOT NULL, body BLOB NOT NULL, job_id TEXT NOT NULL,
    node_id TEXT NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX binpkgs_cpv ON binpkgs(cpv);
CREATE TABLE blob_pins(
    owner TEXT NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY(owner, sha256)) WITHOUT ROWID;
CREATE INDEX blob_pins_sha ON blob_pins(sha256);
CREATE TABLE care(node_id TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE payloads(
    id INTEGER PRIMARY KEY AUTOINCREMENT, sort TEXT NOT NULL, version TEXT NOT NULL,
    body BLOB NOT NULL, UNIQUE(sort, version));
CREATE INDEX payloads_sort ON payloads(sort, id);
CREATE TABLE payload_places(
    sort TEXT NOT NULL, node_id TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY(sort, node_id))
    WITHOUT ROWID;
CREATE TABLE payload_log(
    id INTEGER PRIMARY KEY AUTOINCREMENT, sort TEXT NOT NULL, node_id TEXT NOT NULL,
    body BLOB NOT NULL);
CREATE INDEX payload_log_sort ON payload_log(sort, id);
CREATE INDEX payload_log_node ON payload_log(sort, node_id, id);
CREATE TABLE payload_holds(
    sort TEXT NOT NULL, node_id TEXT NOT NULL, holder TEXT NOT NULL, by TEXT NOT NULL,
    ends_at INTEGER NOT NULL, PRIMARY KEY(sort, node_id)) WITHOUT ROWID;
CREATE TABLE build_times(key TEXT PRIMARY KEY, n INTEGER NOT NULL, total_ms INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE INDEX jobs_packages_ready ON jobs(priority DESC, seq) WHERE kind = 'package' AND ready = 1;
CREATE INDEX jobs_packages_waiting ON jobs(waits, not_before, seq)
    WHERE kind = 'package' AND waits IS NOT NULL;
"""

_TERMINALS = """
CREATE TABLE terminals(
    n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, via TEXT NOT NULL,
    began_at INTEGER NOT NULL, size_bytes INTEGER NOT NULL, body BLOB NOT NULL);
"""

_ROLLS = """
CREATE TABLE payload_rolls(sort TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE drone_tokens(name TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
"""

_ORDER = """
CREATE TABLE given_up(seq INTEGER PRIMARY KEY, upto INTEGER NOT NULL);
CREATE TABLE session_sums(
    id TEXT PRIMARY KEY, received INTEGER NOT NULL, dropped INTEGER NOT NULL,
    ended_at INTEGER NOT NULL) WITHOUT ROWID;
"""

MIGRATIONS: tuple[tuple[str, int, str], ...] = (
    ("first", 1, _FIRST),
    ("requests", 1, _REQUESTS),
    ("spans", 1, _SPANS),
    ("gone", 1, _GONE),
    ("holds", 1, _HOLDS),
    ("trust", 1, _TRUST),
    ("builds", 3, _BUILDS),
    ("terminals", 4, _TERMINALS),
    ("rolls", 4, _ROLLS),
    ("order", 4, _ORDER),
)
"""Each with its name and the version that it comes with."""


def migrate(conn: sqlite3.Connection, known: int = VERSION) -> None:
    """Bring the file to the tables of the version that is in force in it. Outdated: that is newer
    than what this program knows."""
    check_known(version := in_force_in(conn), known)
    migrate_to(conn, version)


def migrate_to(conn: sqlite3.Connection, version: int) -> None:
    """Within the transaction that is open, if there is one."""
    from sqlite_utils import Database, Migrations  # late: half of its weight is a command line

    known = Migrations("swarmd")
    for name, since, script in MIGRATIONS:
        if since > version:
            continue

        def step(db: Database, script: str = script) -> None:
            for statement in script.split(";"):
                if statement.strip():
                    db.execute(statement)

        step.__name__ = name
        known(name=name)(step)
    db = Database(conn)
    if "_sqlite_migrations" in db.table_names():
        query = "SELECT name FROM _sqlite_migrations WHERE migration_set = 'swarmd'"
        foreign = {str(row[0]) for row in conn.execute(query)} - {n for n, _, _ in MIGRATIONS}
        if foreign:
            raise Unavailable(
                "the state was written by a newer swarmd; start that version, or give this one"
                " another data directory",
                unknown_migrations=sorted(foreign),
            )
    known.apply(db)
    # When that was differs from node to node, and nothing in a state may.
    db.execute("UPDATE _sqlite_migrations SET applied_at = '' WHERE applied_at != ''")
