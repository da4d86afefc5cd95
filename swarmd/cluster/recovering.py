"""Recovering: a survivor goes on alone where a majority of the voters is lost for good.

Nothing is taken out of its log, and the state is not touched: entries that make it the only voter,
and give the swarm a lineage of its own, are put behind what is there. That is done to a copy of the
log, which then takes the log's place in one step: whenever it is broken off, the node is as it was,
or recovered.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path

import msgspec

from mesh.identity.boxes import Entropy
from mesh.identity.errors import IdentityError
from mesh.identity.files import load_identity
from mesh.raft import (
    Change,
    ChangeKind,
    ConfChangeV2,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    conf_state_after,
    decode_change,
    encode_change,
)
from mesh.wal import RaftLog, find_put_back
from mesh.wal_errors import LogError
from mesh.wal_sqlite import OWNER, open_log
from swarmd.cluster.identity import FOLDER
from swarmd.cluster.lineage import (
    CLUSTER_FACT,
    CLUSTER_ID,
    RECOVERIES_MAX,
    SALT_BYTES,
    recovered_id,
    recoveries,
)
from swarmd.cluster.numbers import raft_id_of
from swarmd.cluster.opening import NOT_JOINED, SEEDS
from swarmd.cluster.snapshots import decode_conf
from swarmd.cluster.trust import SEALING_KEY
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Conflict, SwarmError, Unavailable, instead
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import NodeKind
from swarmd.state.commands import PutSetting, Request, RequestId
from swarmd.state.machine import Place, read_meta, read_place
from swarmd.state.queries import QUERIES, GetSetting, GetTrust, ListNodes, Query, T
from swarmd.state.store import encode_batch, encode_request, sync_directory

PART = "recover.part"
KEPT = "before-recover"
TERMS = 1 << 20
"""The new term is in another such stretch than any that the lost ones can have come to."""
ACTOR = Actor("local", "recover")
_SPARE_BYTES = 64 * 1024 * 1024


class Survivor(msgspec.Struct, frozen=True):
    """What lies in a data directory, as far as it matters to whoever goes on with it."""

    node_id: NodeId
    name: str
    cluster_id: str
    term: int
    last: int
    committed: int
    """As far as it knew; what is behind that is kept too."""
    applied: int
    votes: bool
    voters: tuple[str, ...]
    """By name, itself too."""
    addresses: dict[str, tuple[str, ...]]
    """Where the other voters are reached, by name."""
    opens_keys: bool


class Done(msgspec.Struct, frozen=True):
    cluster_id: str
    node_id: NodeId
    name: str
    last: int
    """Of the entries that are kept; what others had behind it is lost."""
    term: int
    voters_lost: tuple[str, ...]
    kept: str
    """Where the files lie as they were."""


def go_on(
    conf: ConfState, entries: Sequence[Entry], last: int, term: int, me: int, data: bytes
) -> tuple[list[Entry], ConfState]:
    """The entries behind the last: whoever votes becomes a learner, but for this node. `conf` is
    as of what stands before `entries`, and `data` a normal entry's. Sans I/O."""
    for entry in entries:
        if (change := decode_change(entry)) is not None:
            conf = conf_state_after(conf, change)
    changes = [ConfChangeV2()] if conf.voters_outgoing else []
    after = conf_state_after(conf, changes[0]) if changes else conf
    steps = [] if me in after.voters else [Change(ChangeKind.ADD_NODE, me)]
    steps += [Change(ChangeKind.ADD_LEARNER, voter) for voter in after.voters if voter != me]
    changes += [ConfChangeV2(changes=(step,)) for step in steps]
    made: list[Entry] = []
    for change in changes:
        conf = conf_state_after(conf, change)
        kind, written = encode_change(change)
        made.append(Entry(term, last + len(made) + 1, written, kind))
    made.append(Entry(term, last + len(made) + 1, data, EntryKind.NORMAL))
    return made, conf


async def inspect(data_dir: Path) -> Survivor:
    """What recover would go on with. Nobody else may have the log open. Conflict, Unavailable:
    it cannot, and why."""
    with _words():
        async with open_log(data_dir / "raft.db", create=False) as raft_log:
            return _look(data_dir, raft_log).survivor


async def recover(
    data_dir: Path, *, now_ms: int, entropy: Entropy, step: Callable[[str], None] = lambda at: None
) -> Done:
    """In a data directory that the caller holds against a daemon's start. `step` is told what was
    done last. Conflict: this is none to go on with; Unavailable: a file cannot be read or made."""
    try:
        with _words():
            return await _recover(data_dir, now_ms, entropy, step)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else f"{error.filename}: {error.strerror}"
        raise Unavailable(f"nothing was changed, this node is as it was: {why}") from error


def _words() -> AbstractContextManager[None]:
    """What the log has to say comes out alone, not in groups."""

    def words(error: BaseException) -> BaseException:
        return Unavailable(str(error)) if isinstance(error, LogError) else error

    return instead((LogError, SwarmError), words)


async def _recover(
    data_dir: Path, now_ms: int, entropy: Entropy, step: Callable[[str], None]
) -> Done:
    path, part = data_dir / "raft.db", data_dir / PART
    async with open_log(path, create=False) as raft_log:
        found = _look(data_dir, raft_log)
    survivor = found.survivor
    # Closed, it is one file: what was beside it is in it.
    for suffix in ("-wal", "-shm"):
        if path.with_name(path.name + suffix).exists():
            raise Unavailable(f"{path.name}{suffix} stays although the log was closed; look at it")
    step("looked")
    salt = entropy(SALT_BYTES)
    cluster_id = recovered_id(survivor.cluster_id, survivor.last, salt)
    kept = data_dir / f"{KEPT}-{salt.hex()}"
    _check_room(data_dir)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700)
    kept.mkdir(mode=0o700)
    for name in ("raft.db", "state.db", "state.db-wal"):
        if (data_dir / name).exists():
            _copy(data_dir / name, kept / name)
    sync_directory(kept)
    sync_directory(data_dir)
    step("kept")
    _copy(path, part / "raft.db")
    term = (survivor.term // TERMS + 1) * TERMS + int.from_bytes(entropy(2), "big")
    async with open_log(part / "raft.db", create=False) as raft_log:
        data = _told(cluster_id, max(now_ms, found.last_at))
        me = raft_id_of(survivor.node_id)
        entries, _ = go_on(found.conf, found.rest, survivor.last, term, me, data)
        hard = HardState(term, 0, entries[-1].index)
        await raft_log.append(entries=entries, hard_state=hard).wait()
        await raft_log.set_fact(CLUSTER_FACT, cluster_id.encode()).wait()
    step("made")
    with (part / "raft.db").open("rb") as made:
        os.fsync(made.fileno())
    (part / "raft.db").rename(path)
    sync_directory(data_dir)
    step("in place")
    shutil.rmtree(part, ignore_errors=True)
    lost = tuple(name for name in survivor.voters if name != survivor.name)
    return Done(cluster_id, survivor.node_id, survivor.name, survivor.last, term, lost, str(kept))


class _Found(msgspec.Struct, frozen=True):
    survivor: Survivor
    conf: ConfState
    """As of what is applied."""
    rest: tuple[Entry, ...]
    """What is not applied yet."""
    last_at: int


def _look(data_dir: Path, raft_log: RaftLog) -> _Found:
    try:
        with closing(_open_state(data_dir)) as conn:
            return _read(data_dir, raft_log, conn)
    except sqlite3.Error as error:
        raise Unavailable(f"the state in {data_dir} cannot be read: {error}") from error


def _open_state(data_dir: Path) -> sqlite3.Connection:
    path = data_dir / "state.db"
    if not path.exists():
        raise Conflict(f"there is no state of a swarm in {data_dir}; name another with --data-dir")
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


def _read(data_dir: Path, raft_log: RaftLog, conn: sqlite3.Connection) -> _Found:
    place = read_place(conn)
    _check_newest(data_dir, raft_log, place)
    assert place.conf is not None
    conf = now = decode_conf(place.conf)
    rest = _entries(raft_log, place.index + 1, raft_log.last_index())
    for entry in rest:
        if (change := decode_change(entry)) is not None:
            now = conf_state_after(now, change)
    node_id = NodeId((data_dir / "node-id").read_text().strip())
    me = raft_id_of(node_id)
    nodes = _answer(conn, ListNodes((NodeKind.MEMBER,)))
    by_raft_id = {raft_id_of(node.id): node for node in nodes}
    named = {i: n.name for i, n in by_raft_id.items()}
    known = _answer(conn, GetSetting(CLUSTER_ID))
    trust = _answer(conn, GetTrust())
    if node_id in trust.gone:
        raise Conflict("this node was removed from its swarm: another has to go on with it")
    if me not in (*now.voters, *now.learners, *now.learners_next):
        raise Conflict("this node is no member of the swarm's log: another has to go on with it")
    voters = tuple(sorted({*now.voters, *now.voters_outgoing}))
    survivor = Survivor(
        node_id=node_id,
        name=named.get(me, node_id),
        cluster_id="" if known is None else known.decode(),
        term=max(raft_log.hard_state.term, raft_log.term(raft_log.last_index())),
        last=raft_log.last_index(),
        committed=max(raft_log.hard_state.commit, place.index),
        applied=place.index,
        votes=me in now.voters,
        voters=tuple(sorted(named.get(v, f"#{v:x}") for v in voters)),
        addresses={
            by_raft_id[v].name: by_raft_id[v].mesh for v in voters if v != me and v in by_raft_id
        },
        opens_keys=not trust.authority or _opens(data_dir, trust.boxes.get(node_id, b"")),
    )
    ats = [_at(entry) for entry in rest]
    return _Found(survivor, conf, tuple(rest), max(ats, default=int(read_meta(conn, "last_at", 0))))


def _check_newest(data_dir: Path, raft_log: RaftLog, place: Place) -> None:
    if raft_log.last_index() == 0 or place.conf is None:
        raise Conflict(f"{data_dir} holds nothing of a swarm yet: another has to go on with it")
    found = find_put_back(raft_log, applied_index=place.index, applied_term=place.term or None)
    if found is not None:
        raise Conflict(
            f"the {found.which} in {data_dir} is not the newest of this node: {found.why}. Put the"
            " newest files back, or go on with another node"
        )


class Joining(msgspec.Struct, frozen=True):
    """A node that asked to be taken in, and is not yet."""

    seeds: tuple[str, ...]
    why: str
    """Why it was not the last time; empty: nobody has said."""


def joining(data_dir: Path) -> Joining | None:
    """None: it was taken in, or never asked. Only looks, beside a daemon too."""
    path = data_dir / "raft.db"
    if not path.exists():
        return None
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=2)) as conn:
            facts = dict(conn.execute("SELECT name, value FROM facts"))
    except sqlite3.Error as error:
        raise Unavailable(f"{path} cannot be read: {error}") from error
    seeds = bytes(facts.get(OWNER + SEEDS, b"")).decode(errors="replace").split()
    why = bytes(facts.get(OWNER + NOT_JOINED, b"")).decode(errors="replace")
    if not seeds or (OWNER + CLUSTER_FACT in facts and not why):
        return None
    return Joining(tuple(seeds), why)


def certificate_ends_ms(data_dir: Path) -> int | None:
    """None: this node has none. Unavailable: its file cannot be used, and why."""
    try:
        identity = load_identity(data_dir / FOLDER)
    except (IdentityError, OSError) as error:
        raise Unavailable(str(error)) from error
    if identity is None or identity.certificate is None:
        return None
    return int(identity.certificate.ends_s * 1000)


def check_survivor(survivor: Survivor) -> None:
    """Conflict: there is nothing to recover here, or it must not be."""
    if survivor.voters == (survivor.name,):
        raise Conflict("this node is the only voter: `swarmd up` starts it, nothing is lost")
    if not survivor.cluster_id:
        raise Conflict("this node does not know its swarm's id yet: another has to go on with it")
    if recoveries(survivor.cluster_id) >= RECOVERIES_MAX:
        raise Conflict(
            f"this swarm was recovered {RECOVERIES_MAX} times: found a new one from a copy of the"
            " state, see `swarmd raft restore --help`"
        )
    if not survivor.opens_keys:
        raise Conflict(
            f"{survivor.name} never voted, so it cannot open the swarm's keys: with it nobody could"
            " join any more, and no certificate be renewed. Go on with a node that voted; if there"
            " is none, found a new swarm from this node's state, which keeps the jobs: `swarmd raft"
            " restore STATE.DB --data-dir NEW`, and let all others join anew"
        )


def _answer(conn: sqlite3.Connection, query: Query[T]) -> T:
    found: T = QUERIES[type(query)](conn, query)
    return found


def _opens(data_dir: Path, box: bytes) -> bool:
    try:
        identity = load_identity(data_dir / FOLDER)
        if identity is None or identity.certificate is None or not box:
            return False
        identity.open_box(SEALING_KEY, box)
    except IdentityError:
        return False
    return True


def _entries(raft_log: RaftLog, first: int, last: int) -> list[Entry]:
    """A read may end early."""
    found: list[Entry] = []
    while first <= last:
        part = raft_log.entries(first, last + 1)
        found += part
        first = part[-1].index + 1
    return found


def _told(cluster_id: str, at: int) -> bytes:
    """The entry that says of which lineage the swarm is from here on."""
    request = Request(
        RequestId(raft_id_of(cluster_id), 1, 1), ACTOR, PutSetting(CLUSTER_ID, cluster_id.encode())
    )
    return encode_batch(at, [msgspec.Raw(encode_request(request))])


def _at(entry: Entry) -> int:
    if entry.kind is not EntryKind.NORMAL or not entry.data:
        return 0
    return int(_decode_at(entry.data)[0])


def _check_room(data_dir: Path) -> None:
    wanted = _SPARE_BYTES
    for name, times in (("raft.db", 2), ("state.db", 1), ("state.db-wal", 1)):
        with suppress(FileNotFoundError):
            wanted += times * (data_dir / name).stat().st_size
    free = shutil.disk_usage(data_dir).free
    if free < wanted:
        raise Unavailable(
            f"{data_dir} has {free >> 20} MiB free, and the copies that are made first take"
            f" {wanted >> 20} MiB: make room"
        )


def _copy(source: Path, target: Path) -> None:
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with source.open("rb") as old, os.fdopen(fd, "wb") as new:
        shutil.copyfileobj(old, new, 1 << 20)
        new.flush()
        os.fsync(new.fileno())


_decode_at = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw]).decode
