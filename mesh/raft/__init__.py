"""Consensus without I/O: messages and ticks go in, work to be done comes out.

Nothing in here knows a clock, a socket, a thread, a log file or chance: what it needs of them it
is given.
"""

from mesh.raft.changer import conf_state_after
from mesh.raft.confchange import (
    AnyChange,
    Change,
    ChangeKind,
    ConfChange,
    ConfChangeV2,
    Transition,
    decode_change,
    encode_change,
)
from mesh.raft.config import Config, ReadOnly
from mesh.raft.errors import (
    ChangeRefused,
    Compacted,
    ConfigRefused,
    LogLost,
    MessageRefused,
    PeerNotFound,
    ProposalDropped,
    RaftError,
    ReadDropped,
    SnapshotOutOfDate,
    SnapshotTemporarilyUnavailable,
    StorageError,
    Unavailable,
)
from mesh.raft.messages import APPEND_THREAD, APPLY_THREAD, Message, MessageKind
from mesh.raft.node import RawNode, Ready, SoftState, Status
from mesh.raft.progress import ProgressState, ProgressView
from mesh.raft.reads import ReadState
from mesh.raft.storage import MemoryStorage, Storage
from mesh.raft.trace import Event, Role, Trace
from mesh.raft.types import (
    NO_LIMIT,
    NOBODY,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    Snapshot,
    SnapshotMeta,
)

__all__ = [
    "APPEND_THREAD",
    "APPLY_THREAD",
    "NOBODY",
    "NO_LIMIT",
    "AnyChange",
    "Change",
    "ChangeKind",
    "ChangeRefused",
    "Compacted",
    "ConfChange",
    "ConfChangeV2",
    "ConfState",
    "Config",
    "ConfigRefused",
    "Entry",
    "EntryKind",
    "Event",
    "HardState",
    "LogLost",
    "MemoryStorage",
    "Message",
    "MessageKind",
    "MessageRefused",
    "PeerNotFound",
    "ProgressState",
    "ProgressView",
    "ProposalDropped",
    "RaftError",
    "RawNode",
    "ReadDropped",
    "ReadOnly",
    "ReadState",
    "Ready",
    "Role",
    "Snapshot",
    "SnapshotMeta",
    "SnapshotOutOfDate",
    "SnapshotTemporarilyUnavailable",
    "SoftState",
    "Status",
    "Storage",
    "StorageError",
    "Trace",
    "Transition",
    "Unavailable",
    "conf_state_after",
    "decode_change",
    "encode_change",
]
