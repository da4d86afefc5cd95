"""A node that builds, composed: its Portage as the configuration has it, its bench, its way to the
queue. One that is not configured to build has none of it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from swarmd.agent.attempts import Attempts
from swarmd.agent.builder import Builder
from swarmd.agent.building import Bench
from swarmd.cluster.handle import Cluster
from swarmd.config import BuilderSection, JobsSection, PortageSection
from swarmd.domain.actors import Actor
from swarmd.drivers.portage import PortageSettings
from swarmd.ops.binhost import Staging
from swarmd.ops.own_builds import OwnCounter

FOLDER = "builder"
"""Below the data directory."""
SIGNING = "signing"


@dataclass
class Building:
    """Of this node. `trouble` says why it builds nothing although it is to."""

    settings: PortageSettings
    sync: tuple[str, ...] | None
    bench: Bench
    counter: OwnCounter
    builder: Builder | None = None

    @property
    def trouble(self) -> str | None:
        return None if self.builder is None else self.builder.trouble

    async def live(self, attempts: Attempts) -> None:
        """Until it is cancelled."""
        self.builder = Builder(self.settings, self.sync, self.bench, self.counter, attempts)
        await self.builder.live()


def building(
    section: BuilderSection, jobs: JobsSection, cluster: Cluster, data_dir: Path
) -> Building | None:
    settings = portage_settings(section)
    if settings is None:
        return None
    folder = data_dir / FOLDER
    staging = Staging(folder / SIGNING, jobs.blob_bytes_max)
    staging.clear()
    counter = OwnCounter(
        cluster, Actor(cluster.node.name, "builder"), section.cores or host_cores(),
        section.auto_reboot, staging,
    )  # fmt: skip
    bench = Bench(folder, settings, counter, grace_s=jobs.grace_s, log_bytes_max=jobs.log_bytes_max)
    sync = None
    if section.sync:
        named = section.sync_command
        sync = tuple(shlex.split(named)) if named else (*settings.command, "--sync", "--quiet")
    return Building(settings, sync, bench, counter)


def portage_settings(section: BuilderSection) -> PortageSettings | None:
    """None: this node builds nothing."""
    if section.command is None:
        return None
    env = dict(each.split("=", 1) for each in section.env)
    if section.cores is not None:
        env["MAKEOPTS"] = f"-j{section.cores}"
    return PortageSettings(
        command=tuple(shlex.split(section.command)), options=section.options, env=env,
        python=tuple(shlex.split(section.python or "")),
        install_dependencies=section.install_dependencies,
        build_timeout_s=section.build_timeout_s,
    )  # fmt: skip


def tree_settings(section: PortageSection, builder: BuilderSection) -> PortageSettings | None:
    """Of the Portage that names of packages are looked up in: its own, or else the builder's. None:
    this node looks for none."""
    if not section.lookup:
        return None
    own = BuilderSection(
        command=section.command or "emerge", env=section.env, python=section.python
    )
    settings = portage_settings(own if section.command or not builder.command else builder)
    return settings and replace(settings, query_timeout_s=section.timeout_s)


def host_cores() -> int:
    return len(os.sched_getaffinity(0))
