"""Doctor: what is wrong with the swarm as this node sees it, in plain words, and what to do.

Needs no quorum: whom it asks it asks briefly, and what nobody answers it says.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec
import trio

from swarmd.cluster.asks import MeasureTrips, ReadLogView, ReadRing, Trip
from swarmd.cluster.handle import Cluster, Doubles, LogView, local_reads
from swarmd.domain.errors import SwarmError
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node, NodeKind
from swarmd.ops.ping import measure
from swarmd.state.commands import VERSION
from swarmd.state.queries import ListNodes

ASK_S_MAX = 1.5
ASKED_MAX = 16
MEASURED_MAX = 64
CLOCK_OFF_MS = 1000
CLOCK_WRONG_MS = 5000
"""A leader that is further off hands over."""
BEHIND_MAX = 1000
CERTIFICATE_EARLY_MS = 14 * 24 * 3600_000
"""It is renewed a month before its end: this late something keeps it from that."""
DISK_FREE_WRONG = 256 * 1024 * 1024
DISK_FREE_LOW = 1024 * 1024 * 1024

WRONG, WARNING, NOTE = "wrong", "warning", "note"


class Finding(msgspec.Struct, frozen=True):
    level: str
    """wrong: something does not work. warning: it will not bear much more. note: good to know."""
    what: str
    todo: tuple[str, ...] = ()
    """In this order."""


class Examination(msgspec.Struct, frozen=True):
    node: str
    cluster_id: str
    running: bool
    healthy: bool
    findings: tuple[Finding, ...]


def examined(node: str, cluster_id: str, running: bool, findings: Sequence[Finding]) -> Examination:
    order = (WRONG, WARNING, NOTE)
    ranked = sorted(findings, key=lambda finding: order.index(finding.level))
    healthy = not any(finding.level == WRONG for finding in findings)
    return Examination(node, cluster_id, running, healthy, tuple(ranked))


class Voter(msgspec.Struct, frozen=True):
    """Whoever votes, as far as it matters to whether enough do."""

    name: str
    there: bool
    address: str = ""
    last: tuple[int, int] | None = None
    """The term and the index with which its log ends, where that is known."""


def quorum(me: str, voters: Sequence[Voter], leader: str | None, running: bool) -> list[Finding]:
    """Whether enough voters are there for writes; and if not, what to do. Sans I/O."""
    count, needed = len(voters), len(voters) // 2 + 1
    there = [voter for voter in voters if voter.there]
    gone = [voter for voter in voters if not voter.there]
    if not count:
        return []
    if len(there) < needed:
        return [_lost(me, voters, there, gone, needed, running)]
    findings = []
    if leader is None and running:
        findings.append(
            Finding(
                WRONG,
                f"nobody leads, although {len(there)} of {count} voters are reached from here,"
                f" {needed} are needed",
                (
                    "wait ten seconds: an election takes two",
                    "run `swarmd doctor` on " + ", ".join(v.name for v in there if v.name != me)
                    + ": each says whom it reaches; a firewall may let through one way alone",
                ),
            )
        )  # fmt: skip
    if gone:
        names = _list(gone)
        level = "no further voter may be lost" if len(there) == needed else "more may be lost"
        findings.append(
            Finding(
                WARNING,
                f"{len(gone)} of {count} voters {'is' if len(gone) == 1 else 'are'} not there:"
                f" {names}. {needed} are needed: {level}",
                (
                    f"start {names} again",
                    "what is gone for good: `swarmd remove NODE`",
                ),
            )
        )
    elif count == 2:
        findings.append(
            Finding(
                WARNING,
                "two nodes vote: losing either of them stops writes, which one alone would not",
                ("let a third node join: `swarmd token` here, `swarmd up --join` there",),
            )
        )
    return findings


def _lost(
    me: str, voters: Sequence[Voter], there: Sequence[Voter], gone: Sequence[Voter], needed: int,
    running: bool,
) -> Finding:  # fmt: skip
    more = needed - len(there)
    reached = ", ".join(v.name for v in there) or "none"
    how = "reaches" if running else "can reach"
    what = (
        f"there is no quorum: of {len(voters)} voters ({', '.join(v.name for v in voters)}) this"
        f" node {how} {len(there)} ({reached}), {needed} are needed, so {more} more. Writes are"
        " refused until then; nothing that was acknowledged is lost"
    )
    known = [voter for voter in there if voter.last is not None]
    furthest = max(known, key=lambda v: (v.last or (0, 0), v.name), default=None)
    on = furthest.name if furthest is not None else "the survivor whose log is furthest"
    return Finding(
        WRONG,
        what,
        (
            f"start {_list(gone)}: {more} of them are enough, and nothing is lost",
            "if they run, look at the network between them and this node (the mesh's port, TCP and"
            " UDP)",
            f"only if so many of them are gone FOR GOOD: on {on} (run `swarmd doctor` on each"
            " survivor; the highest term and then the highest entry is the furthest) `swarmd down`"
            " and `swarmd recover`",
        ),
    )


def _list(voters: Sequence[Voter]) -> str:
    return ", ".join(f"{v.name} ({v.address})" if v.address else v.name for v in voters)


async def examine(cluster: Cluster, data_dir: Path, builds_not: str | None = None) -> Examination:
    """`builds_not`: why this node, which is to build packages, does not."""
    with local_reads():
        nodes: list[Node] = await cluster.read(ListNodes((NodeKind.MEMBER,)))
    by_id = {node.id: node for node in nodes}
    view = cluster.log_view()
    others = [n for n in by_id if n != cluster.node.id]
    there = [n for n in others if cluster.peer(n).alive]
    views, trips, back = await _ask_around(cluster, there[:ASKED_MAX], others[:MEASURED_MAX])
    views[cluster.node.id] = view
    findings = [
        *_voters(cluster, view, views, by_id),
        *_members(cluster, view, views, by_id),
        *doubles(cluster.doubles(), cluster.node.id, by_id),
        *_ways(cluster, trips, back, by_id),
        *_versions(cluster, by_id),
        *certificate(_certificate_ends(cluster), cluster.clock_ms()),
        *await trio.to_thread.run_sync(disk, data_dir),
        *await _keys(cluster),
        *builder(builds_not),
    ]
    return examined(cluster.node.name, cluster.cluster_id, True, findings)


async def _ask_around(
    cluster: Cluster, there: Collection[NodeId], others: Sequence[NodeId]
) -> tuple[dict[NodeId, LogView], list[Trip], dict[NodeId, str]]:
    """Where the logs of others stand, how far they are, and why one of them does not reach us."""
    views: dict[NodeId, LogView] = {}
    back: dict[NodeId, str] = {}
    trips: list[Trip] = []
    me = cluster.node.id

    async def look(node_id: NodeId) -> None:
        with trio.move_on_after(ASK_S_MAX):
            try:
                views[node_id] = await cluster.ask(node_id, ReadLogView())
                (trip,) = await cluster.ask(node_id, MeasureTrips((me,), 1))
                if trip.lost:
                    back[node_id] = trip.why
            except (SwarmError, ValueError):
                pass  # it says so in the ways

    async with trio.open_nursery() as nursery:
        for node_id in there:
            nursery.start_soon(look, node_id)
        trips = await measure(cluster, MeasureTrips(tuple(others), 1))
    return views, trips, back


def _voters(
    cluster: Cluster, view: LogView, views: Mapping[NodeId, LogView], nodes: Mapping[NodeId, Node]
) -> list[Finding]:
    leader = cluster.leadership().leader
    voters = []
    for node_id in view.voters:
        node, seen = nodes.get(node_id), views.get(node_id)
        voters.append(
            Voter(
                _name(nodes, node_id),
                cluster.peer(node_id).alive,
                node.mesh[0] if node is not None and node.mesh else "",
                None if seen is None else (seen.term, seen.last),
            )
        )
    voters.sort(key=lambda voter: voter.name)
    findings = quorum(
        cluster.node.name, voters, None if leader is None else _name(nodes, leader), True
    )
    if len(view.voters) == 1 and len(nodes) > 1:
        findings.append(
            Finding(NOTE, "one node votes yet; others do so as soon as they have caught up")
        )
    findings.append(
        Finding(NOTE, f"this node's log ends at entry {view.last}, its term is {view.term}")
    )
    return findings


def _members(
    cluster: Cluster, view: LogView, views: Mapping[NodeId, LogView], nodes: Mapping[NodeId, Node]
) -> list[Finding]:
    findings = []
    for node_id in sorted(nodes, key=lambda n: nodes[n].name):
        if node_id in view.voters or cluster.peer(node_id).alive:
            continue
        name, address = nodes[node_id].name, ", ".join(nodes[node_id].mesh)
        findings.append(
            Finding(
                WARNING,
                f"{name} ({address}) is not there",
                (f"start it, or `swarmd remove {name}` if it is gone for good",),
            )
        )
    leader = cluster.leadership().leader
    seen = None if leader is None else views.get(leader)
    for node_id, progress in sorted((seen.progress if seen is not None else {}).items()):
        assert seen is not None
        behind = seen.last - progress.match
        if progress.active and behind > BEHIND_MAX:
            findings.append(
                Finding(
                    WARNING,
                    f"{_name(nodes, node_id)} is {behind} entries behind"
                    + (" and is being sent a copy" if progress.state == "snapshot" else ""),
                    ("look at its disk and at the way to it (`swarmd ping`) if that goes on",),
                )
            )
    return findings


def _ways(
    cluster: Cluster, trips: Sequence[Trip], back: Mapping[NodeId, str],
    nodes: Mapping[NodeId, Node],
) -> list[Finding]:  # fmt: skip
    findings = []
    mine = ", ".join(cluster.node.mesh)
    for trip in trips:
        name = _name(nodes, trip.node_id)
        if trip.lost and not cluster.peer(trip.node_id).alive:
            findings.append(Finding(NOTE, f"{name} is not reached: {trip.why}"))
        elif trip.lost:
            findings.append(
                Finding(WARNING, f"{name} is there and does not answer: {trip.why}",
                        ("run `swarmd doctor` there; it may be busy, or just stopped",))
            )  # fmt: skip
        elif trip.node_id in back:
            findings.append(
                Finding(
                    WRONG,
                    f"{name} does not reach this node at {mine}: {back[trip.node_id]}",
                    (
                        "look at the firewall of this host (the mesh's port, TCP and UDP)",
                        "if others reach this host elsewhere, say where: --advertise, or"
                        " node.advertise",
                    ),
                )
            )
        findings += clock(name, trip.clock_ahead_ms)
    return findings


def clock(name: str, ahead_ms: int | None) -> list[Finding]:
    if ahead_ms is None or abs(ahead_ms) < CLOCK_OFF_MS:
        return []
    side = "ahead of" if ahead_ms > 0 else "behind"
    level = WRONG if abs(ahead_ms) >= CLOCK_WRONG_MS else WARNING
    return [
        Finding(
            level,
            f"the clock of {name} is {abs(ahead_ms) / 1000:.1f} s {side} that of this node",
            ("have both hosts keep the time (chrony, systemd-timesyncd)",),
        )
    ]


def doubles(
    found: Doubles, me: NodeId, nodes: Mapping[NodeId, Node]
) -> list[Finding]:  # fmt: skip
    """Two with one name, or one id: a copied host, most likely."""
    findings = []
    for name, namesakes in sorted(found.names.items()):
        (keeper, at), *others = namesakes
        there = "; ".join(f"{_short(n)} at {a or 'an unknown place'}" for n, a in others)
        todo = [f"give {_short(n)} a name of its own there (--name, node.name)" for n, _ in others]
        if strangers := [_short(n) for n, _ in others if n not in nodes]:
            todo.append(
                f"{', '.join(strangers)}: no member by what this node knows; if it was removed, or"
                " is of a swarm that was recovered apart, stop it"
            )
        findings.append(
            Finding(
                WARNING,
                f"{len(namesakes)} nodes that are alive are called {name}: {_short(keeper)} at"
                f" {at or 'an unknown place'}, the oldest, keeps the name; {there}",
                tuple(todo),
            )
        )
    if found.me:
        findings.append(
            Finding(
                WRONG,
                f"another process runs under the id of this node ({_short(me)}), at"
                f" {', '.join(found.me)}: a copy of its data directory, most likely",
                (
                    "stop the copy at once: what two say under one id is trusted as one's word",
                    "move its data directory away there, and let it join as a new node",
                ),
            )
        )
    return findings


def _short(node_id: NodeId) -> str:
    return node_id[:8]


def _versions(cluster: Cluster, nodes: Mapping[NodeId, Node]) -> list[Finding]:
    by_version: dict[str, list[str]] = {}
    for node in nodes.values():
        by_version.setdefault(node.version, []).append(node.name)
    findings = []
    if len(by_version) > 1:
        said = "; ".join(
            f"{v or '?'}: {', '.join(sorted(n))}" for v, n in sorted(by_version.items())
        )
        findings.append(
            Finding(NOTE, f"versions differ ({said}): what is new waits until all have it",
                    ("bring all to the newest, one after the other",))
        )  # fmt: skip
    elif cluster.cluster_version() < VERSION and cluster.leadership().leader is not None:
        findings.append(
            Finding(NOTE, f"the swarm still works as of version {cluster.cluster_version()} of its"
                          f" state; it goes over to {VERSION} by itself within seconds")
        )  # fmt: skip
    return findings


def _certificate_ends(cluster: Cluster) -> int | None:
    return None if cluster.trust is None else cluster.trust.certificate_ends_ms


def certificate(ends_ms: int | None, now_ms: int) -> list[Finding]:
    if ends_ms is None:
        return []
    left_ms = ends_ms - now_ms
    if left_ms <= 0:
        return [
            Finding(
                WRONG,
                f"this node's certificate ended {_days(-left_ms)} ago: others do not let it in",
                (
                    "look at this host's clock",
                    "start the node where it reaches a voter: for 30 days after the end it is given"
                    " a new one",
                    "after that: move the data directory away and join anew, with a token",
                ),
            )
        ]
    if left_ms < CERTIFICATE_EARLY_MS:
        return [
            Finding(
                WARNING,
                f"this node's certificate ends in {_days(left_ms)} and should have been renewed",
                ("see that this node reaches a voter (`swarmd ping`)",),
            )
        ]
    return []


def _days(milliseconds: int) -> str:
    hours = milliseconds // 3600_000
    return f"{hours // 24} days" if hours >= 48 else f"{hours} hours"


def disk(data_dir: Path) -> list[Finding]:
    """Blocks."""
    try:
        usage = shutil.disk_usage(data_dir)
    except OSError as error:
        return [Finding(WRONG, f"{data_dir} cannot be looked at: {error.strerror}")]
    said = f"{usage.free >> 20} MiB are free where {data_dir} is"
    todo = (
        "make room: old logs of jobs in attempts/, copies of earlier days (set-aside,"
        " before-recover-…); never raft.db, state.db or what begins with their names",
    )
    if usage.free < DISK_FREE_WRONG:
        return [Finding(WRONG, f"{said}: without room the node ends itself", todo)]
    if usage.free < DISK_FREE_LOW:
        return [Finding(WARNING, said, todo)]
    return []


def builder(trouble: str | None) -> list[Finding]:
    """Of a node that is to build packages."""
    if trouble is None:
        return []
    return [
        Finding(
            WRONG,
            f"this node is to build packages (builder.command), and cannot: {trouble}",
            (
                "have this host's Portage work, or say where it is: builder.command, builder.env",
                "if this node is to build nothing, take builder.command out of its configuration",
            ),
        )
    ]


async def _keys(cluster: Cluster) -> list[Finding]:
    if cluster.trust is None:
        return []
    try:
        ring = await cluster.ask(cluster.node.id, ReadRing())
    except SwarmError as refusal:
        return [Finding(WARNING, f"the keys of the gossip are not here: {refusal.message}",
                        ("see that this node reaches a voter (`swarmd ping`)",))]  # fmt: skip
    if len(ring.keys) > 1:
        return [
            Finding(WARNING, "a change of the gossip's key is under way, or was cut short",
                    ("`swarmd keyring rotate` goes on with it",))
        ]  # fmt: skip
    return []


def _name(nodes: Mapping[NodeId, Node], node_id: NodeId) -> str:
    return nodes[node_id].name if node_id in nodes else node_id
