"""Builds: packages are queued, builders come for them, and operators say how it is to go on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import msgspec

from swarmd.cluster.asks import BuilderBeat, BuilderSign, ListSigns, WantWork
from swarmd.cluster.handle import LEADER, Cluster, local_reads
from swarmd.domain.actors import Actor
from swarmd.domain.builds import OUTSIDE, Build, Control, HostSort, Outcome
from swarmd.domain.errors import Busy, Conflict, Invalid, NotFound, SwarmError, Unavailable
from swarmd.domain.events import Event
from swarmd.domain.groups import Group, GroupKind
from swarmd.domain.jobs import (
    BULK_JOBS_MAX,
    GroupId,
    Installed,
    Job,
    JobFilter,
    JobId,
    JobKind,
    JobSpec,
    JobStatus,
    NodeId,
    Result,
)
from swarmd.domain.nodes import Capacity, Node, NodeKind
from swarmd.domain.packages import Atom, PackageSet, parse_all, split
from swarmd.state.build_commands import (
    ControlBuilds,
    FinishBuild,
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
    FindQueued,
    HeldBuild,
    ListBuilders,
    ListBuilds,
    ListSessions,
)
from swarmd.state.build_queries import BuildFilter as BuildFilter
from swarmd.state.build_queries import SessionView as SessionView
from swarmd.state.commands import CreateGroup, NewJob, Refusal, SubmitJobs
from swarmd.state.queries import ListJobs, ListLately, ListTotals
from swarmd.state.versions import BUILDS_SINCE

REVOKED_AT_ONCE = 100
CONTROL_AT_ONCE = 100
CONTROLS_MAX = 2000
"""Entries that one word of an operator may take."""
SESSIONS_MAX = 500


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


class Work(msgspec.Struct, frozen=True):
    package: str | None
    session_id: GroupId | None
    revoked: tuple[str, ...]


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


class Queued(msgspec.Struct, frozen=True):
    session: Group
    packages: tuple[str, ...]
    known: tuple[str, ...]
    """They were in the queue already, and are not in it twice."""


class Done(msgspec.Struct, frozen=True):
    """Of a word of an operator's."""

    count: int


def require_builds(cluster: Cluster) -> None:
    if cluster.cluster_version() < BUILDS_SINCE:
        raise Unavailable(
            f"the swarm works as of version {cluster.cluster_version()} of its state, and builds"
            f" came with {BUILDS_SINCE}: wait until all of its nodes run a newer swarmd"
        )


def node_id_of(builder_id: str) -> NodeId:
    return NodeId(OUTSIDE + builder_id)


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
    return Told(news.paused, revoked, news.stop)


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


async def work(cluster: Cluster, actor: Actor, builder_id: str, cores: int) -> Work:
    """The oldest package it holds, again and again, until that is reported; else the next one there
    is for it. NotFound: it has not registered."""
    require_builds(cluster)
    node_id = node_id_of(builder_id)
    view = await cluster.read(FindBuilder(node_id))
    if view is None:
        raise NotFound("no such drone; it has to register first", id=builder_id[:128])
    revoked = await _revoked(cluster, actor, view)
    now = cluster.now_ms()
    if view.queue_paused or not view.builder.gets_work(now):
        return Work(None, None, revoked)
    if view.held:
        return _work(view.held[0], revoked)
    if await cluster.read(AnythingFor(node_id, now, cores)):
        taken = await cluster.propose(TakeBuilds(node_id, cores, actor.address), actor)
        if taken:
            return Work(taken[0].spec.type, taken[0].group_id, revoked)
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


async def enqueue(
    cluster: Cluster, actor: Actor, wanted: Sequence[object], session_name: str, session_id: str
) -> Queued:
    """A new session of these packages. Those that are in the queue already stay as they are."""
    require_builds(cluster)
    packages = _literal(wanted)
    queued = await cluster.read(FindQueued(packages))
    new = tuple(package for package in packages if package not in queued)
    group = Group(GroupId(session_id), GroupKind.SESSION, labels={"name": session_name})
    if not new:
        raise Conflict("all of these packages are in the queue already", packages=len(packages))
    session = await _new_session(cluster, actor, group)
    for start in range(0, len(new), 100):
        some = new[start : start + 100]
        jobs = tuple(NewJob(JobId(cluster.new_id()), _spec(package)) for package in some)
        for outcome in await cluster.propose(SubmitJobs(jobs, session.id), actor):
            if isinstance(outcome, Refusal):
                raise Conflict(outcome.message)
    return Queued(session, new, tuple(package for package in packages if package in queued))


async def _new_session(cluster: Cluster, actor: Actor, group: Group) -> Group:
    """Two of one second are told apart by a number."""
    for number in range(2, 1000):
        try:
            return await cluster.propose(CreateGroup(group), actor)
        except Conflict:
            base = group.id.partition("+")[0]
            group = msgspec.structs.replace(group, id=GroupId(f"{base}+{number}"))
    raise Busy("too many sessions began in this second; try again in the next")


def _literal(wanted: Sequence[object]) -> tuple[str, ...]:
    """Where no tree is at hand packages are taken as they are named; a set needs one."""
    found: dict[str, None] = {}
    for want in parse_all(wanted):
        if isinstance(want, PackageSet):
            raise Invalid(f"{want} is a set, and no Portage tree is at hand here to expand it")
        found[_named(want)] = None
    if not 1 <= len(found) <= BULK_JOBS_MAX:
        raise Invalid(f"name 1 to {BULK_JOBS_MAX} packages, not {len(found)}")
    return tuple(found)


def _named(want: Atom) -> str:
    if want.literal is not None:
        return str(want.literal)
    if want.version is None and not want.slot:
        return want.key
    raise Invalid(f"{want} names no single version, and no Portage tree is at hand here")


def _spec(package: str) -> JobSpec:
    return JobSpec(
        package, Installed("emerge"), arguments=(package,), kind=JobKind.PACKAGE,
        labels={"package": _key(package)},
    )  # fmt: skip


def _key(package: str) -> str:
    """Its name without the version, where it has one."""
    try:
        return split(package).key
    except Invalid:
        return package


async def control(
    cluster: Cluster, actor: Actor, action: Control, target: str | None = None
) -> Done:
    """In as many steps as it takes."""
    require_builds(cluster)
    count = 0
    for _ in range(CONTROLS_MAX):
        controlled = await cluster.propose(ControlBuilds(action, CONTROL_AT_ONCE, target), actor)
        count += controlled.done
        if not controlled.left:
            break
    return Done(count)


async def note_builder(
    cluster: Cluster, actor: Actor, name: str, *, paused: bool | None = None,
    sort: HostSort | None = None,
) -> BuilderView:  # fmt: skip
    require_builds(cluster)
    view = await find_builder(cluster, name)
    await cluster.propose(NoteBuilder(view.node.id, paused, sort), actor)
    return view


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
    with suppress(Unavailable):
        signs = {sign.node_id: sign for sign in await cluster.ask(LEADER, ListSigns())}
    names = {held.package: _key(held.package) for view in views for held in view.held}
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


EVENTS_RECENT = 20_000
EVENTS_SCANNED_MAX = 1_000_000


async def list_events(
    cluster: Cluster, kinds: tuple[str, ...], *, limit: int, since: int, about: str = "",
    recent: bool = False,
) -> tuple[list[Event], dict[str, str]]:  # fmt: skip
    """The newest first, and the names of those they are about; `recent` looks back only so far."""
    require_builds(cluster)
    names = {view.node.id: view.node.name for view in await cluster.read(ListBuilders())}
    node_id = next((i for i, name in names.items() if name == about), "")
    if about and not node_id:
        return [], {}
    scan = EVENTS_RECENT if recent else EVENTS_SCANNED_MAX
    events = await cluster.read(ListLately(kinds, limit, scan, since, node_id))
    return events, {str(node_id): name for node_id, name in names.items()}


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
