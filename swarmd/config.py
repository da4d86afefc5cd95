"""Configuration: one frozen Config of frozen sections; each value remembers where it came from.

A section's field is the whole truth about a setting: its key, type, default, bounds and words.
No component takes the Config: the daemon gives each its own section.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


def setting(
    default: Any,
    words: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
    kind: str = "",
) -> Any:
    """A field and what is known of it; a default that can be called makes the default.

    `kind` names a stricter reading, see config_sources.
    """
    facts = {"words": words, "low": low, "high": high, "choices": choices, "secret": secret,
             "kind": kind}  # fmt: skip
    if callable(default):
        return field(default_factory=default, metadata=facts)
    return field(default=default, metadata=facts)


KIB, MIB, GIB = 1024, 1024**2, 1024**3
FILLED_IN = Path("/var/lib/swarmd")
"""What root has; config_sources finds the place for anyone else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSection:
    name: str = setting("", "the node's name; the host's where none is given", kind="name")
    data_dir: Path = setting(FILLED_IN, "everything this node keeps; only its user may enter")
    bind: tuple[str, ...] = setting(
        ("127.0.0.1",), "addresses that every surface listens at", kind="ip"
    )
    advertise: str | None = setting(
        None, "HOST[:PORT] at which others reach this node", kind="host-port"
    )
    labels: Mapping[str, str] = setting(dict, "NAME=VALUE pairs that constraints can ask for")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSection:
    """Between nodes: they prove to each other who they are, and speak TLS alone."""

    port: int = setting(8473, "where other nodes reach this one; 0 takes any that is free",
                        low=0, high=65535)  # fmt: skip
    bind: tuple[str, ...] = setting((), "addresses of its own, in place of node.bind", kind="ip")
    join: tuple[str, ...] = setting(
        (), "HOST[:PORT] of nodes whose swarm a new node joins", kind="host-port"
    )
    token: str | None = setting(
        None,
        "the join token of that swarm; SWARMD_MESH_TOKEN keeps it out of files",
        secret=True,
        kind="join-token",
    )
    discover: bool = setting(
        False, "be found on the networks of this host by whoever has the token, and find others"
    )
    timing: str = setting("default", "how soon a silent leader is replaced: default, or lan for"
                          " half of that", choices=("default", "lan"))  # fmt: skip
    profile: str = setting("lan", "how far apart the nodes are, for gossip: lan, wan or local",
                           choices=("lan", "wan", "local"))  # fmt: skip
    voters: int = setting(3, "members that vote, where there are so many", low=1, high=9)
    replicas: int = setting(
        9, "nodes that hold the whole state; further ones are served by them", low=1, high=9
    )
    log_entries_keep: int = setting(
        10_000, "entries of the log kept for nodes that were away for a moment", low=10
    )
    snapshot_bytes_per_s_max: int = setting(
        128 * MIB, "what a node gives of a copy of the state to one that is far behind", low=MIB
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceSection:
    port: int = setting(0, "its TCP port; 0 takes any that is free", low=0, high=65535)
    enabled: bool = setting(True, "serve it at all")
    bind: tuple[str, ...] = setting((), "addresses of its own, in place of node.bind", kind="ip")
    open: bool = setting(False, "ask for no credential, not even off loopback")
    hosts: tuple[str, ...] = setting(
        (), "further names that a request's Host may have", kind="host"
    )
    origins: tuple[str, ...] = setting(
        (), "origins besides its own whose pages may call it, such as https://swarm.example"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfacesSection:
    jobqueue: SurfaceSection = SurfaceSection(port=8080)
    buildswarm: SurfaceSection = SurfaceSection(port=8100)
    buildadmin: SurfaceSection = SurfaceSection(port=8093)
    console: SurfaceSection = SurfaceSection(port=8470)

    def by_name(self) -> dict[str, SurfaceSection]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSection:
    """The bounds of api.common.limits that an operator may move, by their names there."""

    request_line_bytes_max: int = setting(12 * KIB, "a request's first line", low=KIB)
    header_bytes_max: int = setting(16 * KIB, "a request's line and headers together", low=KIB)
    headers_max: int = setting(100, "headers of a request", low=10, high=10_000)
    header_timeout_s: float = setting(10.0, "for a request's headers to arrive", low=0.1)
    body_bytes_max: int = setting(
        4 * MIB, "a request's body, where a route sets no bound of its own", low=16 * KIB, high=GIB
    )
    body_timeout_s: float = setting(60.0, "what a client may keep a body waiting", low=0.1)
    body_bytes_per_s_min: int = setting(
        16 * KIB, "so many bytes of a body earn one more second", low=1
    )
    idle_timeout_s: float = setting(75.0, "between two requests on a connection", low=0.1)
    write_stall_timeout_s: float = setting(30.0, "to take 64 KiB of an answer", low=0.1)
    handler_timeout_s: float = setting(60.0, "for an answer that is no stream", low=1.0)
    connections_max: int = setting(1000, "open connections in all", low=1, high=100_000)
    connections_per_surface_max: int = setting(
        800, "open connections of one surface", low=1, high=100_000
    )
    requests_max: int = setting(256, "requests in work at once; one more gets 503", low=1)
    streams_max: int = setting(256, "followed logs and WebSockets open at once", low=1)
    keep_alive_requests_max: int = setting(100_000, "requests of one connection", low=1)
    websocket_message_bytes_max: int = setting(MIB, "a WebSocket message", low=KIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsSection:
    executor: bool = setting(True, "run jobs on this node")
    slots: int | None = setting(None, "jobs at once; as many as cpus where none is given",
                                low=1, high=10_000)  # fmt: skip
    user: str | None = setting(
        None, "the account that jobs run as, when the daemon is root; nobody where none is given"
    )
    cpus: float | None = setting(None, "cpus on offer; all where none is given", low=0.01)
    memory_bytes: int | None = setting(None, "memory on offer; all where none is given", low=MIB)
    gpus: int | None = setting(None, "GPUs on offer; all where none is given", low=0, high=1024)
    runner_unit: str | None = setting(
        None, "the systemd unit that is the runner; without one the node starts it itself",
        kind="unit",
    )  # fmt: skip
    grace_s: float = setting(10.0, "between SIGTERM and SIGKILL to a job", low=0.0, high=3600.0)
    keep_s: float = setting(48 * 3600.0, "how long an ended job's log stays", low=0.0)
    log_bytes_max: int = setting(64 * MIB, "a job's stdout, and its stderr, on disk", low=64 * KIB)
    logs_total_bytes_max: int = setting(10 * GIB, "all jobs' logs on disk", low=MIB)
    cache_bytes_max: int = setting(400_000_000, "cached executables on disk", low=MIB)
    blob_bytes_max: int = setting(4 * GIB, "one blob", low=MIB)
    blobs_total_bytes_max: int = setting(64 * GIB, "all blobs on disk", low=MIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadsSection:
    """What drivers.http allows the servers that it fetches from, by the names there."""

    connect_timeout_s: float = setting(10.0, "for a server to accept", low=0.1)
    stall_timeout_s: float = setting(30.0, "for the next bytes of an answer", low=0.1)
    redirects_max: int = setting(5, "redirects to follow", low=0, high=20)
    ca_file: str | None = setting(
        None, "certificates (PEM) to trust beside the system's own", kind="file"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SshSection:
    """How this node reaches hosts that run no swarmd. Without a key file it reaches none."""

    user: str = setting("root", "the account on those hosts")
    port: int = setting(22, "where their sshd listens", low=1, high=65535)
    key_file: str | None = setting(
        None, "the private key, of the OpenSSH or PEM form, without a passphrase", kind="file"
    )
    known_hosts: str | None = setting(
        None, "the keys of those hosts; no host is believed that is not in it", kind="file"
    )
    pin_first: bool = setting(
        False, "believe the first key of a builder that known_hosts does not have, and keep it in"
        " the swarm"
    )  # fmt: skip
    keepalive_s: float = setting(
        15.0, "a host that is silent is asked so often whether it is there; after three questions"
        " without an answer its connection is lost", low=1.0, high=3600.0
    )  # fmt: skip
    hosts: Mapping[str, str] = setting(
        dict, "NAME=HOST[:PORT] of builders that are not reached where they say they are"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CareSection:
    """How builders are probed, and what is done for those that fail."""

    enabled: bool = setting(True, "probe builders and heal them while this node leads")
    service: str = setting("swarm-drone", "the service on hosts that run no swarmd", kind="service")
    own_service: str = setting("swarmd", "the service that this node runs as", kind="service")
    paths: tuple[str, ...] = setting(("/",), "whose disks must not be full", kind="file")


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadsSection:
    """Where payloads lie on builders, with which mode, and what is started again after them."""

    binary: str = setting("/usr/local/bin/swarm-drone", "the builder's program", kind="file")
    binary_mode: str = setting("0755", "its mode, in octal", kind="mode")
    init_script: str = setting("/etc/init.d/swarm-drone", "its init script", kind="file")
    init_script_mode: str = setting("0755", "its mode, in octal", kind="mode")
    config: str = setting("/etc/swarm-drone/config.json", "its configuration", kind="file")
    config_mode: str = setting("0640", "its mode, in octal", kind="mode")
    portage_config: str = setting(
        "/etc/portage/repos.conf/binhost.conf", "where Portage finds the binary host", kind="file"
    )
    portage_config_mode: str = setting("0644", "its mode, in octal", kind="mode")
    service: str = setting(
        "swarm-drone", "what is started again after the program or the init script"
    )
    heartbeat_s: float = setting(
        60.0, "for a sign of life after that", low=1.0, high=3600.0
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalsSection:
    """What terminals on builders may take of this node, by the names in ops.terminals."""

    sessions_max: int = setting(16, "terminals open at once", low=1, high=200)
    idle_s: float = setting(1800.0, "without a word either way", low=1.0)
    session_s_max: float = setting(43_200.0, "of one terminal", low=1.0)
    recording_bytes_max: int = setting(
        16 * MIB, "a recording; what comes after it is not recorded", low=4 * KIB, high=GIB
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderSection:
    """This node as a builder of packages, by the names of drivers.portage. Without a command it
    builds none."""

    command: str | None = setting(
        None, "what is emerge here, such as emerge or chroot /mnt/build emerge; without it this"
        " node builds no packages", kind="command"
    )  # fmt: skip
    options: tuple[str, ...] = setting((), "options for emerge, such as --nodeps")
    env: tuple[str, ...] = setting(
        (), "NAME=VALUE for emerge, such as FEATURES=ccache; nothing else of the environment gets"
        " there", kind="variable"
    )  # fmt: skip
    python: str | None = setting(
        None, "the Python that can import portage, where it is not found", kind="command"
    )
    cores: int | None = setting(None, "build with so many: make -jN; all where none is given",
                                low=1, high=4096)  # fmt: skip
    install_dependencies: bool = setting(
        False, "install what a build needs on this host first; without it such a build fails"
    )
    build_timeout_s: float = setting(
        6 * 3600.0, "a build that takes longer has failed", low=1.0, high=7 * 86_400.0
    )
    sync: bool = setting(True, "bring this host's tree up to date where the swarm's work needs it")
    sync_command: str | None = setting(
        None, "with what; emerge --sync where none is given", kind="command"
    )
    auto_reboot: bool = setting(True, "the swarm may restart this host")


@dataclass(frozen=True, slots=True, kw_only=True)
class PortageSection:
    """Whose tree says what names of packages stand for. A node without one asks the others."""

    lookup: bool = setting(True, "look packages up in the Portage tree of this host, if it has one")
    command: str | None = setting(
        None, "what is emerge here; the builder's command where none is given, else emerge",
        kind="command",
    )  # fmt: skip
    env: tuple[str, ...] = setting(
        (), "NAME=VALUE for that Portage, such as ROOT=/mnt/build", kind="variable"
    )
    python: str | None = setting(
        None, "the Python that can import portage, where it is not found", kind="command"
    )
    timeout_s: float = setting(25.0, "for an answer of Portage", low=1.0, high=30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSection:
    events_keep: int = setting(200_000, "events kept for those who resume", low=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecuritySection:
    admin_key: str | None = setting(
        None, "the key that protected surfaces ask for; one is made where none is given",
        secret=True, kind="key",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSection:
    level: str = setting("info", "what is told", choices=("debug", "info", "warning", "error"))
    format: str = setting("text", "how it is told", choices=("text", "json"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    node: NodeSection = NodeSection()
    mesh: MeshSection = MeshSection()
    surfaces: SurfacesSection = SurfacesSection()
    http: HttpSection = HttpSection()
    jobs: JobsSection = JobsSection()
    downloads: DownloadsSection = DownloadsSection()
    ssh: SshSection = SshSection()
    payloads: PayloadsSection = PayloadsSection()
    care: CareSection = CareSection()
    terminals: TerminalsSection = TerminalsSection()
    builder: BuilderSection = BuilderSection()
    portage: PortageSection = PortageSection()
    store: StoreSection = StoreSection()
    security: SecuritySection = field(default=SecuritySection(), repr=False)
    log: LogSection = LogSection()
    file: Path | None = None
    """The file that was read, if any."""
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Where each setting's value came from, by its dotted path."""


SECTIONS = tuple(f.name for f in fields(Config) if f.name not in ("file", "origins"))
