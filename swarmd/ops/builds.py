"""Builds: packages are queued, builders come for them, and operators say how it is to go on."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import trio

from swarmd.cluster.asks import BuilderBeat, BuilderSign, ListSigns, WantWork
from swarmd.cluster.handle import LEADER, Cluster, local_reads
from swarmd.domain.actors import Actor
from swarmd.domain.builds import OUTSIDE, Build, Control, HostSort, Outcome
from swarmd.domain.errors import Invalid, NotFound, SwarmError, Unavailable
from swarmd.domain.jobs import (
    GroupId,
    Job,
    JobFilter,
    JobKind,
    JobStatus,
    NodeId,
    Result,
)
from swarmd.domain.nodes import Capacity, Node, NodeKind
from swarmd.domain.packages import split
from swarmd.ops.syncs import Syncs
from swarmd.state.build_commands import (
    ControlBuilds,
    FinishBuild,
    ForgetBuilder,
    NoteBuilder,
    PutBuilder,
    TakeBuilds,
    TakeRevoked,
)
from swarmd.state.build_queries import (
    AnythingFor,
    BuildCounts,
    BuilderView,
    BuildTimes,
    CountBuilds,
    FindBuilder,
    HeldBuild,
    ListBuilders,
    ListBuilds,
    ListSessions,
    TreeWanted,
)
from swarmd.state.build_queries import BuildFilter as BuildFilter
from swarmd.state.build_queries import SessionView as SessionView
from swarmd.state.queries import ListJobs, ListTotals
from swarmd.state.versions import BUILDS_SINCE, FORGET_SINCE, ORDER_SINCE, check_since

REVOKED_AT_ONCE = 100
CONTROL_AT_ONCE = 100
CONTROLS_MAX = 2000
"""Entries that one word of an operator may take."""
ABOUT_ALL = (Control.PAUSE, Control.RESUME, Control.RESET, Control.CLEAR_HISTORY)
SESSIONS_MAX = 500
TREE_AT_CHARS_MAX = 64


class BuilderSays(msgspec.Struct, frozen=True):
    """What a builder from outside says of itself."""

    id: str
    name: str
    addresses: tuple[str, ...]
    cores: int
    memory_bytes: int
    auto_reboot: bool
    tree_at: str
    version: str
    task: str | None
    metrics: dict[str, float]


class Told(msgspec.Struct, frozen=True):
    """What a builder is told when it is heard of."""

    paused: bool
    revoked: tuple[str, ...]
    stop: str | None
    held: tuple[str, ...]
    """What it was given and did not report."""


class Work(msgspec.Struct, frozen=True):
    package: str | None
    session_id: GroupId | None
    revoked: tuple[str, ...]
    sync_to: str = ""
    """It is to bring its tree up to date first, which is older than this one."""


class Standing(msgspec.Struct, frozen=True):
    """A builder, as everybody sees it."""

    view: BuilderView
    sign: BuilderSign | None
    estimates: dict[str, int]
    """Of what it holds, in milliseconds."""
    at: int

    @property
    def id(self) -> str:
        return self.view.node.id.removeprefix(OUTSIDE)


class BuildTotals(msgspec.Struct, frozen=True):
    built: int
    failed: int
    total_ms: int
    """Of builds of both kinds."""


class Overview(msgspec.Struct, frozen=True):
    counts: BuildCounts
    session: SessionView | None
    """The newest."""
    totals: BuildTotals
    builders: tuple[Standing, ...]


class Done(msgspec.Struct, frozen=True):
    """Of a word of an operator's."""

    count: int


def require_builds(cluster: Cluster) -> None:
    check_since(cluster.cluster_version(), BUILDS_SINCE, "builds")


def node_id_of(builder_id: str) -> NodeId:
    return NodeId(OUTSIDE + builder_id)


def key_of(package: str) -> str:
    """Its name without the version, where it has one."""
    try:
        return split(package).key
    except Invalid:
        return package


# What builders say


async def register(cluster: Cluster, actor: Actor, says: BuilderSays) -> Told:
    """Its first word, and its sign of life after that. Conflict: another node has the name."""
    require_builds(cluster)
    node = Node(
        node_id_of(says.id), says.name, NodeKind.DRONE, says.addresses, reach=("http",),
        capabilities=("package",), version=says.version,
        capacity=Capacity(0, float(says.cores), says.memory_bytes),
    )  # fmt: skip
    with local_reads():
        view = await cluster.read(FindBuilder(node.id))
    if view is None or _differs(view, node, says):
        await cluster.propose(PutBuilder(node.id, says.auto_reboot, says.tree_at, node), actor)
    news = await cluster.ask(LEADER, BuilderBeat(node.id, says.task, says.metrics, says.version))
    revoked = () if view is None else await _revoked(cluster, actor, view)
    held = () if view is None else tuple(each.package for each in view.held)
    return Told(news.paused, revoked, news.stop, held)


async def register_own(
    cluster: Cluster, actor: Actor, auto_reboot: bool, tree_at: str, task: str | None,
    metrics: dict[str, float],
) -> None:  # fmt: skip
    """The same of this node itself, which the swarm knows already."""
    require_builds(cluster)
    node = cluster.node
    with local_reads():
        view = await cluster.read(FindBuilder(node.id))
    tree_at = tree_at[:TREE_AT_CHARS_MAX]
    if view is None or (view.builder.auto_reboot, view.builder.tree_at) != (auto_reboot, tree_at):
        await cluster.propose(PutBuilder(node.id, auto_reboot, tree_at), actor)
    await cluster.ask(LEADER, BuilderBeat(node.id, task, metrics, node.version))


def _differs(view: BuilderView, node: Node, says: BuilderSays) -> bool:
    known = msgspec.structs.replace(view.node, revision=0, born=0)
    builder = view.builder
    return known != node or (builder.auto_reboot, builder.tree_at) != (
        says.auto_reboot, says.tree_at,
    )  # fmt: skip


async def _revoked(cluster: Cluster, actor: Actor, view: BuilderView) -> tuple[str, ...]:
    """What was taken back from it: it is told once."""
    if not view.revoked:
        return ()
    return await cluster.propose(TakeRevoked(view.node.id, REVOKED_AT_ONCE), actor)


async def work(
    cluster: Cluster, actor: Actor, builder_id: str, cores: int, *,
    syncs: Syncs | None = None, tried: str = "",
) -> Work:  # fmt: skip
    """The oldest package it holds, again and again, until that is reported; else the next one there
    is for it. With `syncs` it is told to bring its tree up to date where that package needs it;
    `tried` is up to when it says that it could not. NotFound: it has not registered."""
    node_id = node_id_of(builder_id)
    return await work_of(cluster, actor, node_id, cores, syncs=syncs, tried=tried)


async def work_of(
    cluster: Cluster, actor: Actor, node_id: NodeId, cores: int, *,
    syncs: Syncs | None = None, tried: str = "",
) -> Work:  # fmt: skip
    """The same, by the id of its node."""
    require_builds(cluster)
    view = await cluster.read(FindBuilder(node_id))
    if view is None:
        builder_id = node_id.removeprefix(OUTSIDE)[:128]
        raise NotFound("no such drone; it has to register first", id=builder_id)
    revoked = await _revoked(cluster, actor, view)
    now = cluster.now_ms()
    if view.queue_paused or not view.builder.online or not view.builder.gets_work(now):
        return Work(None, None, revoked)
    if view.held:
        return _work(view.held[0], revoked)
    if await cluster.read(AnythingFor(node_id, now, cores)):
        if syncs is not None and cluster.cluster_version() >= ORDER_SINCE:
            wanted = await cluster.read(TreeWanted(node_id, cores))
            if syncs.must(view.builder, wanted, tried, trio.current_time()):
                return Work(None, None, revoked, wanted)
        taken = await cluster.propose(TakeBuilds(node_id, cores, actor.address), actor)
        if taken:
            given = {job.spec.type for job in taken}
            revoked = tuple(package for package in revoked if package not in given)
            return Work(taken[0].spec.type, taken[0].group_id, revoked)
    # That it stands idle is a hint for who shares work out: it comes again, and says so again.
    with suppress(SwarmError):
        await cluster.ask(LEADER, WantWork(node_id))
    return Work(None, None, revoked)


def _work(held: HeldBuild, revoked: tuple[str, ...]) -> Work:
    return Work(held.package, held.session_id, revoked)


async def finish(
    cluster: Cluster, actor: Actor, builder_id: str, package: str, outcome: Outcome, *,
    duration_ms: int | None, error: str | None,
) -> bool:  # fmt: skip
    """Whether it counted: a report of what it does not hold changes nothing."""
    require_builds(cluster)
    command = FinishBuild(
        node_id_of(builder_id), package, outcome, duration_ms, Result(error=error)
    )
    end = await cluster.propose(command, actor)
    return end.job is not None


# What operators say


async def control(
    cluster: Cluster, actor: Actor, action: Control, target: str | None = None
) -> Done:
    """In as many steps as it takes. A step of a reset that had just as much to do as one may does
    not look at what comes after."""
    require_builds(cluster)
    _check_target(action, target)
    count = 0
    for _ in range(CONTROLS_MAX):
        controlled = await cluster.propose(ControlBuilds(action, CONTROL_AT_ONCE, target), actor)
        count += controlled.done
        full = action is Control.RESET and controlled.done >= CONTROL_AT_ONCE
        if not controlled.left and not full:
            break
    return Done(count)


def _check_target(action: Control, target: str | None) -> None:
    if action is Control.BLOCK and not target:
        raise Invalid("say which package is to be blocked: target", field="target")
    if target is not None and action in ABOUT_ALL:
        words = f"{action.value} is about everything and takes no target"
        if action in (Control.PAUSE, Control.RESUME):
            words += f"; for one drone it is POST /api/v1/nodes/{{name}}/{action.value}"
        raise Invalid(words, field="target")


async def note_builder(
    cluster: Cluster, actor: Actor, name: str, *, paused: bool | None = None,
    sort: HostSort | None = None,
) -> BuilderView:  # fmt: skip
    require_builds(cluster)
    view = await find_builder(cluster, name)
    await cluster.propose(NoteBuilder(view.node.id, paused, sort), actor)
    return view


async def forget(cluster: Cluster, actor: Actor, name: str) -> int:
    """A builder from outside does not come back: how many packages it gave back. NotFound;
    Conflict: it is there, or a node of the swarm."""
    view = await find_builder(cluster, name)
    check_since(cluster.cluster_version(), FORGET_SINCE, "forgetting drones")
    return await cluster.propose(ForgetBuilder(view.node.id), actor)


# What everybody sees


async def find_builder(cluster: Cluster, name: str) -> BuilderView:
    require_builds(cluster)
    view = await cluster.read(FindBuilder("", name))
    if view is None:
        raise NotFound("no such drone", name=name[:128])
    return view


async def list_builders(cluster: Cluster) -> list[Standing]:
    require_builds(cluster)
    views = await cluster.read(ListBuilders())
    signs: dict[NodeId, BuilderSign] = {}
    # Only a leader hears the builders: without one there is the list, and no sign of life.
    with suppress(Unavailable):
        signs = {sign.node_id: sign for sign in await cluster.ask(LEADER, ListSigns())}
    names = {held.package: key_of(held.package) for view in views for held in view.held}
    times = await cluster.read(BuildTimes(tuple(dict.fromkeys(names.values())))) if names else {}
    now = cluster.now_ms()
    return [
        Standing(
            view, signs.get(view.node.id),
            {held.package: times[names[held.package]] for held in view.held
             if names[held.package] in times},
            now,
        )
        for view in views
    ]  # fmt: skip


async def overview(cluster: Cluster) -> Overview:
    require_builds(cluster)
    sessions = await cluster.read(ListSessions(1))
    return Overview(
        await cluster.read(CountBuilds()), sessions[0] if sessions else None,
        await totals(cluster), tuple(await list_builders(cluster)),
    )  # fmt: skip


async def totals(cluster: Cluster) -> BuildTotals:
    grown = await cluster.read(ListTotals(JobKind.PACKAGE))
    built, failed = grown.get(("built", ""), 0), grown.get(("build_failed", ""), 0)
    return BuildTotals(built, failed, grown.get(("build_ms", ""), 0))


async def list_queue(cluster: Cluster, limit: int) -> list[Job]:
    """Packages, the newest first, but for those that were taken out of the queue."""
    require_builds(cluster)
    statuses = tuple(status for status in JobStatus if status is not JobStatus.CANCELLED)
    return await cluster.read(ListJobs(JobFilter(JobKind.PACKAGE, statuses, limit=limit)))


async def list_sessions(cluster: Cluster) -> list[SessionView]:
    require_builds(cluster)
    return await cluster.read(ListSessions(SESSIONS_MAX))


async def list_builds(cluster: Cluster, wanted: BuildFilter) -> list[Build]:
    require_builds(cluster)
    return await cluster.read(ListBuilds(wanted))
