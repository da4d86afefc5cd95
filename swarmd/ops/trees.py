"""Trees: what names of packages stand for, and who of them goes first, by a Portage of the swarm.

This node's own where it has one that answers, else that of the member whose tree is the newest; so
that any node answers alike. Where nobody has one, names are what they are.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio

from swarmd.cluster.asks import PlanBuilds, ReadTree
from swarmd.cluster.handle import Cluster
from swarmd.domain.errors import Busy, Invalid, NotFound, SwarmError, Unavailable
from swarmd.domain.jobs import BULK_JOBS_MAX, NodeId
from swarmd.domain.nodes import NodeKind
from swarmd.domain.packages import Atom, PackageSet, Want, parse_all, split
from swarmd.domain.trees import TREE_CHARS_MAX, Plan, Stands, needs_of, tree_time
from swarmd.drivers.portage import Missing, Portage, PortageSettings, Resolved, find
from swarmd.state.build_queries import ListOpenBuilds
from swarmd.state.queries import ListNodes

log = logging.getLogger(__name__)

PLAN_S_MAX = 30.0
ASK_S_MAX = 5.0
"""For a member to say whether it has a tree."""
LOOK_EVERY_S = 300.0
"""For a Portage that is not there yet, or does not answer."""
DESCRIBE_EVERY_S = 900.0
"""Its tree may be newer by now."""
KNOWN_S = 30.0
"""For so long a member whose tree was used is asked again without asking around."""
MEMBERS_MAX = 200
OPEN_MAX = 5000
"""Packages in the queue that new ones are put in order with."""
NOTES_MAX = 100
AS_NAMED = "no Portage tree is at hand to find one, and swarmd's own builders fail such names"
UNORDERED = "they are not in the order in which they need each other"
_AT_ONCE = 16


class Meant(msgspec.Struct, frozen=True):
    """What a request stands for."""

    packages: tuple[str, ...]
    known: frozenset[str] = frozenset()
    """Those that were found in the tree."""
    tree_at: str = ""
    needs: dict[str, tuple[str, ...]] = {}
    notes: tuple[str, ...] = ()


class Trees:
    """Made by open_trees."""

    def __init__(self, cluster: Cluster, settings: PortageSettings | None) -> None:
        self._cluster = cluster
        self._settings = settings
        self._portage: Portage | None = None
        self._looked = trio.Event()
        self._other: tuple[NodeId, float] | None = None
        """Who was asked last, and until when without asking around."""

    async def meant(self, wanted: Sequence[object]) -> Meant:
        """Invalid: one of them is no name, or stands for nothing; TooLarge; Busy; Unavailable:
        names need a tree, and who has it does not answer."""
        wants = parse_all(wanted)
        try:
            plan = await self._plan(wants)
        except Unavailable as refusal:
            if not all(map(_is_exact, wants)):
                raise
            return literal(wants, (f"{refusal.message}; {UNORDERED}",))
        return literal(wants) if plan is None else _meant(wants, plan)

    async def _plan(self, wants: Sequence[Want]) -> Plan | None:
        texts = tuple(map(str, wants))
        with trio.move_on_after(ASK_S_MAX) as bound:
            await self._looked.wait()
        if bound.cancelled_caught:
            raise Unavailable("this node still looks whether it has a Portage tree")
        if self._portage is None:
            return await self._plan_elsewhere(texts)
        try:
            return await self._answer_plan(PlanBuilds(texts))
        except Unavailable as refusal:
            with contextlib.suppress(Unavailable):
                if (plan := await self._plan_elsewhere(texts)) is not None:
                    return plan
            raise refusal

    async def _plan_elsewhere(self, texts: tuple[str, ...]) -> Plan | None:
        other = await self._whose()
        if other is None:
            return None
        try:
            return await self._cluster.ask(other, PlanBuilds(texts))
        except (NotFound, Unavailable) as refusal:
            self._other = None
            raise Unavailable(refusal.message, **refusal.facts) from None

    async def _whose(self) -> NodeId | None:
        """The newest tree, and of several the first by name. Unavailable: nobody says that he has
        one, and not everybody says that he has none."""
        now = trio.current_time()
        if self._other is not None and now < self._other[1]:
            return self._other[0]
        found: list[tuple[float, str, NodeId]] = []
        silent: list[str] = []
        limit = trio.CapacityLimiter(_AT_ONCE)

        async def ask(node_id: NodeId, name: str) -> None:
            async with limit:
                with trio.move_on_after(ASK_S_MAX) as bound:
                    try:
                        tree_at = await self._cluster.ask(node_id, ReadTree())
                    except Unavailable:
                        silent.append(name)
                    except SwarmError as refusal:
                        # One of a version before knows no such question, and has no tree for us.
                        log.debug("no tree there", extra={"node": name, "why": refusal.message})
                    else:
                        if tree_at is not None:
                            found.append((-(tree_time(tree_at) or 0.0), name, node_id))
                if bound.cancelled_caught:
                    silent.append(name)

        members = await self._cluster.read(ListNodes((NodeKind.MEMBER,)))
        others = [n for n in members if n.id != self._cluster.node.id]
        async with trio.open_nursery() as nursery:
            for node in others[:MEMBERS_MAX]:
                if self._cluster.peer(node.id).alive:
                    nursery.start_soon(ask, node.id, node.name)
        if found:
            self._other = (min(found)[2], now + KNOWN_S)
            return self._other[0]
        if silent:
            raise Unavailable(f"{min(silent)} does not say whether it has a Portage tree")
        return None

    # The node that has one

    async def look(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._look()
            self._looked.set()
            await trio.sleep(DESCRIBE_EVERY_S if self._answers else LOOK_EVERY_S)

    async def _look(self) -> None:
        if self._settings is None:
            return
        if self._portage is not None:
            try:
                await self._portage.describe()
            except Busy:
                pass  # whoever asks it so much sees whether it answers
            except SwarmError as refusal:
                log.warning("Portage does not answer", extra={"why": refusal.message})
            return
        found = await find(self._settings)
        if isinstance(found, Missing):
            level = logging.DEBUG if self._looked.is_set() else logging.INFO
            log.log(level, "packages are not looked up here", extra={"why": found.why})
        else:
            self._portage = found
            log.info("packages are looked up here", extra={"tree_at": found.description.timestamp})

    async def answer_tree(self, ask: ReadTree) -> str | None:
        await self._looked.wait()
        return self._tree_at if self._answers else None

    async def answer_plan(self, ask: PlanBuilds) -> Plan:
        if self._portage is None:
            raise NotFound("there is no Portage tree here any more; try again")
        return await self._answer_plan(ask)

    @property
    def _answers(self) -> bool:
        return self._portage is not None and self._portage.answers

    @property
    def _tree_at(self) -> str:
        assert self._portage is not None
        return _line(self._portage.description.timestamp)

    async def _answer_plan(self, ask: PlanBuilds) -> Plan:
        with trio.move_on_after(PLAN_S_MAX):
            return await self._make_plan(ask.wants)
        raise Unavailable(
            f"Portage came to no answer within {PLAN_S_MAX:g} s; ask for less at once"
        )

    async def _make_plan(self, texts: Sequence[str]) -> Plan:
        assert self._portage is not None
        queued = await self._cluster.read(ListOpenBuilds(OPEN_MAX))
        planned = await self._portage.plan(
            parse_all(texts), tuple(dict.fromkeys(filter(_has_version, queued)))
        )
        stands = tuple(map(_stands, planned.resolved))
        wanted = {package for each in stands for package in each.packages}
        needs = await trio.to_thread.run_sync(needs_of, planned.edges, wanted)
        notes = (f"{planned.unordered}; {UNORDERED}",) if planned.unordered else ()
        return Plan(stands, self._tree_at, needs, notes)


@asynccontextmanager
async def open_trees(cluster: Cluster, settings: PortageSettings | None) -> AsyncIterator[Trees]:
    """None: this node looks for no Portage of its own."""
    trees = Trees(cluster, settings)
    cluster.answers(ReadTree, trees.answer_tree)
    cluster.answers(PlanBuilds, trees.answer_plan)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trees.look)
        yield trees
        nursery.cancel_scope.cancel()


def literal(wants: Sequence[Want], notes: tuple[str, ...] = ()) -> Meant:
    """Where no tree is at hand packages are taken as they are named; a set needs one."""
    found: dict[str, None] = {}
    for want in wants:
        if isinstance(want, PackageSet):
            raise Invalid(f"{want} is a set, and no Portage tree is at hand here to expand it")
        found[_named(want)] = None
    if vague := [str(want) for want in wants if not _is_exact(want)]:
        more = f" and {len(vague) - 1} more" if len(vague) > 1 else ""
        notes += (f"{vague[0]}{more} without a version: {AS_NAMED}",)
    return Meant(_bounded(found), notes=notes)


def _named(want: Atom) -> str:
    if want.literal is not None:
        return str(want.literal)
    if want.version is None and not want.slot:
        return want.key
    raise Invalid(f"{want} names no single version, and no Portage tree is at hand here")


def _bounded(found: dict[str, None]) -> tuple[str, ...]:
    if not 1 <= len(found) <= BULK_JOBS_MAX:
        raise Invalid(f"name 1 to {BULK_JOBS_MAX} packages, not {len(found)}")
    return tuple(found)


def _is_exact(want: Want) -> bool:
    return isinstance(want, Atom) and want.literal is not None


def _has_version(package: str) -> bool:
    try:
        split(package)
    except Invalid:
        return False
    return True


def _stands(resolved: Resolved) -> Stands:
    want, error = resolved.want, resolved.error
    notes = list(resolved.notes)
    if error is not None:
        # Builders may have what this tree does not, and try; what nobody has they will tell.
        if isinstance(want, Atom) and isinstance(error, NotFound) and want.literal is not None:
            if not (want.slot or want.repository or want.use):
                return Stands((str(want.literal),), (error.message,), known=False)
        return Stands(error=error.message)
    if resolved.masked is not None:
        notes.append(f"{resolved.packages[0]} is masked here by {resolved.masked}")
    if isinstance(want, Atom) and want.use:
        notes.append(f"{want}: its flags choose a version; each builder has its own USE flags")
    return Stands(resolved.packages, tuple(notes[:NOTES_MAX]))


def _meant(wants: Sequence[Want], plan: Plan) -> Meant:
    """What came from another node is checked like a stranger's."""
    if len(plan.stands) != len(wants):
        raise Unavailable(f"a tree answered for {len(plan.stands)} of {len(wants)} names")
    refused = [each.error for each in plan.stands if each.error]
    if refused:
        more = f" (and {len(refused) - 1} more like it)" if len(refused) > 1 else ""
        what, semicolon, right = refused[0].partition("; ")
        raise Invalid(f"{what}{more}{semicolon}{right}", field="packages")
    found: dict[str, None] = {}
    notes = list(plan.notes)
    for want, each in zip(wants, plan.stands, strict=True):
        found |= {str(split(package)): None for package in each.packages}
        notes += each.notes
        if not each.packages:
            notes.append(f"{want} stands for no package here")
    known = {p for each in plan.stands if each.known for p in each.packages}
    return Meant(
        _bounded(found), frozenset(known), _line(plan.tree_at), plan.needs,
        tuple(dict.fromkeys(notes))[:NOTES_MAX],
    )  # fmt: skip


def _line(said: str) -> str:
    return said[:TREE_CHARS_MAX] if said.isprintable() else ""
