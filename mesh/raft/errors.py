"""What the core refuses and what it cannot survive. A refusal leaves the core as it was."""

from __future__ import annotations


class RaftError(Exception):
    """The root of all errors of the core."""


class ProposalDropped(RaftError):
    """Nothing was appended: propose again, to the leader of the day, or tell the client."""


class ReadDropped(RaftError):
    """The read was not taken up: ask again once there is a leader, or fewer reads under way."""


class MessageRefused(RaftError):
    """The message is none that a peer may send; drop it, and suspect the peer."""


class PeerNotFound(RaftError):
    """An answer came from a node that is no member as far as this one knows; drop it."""


class ConfigRefused(RaftError, ValueError):
    """The configuration of the core contradicts itself."""


class ChangeRefused(RaftError):
    """The change of members cannot be applied to the configuration there is."""


class LogLost(RaftError):
    """A peer proves that this node acknowledged entries that its log no longer has.

    The copy on disk is older than what was promised: stop this node, never go on with this log.
    """


class StorageError(RaftError):
    """The root of what `Storage` may raise to say what it has not got."""


class Compacted(StorageError):
    """The index lies before the first entry that is kept."""


class Unavailable(StorageError):
    """The index lies behind the last entry."""


class SnapshotOutOfDate(StorageError):
    """The snapshot is older than the one there is."""


class SnapshotTemporarilyUnavailable(StorageError):
    """A snapshot is being made; the core asks again later."""
