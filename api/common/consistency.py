"""How fresh an answer must be: `X-Swarm-Consistency`, the same on every surface.

`linearizable`, the default, is never older than what was acknowledged anywhere. `local` is what
this node's replica holds, and its answer says by how much it may be behind.
"""

from __future__ import annotations

from api.common.wire import Head
from swarmd.domain.errors import Invalid

HEADER = b"x-swarm-consistency"
STALENESS = b"X-Swarm-Staleness-Ms"
_WORDS = {b"linearizable": False, b"local": True}


def wants_local(head: Head) -> bool:
    """Whether this node's replica may answer alone. Invalid: the header says something else. A
    write is agreed on in any case, so there it means nothing."""
    wanted = {value.lower() for name, value in head.headers if name == HEADER}
    if not wanted:
        return False
    if len(wanted) > 1 or not wanted <= _WORDS.keys():
        raise Invalid(
            "X-Swarm-Consistency must be linearizable, which is the default, or local",
            header="X-Swarm-Consistency",
        )
    return _WORDS[wanted.pop()] and head.method in ("GET", "HEAD")
