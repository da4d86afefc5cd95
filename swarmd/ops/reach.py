"""Reaching builders' hosts over ssh: a host is believed by its keys in known_hosts or, where that
is allowed, by the first that it showed, which the whole swarm keeps."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import msgspec
import trio

from swarmd.cluster.handle import Cluster
from swarmd.domain.actors import SYSTEM, Actor
from swarmd.domain.errors import Busy, Conflict, SwarmError, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.domain.places import Places
from swarmd.drivers.ssh import Ssh, open_ssh
from swarmd.drivers.ssh_known import KnownHosts, SshAccount
from swarmd.drivers.ssh_targets import (
    HostKey,
    HostKeyChanged,
    HostKeyUnknown,
    SshSettings,
    SshTarget,
)
from swarmd.ops.builds import find_builder
from swarmd.state.build_queries import BuilderView, ListBuilderNodes
from swarmd.state.commands import PutSetting
from swarmd.state.payload_commands import ForgetHostKey
from swarmd.state.queries import GetSetting
from swarmd.state.rules.payloads import host_key_setting

ASKED_MAX = 2000
PLACES_S = 1.0
"""Where the others are is looked up anew after so long: self-healing asks for each of them."""


class Hosts(msgspec.Struct, frozen=True):
    """How they are reached, as the configuration has it."""

    key_file: str | None = None
    user: str = "root"
    port: int = 22
    known_hosts: str | None = None
    pin_first: bool = False
    keepalive_s: float = 15.0
    elsewhere: Mapping[str, str] = {}
    """`HOST[:PORT]` of builders that are not where they say, by name."""

    def place(self, name: str, addresses: tuple[str, ...]) -> tuple[str, int]:
        said = self.elsewhere.get(name)
        if said is None:
            if not addresses:
                raise Unavailable(f"nobody knows where {name} is; set ssh.hosts for it")
            return addresses[0], self.port
        host, colon, port = said.rpartition(":")
        if not colon or said.endswith("]") or (":" in host and not host.startswith("[")):
            return said.strip("[]"), self.port  # a name, or an IPv6 address by itself
        if not port.isdecimal() or not 0 < int(port[:6]) < 65536:
            raise Unavailable(f"ssh.hosts has no port in {said!r}; write HOST[:PORT]")
        return host.strip("[]"), int(port)


class Reach:
    ssh: Ssh

    def __init__(self, cluster: Cluster, hosts: Hosts) -> None:
        self._cluster = cluster
        self._hosts = hosts
        self._known: dict[int, KnownHosts] = {}
        """By port: there are as many as the configuration names."""
        self._places = Places()
        self._places_at = -math.inf
        self._asked: dict[SshTarget, NodeId] = {}

    @property
    def able(self) -> bool:
        """Whether this node has a key at all."""
        return self._hosts.key_file is not None

    async def target(self, view: BuilderView) -> SshTarget:
        """Unavailable: this node has no way to it. Conflict: another builder is to be there too."""
        hosts, node = self._hosts, view.node
        if hosts.key_file is None:
            raise Unavailable(
                "this node has no key to reach hosts with; set ssh.key_file, or ask a node that"
                " has one"
            )
        host, port = hosts.place(node.name, node.addresses)
        (await self._all_places(node)).check_alone(node, host, port)
        if hosts.known_hosts is not None:
            account = SshAccount(hosts.key_file, hosts.known_hosts, hosts.user, port)
            known = self._known.setdefault(port, KnownHosts(account))
            if (found := await known.target(host)) is not None:
                return found
        target = SshTarget(host, port, hosts.user, key_file=hosts.key_file)
        if not hosts.pin_first:
            return target
        kept = await self._cluster.read(GetSetting(host_key_setting(node.id)))
        if kept is not None:
            return replace(target, host_keys=(kept.decode("ascii", "replace"),))
        target = replace(target, pin_first=True)
        while len(self._asked) >= ASKED_MAX:
            del self._asked[next(iter(self._asked))]
        self._asked[target] = node.id
        # What the swarm keeps is what counts, not what this node remembers of it.
        self.ssh.forget(target)
        return target

    async def _all_places(self, node: Node) -> Places:
        now = trio.current_time()
        if now - self._places_at >= PLACES_S:
            places = Places()
            for each in await self._cluster.read(ListBuilderNodes()):
                places.say(each)
                self._put(places, each)
            self._places, self._places_at = places, now
        self._put(self._places, node)  # it may be newer than what was read
        return self._places

    def _put(self, places: Places, node: Node) -> None:
        if node.name in self._hosts.elsewhere:
            with suppress(Unavailable):
                places.put(node, *self._hosts.place(node.name, node.addresses))

    async def keep_key(self, target: SshTarget, key: HostKey) -> None:
        """Whichever node sees it first: all believe that one key from then on."""
        node_id = self._asked.get(target)
        if node_id is None:
            raise HostKeyUnknown(f"the host key of {target.name} is not known", host=target.host)
        line = key.line.encode("ascii")
        setting = PutSetting(host_key_setting(node_id), line, only_new=True)
        if await self._cluster.propose(setting, SYSTEM) != line:
            raise HostKeyChanged(
                f"the host key of {target.name} is another than the swarm keeps of it: it shows"
                f" {key.fingerprint}; where the host was rebuilt, have its key forgotten",
                host=target.host, fingerprint=key.fingerprint,
            )  # fmt: skip


@asynccontextmanager
async def open_reach(cluster: Cluster, hosts: Hosts) -> AsyncIterator[Reach]:
    reach = Reach(cluster, hosts)
    settings = SshSettings(keepalive_s=hosts.keepalive_s)
    async with open_ssh(settings, keep_key=reach.keep_key) as reach.ssh:
        yield reach


async def forget_host_key(cluster: Cluster, actor: Actor, name: str) -> bool:
    """Believe the next key that this builder's host shows first: it was rebuilt, as somebody knows.
    Whether one was kept."""
    view = await find_builder(cluster, name)
    return await cluster.propose(ForgetHostKey(view.node.id), actor)


def of_host(error: SwarmError, name: str) -> SwarmError:
    """What a host refuses is no word on who asked, nor on what there is here."""
    said = f"{name}: "
    message = error.message if error.message.startswith(said) else said + error.message
    if isinstance(error, Busy):
        return Busy(message, retry_after_s=error.retry_after_s)
    if isinstance(error, Unavailable):
        return Unavailable(message)
    return Conflict(message)
