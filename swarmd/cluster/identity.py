"""Who a node is when it starts: the founder of a swarm, one that asks to be taken in, or a member.

What lies on the disk decides, then what it was told. Everything here blocks: run it in a thread.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mesh.garbage import GARBAGE
from mesh.identity.boxes import Entropy
from mesh.identity.files import Identity, load_identity, make_identity, save_identity
from mesh.identity.tokens import Token
from swarmd.cluster.members import Grounds
from swarmd.cluster.trust import begin_trust
from swarmd.domain.errors import Invalid, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.state.commands import FoundTrust
from swarmd.state.store import sync_directory

FOLDER = "identity"
FOUNDING = "founding"
"""The file of a swarm's first words about trust, kept until they are in the state."""
FOUNDING_BYTES_MAX = 64 * 1024


@dataclass(frozen=True)
class Start:
    identity: Identity
    grounds: Grounds | None = None
    """For whoever is to take this node in."""
    founding: FoundTrust | None = None


def prepare(
    folder: Path,
    node_id: NodeId,
    *,
    joins: bool,
    token: Token | None,
    earlier: Identity | None,
    alone: bool,
    entropy: Entropy,
    now: float,
) -> Start:
    """`earlier` is who this host was before it had to begin anew; `alone` says that no state of a
    swarm with other voters is here. Invalid: joining takes a token."""
    identity = load_identity(folder)
    if identity is not None and identity.node_id != node_id:
        raise Unavailable(
            f"{folder} has the identity of {identity.node_id}, and this node is {node_id}: put back"
            " what belongs together, or move the data directory away and join as a new node"
        )
    if identity is None:
        identity = make_identity(node_id, entropy)
        save_identity(folder, identity)
    if identity.certificate is not None:
        return Start(identity, Grounds(identity.pin, earlier=identity), _load_founding(folder))
    if joins:
        if earlier is not None:
            return Start(identity, Grounds(earlier.pin, earlier=earlier))
        if token is None:
            raise Invalid(
                "joining takes a token: `swarmd token` on a node of that swarm prints one, for"
                " --token or SWARMD_MESH_TOKEN here"
            )
        return Start(identity, Grounds(token.pin, token.secret))
    if token is not None and alone:
        raise Invalid(
            "a token is for joining, and there is no node to join at: give --join with the address"
            " of a member, or --discover; for a swarm of its own, leave the token away"
        )
    if not alone:
        raise Unavailable(
            "this node is of a swarm with others and has no certificate of it: put its identity"
            f" back into {folder}, or move the data directory away and join as a new node"
        )
    identity, founding = begin_trust(identity, entropy, now)
    _save_founding(folder, founding)
    save_identity(folder, identity)
    return Start(identity, None, founding)


def _save_founding(folder: Path, command: FoundTrust) -> None:
    """All of it is sealed; it is on disk before the identity that it goes with."""
    fresh = folder / f"{FOUNDING}.new"
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.msgpack.encode(command))
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(folder / FOUNDING)
    sync_directory(folder)


def _load_founding(folder: Path) -> FoundTrust | None:
    path = folder / FOUNDING
    try:
        with path.open("rb") as file:
            return msgspec.msgpack.decode(file.read(FOUNDING_BYTES_MAX), type=FoundTrust)
    except FileNotFoundError:
        return None
    except GARBAGE as error:
        raise Unavailable(
            f"{path} cannot be used: {error}. It holds the first keys of this swarm: put it back,"
            " or move the data directory away"
        ) from None


def founded(folder: Path) -> None:
    """The swarm has its first words about trust."""
    (folder / FOUNDING).unlink(missing_ok=True)
