"""Rules of trust: the swarm's authority, what it keeps sealed, for whom, and who may come in.

Nothing that is a secret is in here in the clear: what is sealed was sealed before it was proposed,
and of a join token only the hash of its secret is known."""

from __future__ import annotations

import msgspec

from swarmd.domain.drone_tokens import TOKENS_MAX as DRONE_TOKENS_MAX
from swarmd.domain.drone_tokens import DroneToken, check_name
from swarmd.domain.errors import Conflict, Invalid, NotFound
from swarmd.domain.events import TrustChanged
from swarmd.domain.jobs import NodeId
from swarmd.state.commands import (
    SEALED_BYTES_MAX,
    DropDroneToken,
    DropTokens,
    FoundTrust,
    PutDroneToken,
    PutSecret,
    PutToken,
    PutWraps,
)
from swarmd.state.rows import encode
from swarmd.state.rules.nodes import find_node
from swarmd.state.tx import Tx

AUTHORITY = "authority"
SECRETS_MAX = 1000
TOKENS_MAX = 64
TTL_MS_MAX = 90 * 24 * 3600_000
HASH_BYTES = 32
DRONE_TOKENS = "drone tokens"

decode_drone_token = msgspec.msgpack.Decoder(DroneToken).decode


def found(tx: Tx, command: FoundTrust) -> bytes:
    known = tx.execute("SELECT value FROM settings WHERE key = ?", (AUTHORITY,)).fetchone()
    if known is not None:
        return bytes(known[0])
    for name, sealed in command.secrets.items():
        _check_sealed(sealed)
        tx.execute("INSERT OR REPLACE INTO secrets VALUES (?,?,?)", (name, sealed, tx.revision))
    _wrap(tx, command.node_id, command.box)
    tx.execute("INSERT INTO settings VALUES (?,?,?)", (AUTHORITY, command.authority, tx.revision))
    tx.emit(TrustChanged("founded"))
    return command.authority


def put_secret(tx: Tx, command: PutSecret) -> int:
    _check_sealed(command.sealed)
    row = tx.execute("SELECT revision FROM secrets WHERE name = ?", (command.name,)).fetchone()
    if (0 if row is None else row[0]) != command.replaces:
        raise Conflict(
            "it was changed by another meanwhile; look, and try again", name=command.name
        )
    held = tx.execute("SELECT count(*) FROM secrets").fetchone()[0]
    if row is None and held >= SECRETS_MAX:
        raise Conflict(f"{held} secrets are kept already, and no more than that")
    tx.execute(
        "INSERT OR REPLACE INTO secrets VALUES (?,?,?)", (command.name, command.sealed, tx.revision)
    )
    tx.emit(TrustChanged(command.name))
    return tx.revision


def put_wraps(tx: Tx, command: PutWraps) -> int:
    """A node that is gone meanwhile is passed over."""
    done = 0
    for node_id, box in sorted(command.boxes.items()):
        if find_node(tx.execute, node_id) is not None:
            _wrap(tx, node_id, box)
            done += 1
    for node_id in command.dropped:
        done += tx.execute("DELETE FROM wraps WHERE node_id = ?", (node_id,)).rowcount
    if done:
        tx.emit(TrustChanged("wraps"))
    return done


def _wrap(tx: Tx, node_id: NodeId, box: bytes) -> None:
    _check_sealed(box)
    tx.execute("INSERT OR REPLACE INTO wraps VALUES (?,?)", (node_id, box))


def _check_sealed(sealed: bytes) -> None:
    if len(sealed) > SEALED_BYTES_MAX:
        raise Invalid(f"a secret has at most {SEALED_BYTES_MAX} bytes, not {len(sealed)}")


def put_token(tx: Tx, command: PutToken) -> int:
    if len(command.hash) != HASH_BYTES:
        raise Invalid(f"the hash of a token's secret has {HASH_BYTES} bytes")
    if not 0 < command.ttl_ms <= TTL_MS_MAX:
        raise Invalid(
            f"a token is good for at most {TTL_MS_MAX // 86_400_000} days", field="ttl_ms"
        )
    tx.execute("DELETE FROM tokens WHERE ends_at <= ?", (tx.at,))
    if command.alone:
        tx.execute("DELETE FROM tokens")
    held = tx.execute("SELECT count(*) FROM tokens").fetchone()[0]
    if held >= TOKENS_MAX:
        raise Conflict(f"{held} tokens are good at present; `swarmd token --rotate` ends them all")
    ends_at = tx.at + command.ttl_ms
    tx.execute("INSERT OR REPLACE INTO tokens VALUES (?,?)", (command.hash, ends_at))
    tx.emit(TrustChanged("tokens"))
    return ends_at


def drop_tokens(tx: Tx, command: DropTokens) -> int:
    done = tx.execute("DELETE FROM tokens").rowcount
    if not done:
        raise NotFound("no token is good at present")
    tx.emit(TrustChanged("tokens"))
    return done


# Builders from outside


def put_drone_token(tx: Tx, command: PutDroneToken) -> None:
    name = check_name(command.name)
    if len(command.hash) != HASH_BYTES:
        raise Invalid(f"the hash of a token has {HASH_BYTES} bytes")
    known = tx.execute("SELECT 1 FROM drone_tokens WHERE name = ?", (name,)).fetchone()
    held = tx.execute("SELECT count(*) FROM drone_tokens").fetchone()[0]
    if known is None and held >= DRONE_TOKENS_MAX:
        raise Conflict(f"{held} drones have tokens already; revoke some first")
    token = DroneToken(name, command.hash, tx.entry.actor.name, tx.at)
    tx.execute("INSERT OR REPLACE INTO drone_tokens VALUES (?,?)", (name, encode(token)))
    tx.emit(TrustChanged(DRONE_TOKENS))


def drop_drone_token(tx: Tx, command: DropDroneToken) -> None:
    if not tx.execute("DELETE FROM drone_tokens WHERE name = ?", (command.name,)).rowcount:
        raise NotFound("that drone has no token", name=command.name[:128])
    tx.emit(TrustChanged(DRONE_TOKENS))
