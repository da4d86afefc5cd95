"""What goes back from builders, and whether the package has to do with it."""

from __future__ import annotations

from swarmd.control.attendance import LEASE_S, SILENT_S, Reclaim, overdue
from swarmd.domain.builds import Builder
from swarmd.domain.jobs import AttemptId, JobId, NodeId
from swarmd.domain.nodes import Node, NodeKind
from swarmd.state.build_queries import BuilderView, HeldBuild

HOURS_MS = 10 * 3600_000
ONE = NodeId("builder/one")


def held(id: int, *, assigned_s_ago: float, begun: bool) -> HeldBuild:
    at = HOURS_MS - int(assigned_s_ago * 1000)
    package = f"a/p-{id}"
    return HeldBuild(AttemptId(id), JobId(package), package, None, at, at if begun else None)


def found(
    *builds: HeldBuild, silent: bool = False, kind: NodeKind = NodeKind.DRONE
) -> set[Reclaim]:
    view = BuilderView(Builder(ONE), Node(ONE, "one", kind), builds, (), False)
    heard = {ONE: {build.package: 0.0 for build in builds if build.started_at is None}}
    gone = {ONE} if silent else set()
    return {*overdue([view], gone, heard, SILENT_S + 1, HOURS_MS, SILENT_S + 1)}


def test_what_was_not_begun_is_not_lost() -> None:
    """Its builder is at another one, for hours perhaps: were it counted, the tenth time would put
    the package aside."""
    waits = held(1, assigned_s_ago=LEASE_S + 1, begun=False)
    assert found(waits) == {
        Reclaim((AttemptId(1),), "its builder did not begin it in time", False)
    }  # fmt: skip
    assert found(held(1, assigned_s_ago=LEASE_S - 1, begun=False)) == set()


def test_what_its_builder_is_silent_about_is_lost() -> None:
    begun = held(1, assigned_s_ago=HOURS_MS / 1000, begun=True)
    assert found(begun) == {Reclaim((AttemptId(1),), "its builder is silent about it", True)}
    assert found(begun, silent=True) == {Reclaim((AttemptId(1),), "its builder is offline", True)}
    assert found(begun, silent=True, kind=NodeKind.MEMBER) == set(), "that goes by its lease"
