"""Ways to builders: over the mesh to those that run swarmd, over SSH to others, and to none whose
host key is not known. What has no way is told why, and is left alone."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio

from swarmd.cluster.asks import ActOnHost, EndWork, ProbeHost
from swarmd.cluster.handle import Cluster
from swarmd.domain.care import CareAction, action_text
from swarmd.domain.errors import Conflict, SwarmError, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node, NodeKind
from swarmd.domain.places import Places
from swarmd.domain.probes import PROBE_BYTES_MAX, Probed, probe_command, read_probe
from swarmd.drivers.ssh import Ssh, SshTarget
from swarmd.state.care_queries import Cared

MESH, SSH = "mesh", "ssh"
MESH_S_MAX = 4.0
"""After so long a member is tried over SSH, where there is a way."""
FOUND_S = 10.0
"""A way is looked for anew after so long."""
COMMAND_S_MAX = 20.0
"""Longer than anybody waits for a probe."""
ACTION_S_MAX = 50.0
OUTPUT_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class CareSettings:
    enabled: bool = True
    service: str = "swarm-drone"
    """On hosts that run no swarmd."""
    own_service: str = "swarmd"
    paths: tuple[str, ...] = ("/",)


@dataclass(frozen=True, slots=True)
class Way:
    name: str
    """mesh or ssh; "": there is none."""
    why: str = ""
    target: SshTarget | None = None
    """Of a member that answers no more, too."""


@dataclass(frozen=True, slots=True)
class _Found:
    at: float
    said: tuple[str, tuple[str, ...]]
    """By which name, and where, it says it is."""
    target: SshTarget | None
    why: str


class Ways:
    def __init__(
        self, cluster: Cluster, settings: CareSettings, ssh: Ssh | None = None,
        target: Callable[[Cared], Awaitable[SshTarget]] | None = None,
    ) -> None:  # fmt: skip
        """`target` says where a builder is reached by `ssh`, and refuses with Unavailable. Without
        them the mesh is all there is."""
        self._cluster = cluster
        self._settings = settings
        self._ssh = ssh
        self._target = target
        self._found: dict[NodeId, _Found] = {}

    @property
    def enabled(self) -> bool:
        return self._settings.enabled

    async def find(self, all_cared: Sequence[Cared]) -> dict[NodeId, Way]:
        """To each. Who is to be where another is, is not believed, nor is the other."""
        self._found = {each.node.id: await self._find(each) for each in all_cared}
        places = Places()
        for each in all_cared:
            if (target := self._found[each.node.id].target) is not None:
                places.put(each.node, target.host, target.port)
        return {each.node.id: self._way(each.node, places) for each in all_cared}

    def _way(self, node: Node, places: Places) -> Way:
        found = self._found[node.id]
        target, why = found.target, found.why
        if target is not None:
            try:
                places.check_alone(node, target.host, target.port)
            except Conflict as refusal:
                target, why = None, refusal.message
        if node.kind is NodeKind.MEMBER:
            return Way(MESH, target=target)
        return Way(SSH if target else "", why, target)

    async def _find(self, cared: Cared) -> _Found:
        """As it was found a moment ago, or anew."""
        now, said = trio.current_time(), (cared.node.name, cared.node.addresses)
        before = self._found.get(cared.node.id)
        if before is not None and before.said == said and now - before.at < FOUND_S:
            return before
        if self._target is None:
            return _Found(now, said, None, "this node is not told how to reach hosts: ssh.key_file")
        try:
            target = await self._target(cared)
        except SwarmError as refusal:
            return _Found(now, said, None, refusal.message)
        if not target.host_keys and not target.pin_first:
            why = f"the host key of {target.name} is not known here: see ssh.known_hosts"
            return _Found(now, said, None, why)
        return _Found(now, said, target, "")

    async def probe(self, cared: Cared, way: Way) -> Probed:
        """Refused with Unavailable where it cannot be reached, and with what else the way refuses;
        how long it may take is the caller's to say."""
        if way.name == MESH:
            try:
                # Without another way whoever asked has a bound of their own.
                limit_s = MESH_S_MAX if way.target else math.inf
                return await self._ask_probe(cared.node.id, limit_s)
            except Unavailable:
                if way.target is None:
                    raise
        command = probe_command(self._service(cared), paths=self._settings.paths)
        assert self._ssh is not None and way.target is not None
        ran = await self._ssh.exec(
            way.target, command, timeout_s=COMMAND_S_MAX, output_bytes_max=PROBE_BYTES_MAX
        )
        return read_probe(ran.stdout)

    async def _ask_probe(self, node_id: NodeId, limit_s: float) -> Probed:
        if not self._there(node_id):
            raise Unavailable("the node does not answer over the mesh")
        with trio.move_on_after(limit_s):
            return await self._cluster.ask(node_id, ProbeHost())
        raise Unavailable(f"no answer over the mesh within {limit_s:g} s")

    async def act(self, cared: Cared, way: Way, action: CareAction) -> None:
        """Refused with Unavailable where it was not done; a member then works as before."""
        try:
            await self._act(cared, way, action)
        except BaseException:
            if way.name == MESH and action is CareAction.REBOOT:
                with trio.CancelScope(shield=True):
                    await self.resume(cared.node.id)
            raise

    async def _act(self, cared: Cared, way: Way, action: CareAction) -> None:
        if way.name == MESH:
            try:
                await self._act_by_mesh(cared.node.id, action)
                return
            except Unavailable:
                if way.target is None:
                    raise
        assert self._ssh is not None and way.target is not None
        text = action_text(action, self._service(cared))
        ran = await self._ssh.exec(
            way.target, text, timeout_s=ACTION_S_MAX, output_bytes_max=OUTPUT_BYTES_MAX
        )
        if ran.exit_code != 0:
            said = (ran.stderr or ran.stdout).decode("utf-8", "replace").strip()
            raise Unavailable(f"it ended with exit code {ran.exit_code}: {said[-500:]}")

    async def _act_by_mesh(self, node_id: NodeId, action: CareAction) -> None:
        if action is CareAction.REBOOT:
            # What else runs there goes back to the queue, and nothing more begins.
            await self._cluster.ask(node_id, EndWork())
        await self._cluster.ask(node_id, ActOnHost(action))

    async def resume(self, node_id: NodeId) -> bool:
        """Have a member that ended its work for a reboot take up work again; whether it answered,
        which is not waited for long."""
        if not self._there(node_id):
            return False
        with trio.move_on_after(MESH_S_MAX), suppress(SwarmError):
            await self._cluster.ask(node_id, EndWork(resume=True))
            return True
        return False

    def _there(self, node_id: NodeId) -> bool:
        return self._cluster.peer(node_id).alive or node_id == self._cluster.node.id

    def _service(self, cared: Cared) -> str:
        member = cared.node.kind is NodeKind.MEMBER
        return self._settings.own_service if member else self._settings.service
