"""Node ids where they are bytes: a UUID has one text, in lower case, and one row of 16 bytes."""

from __future__ import annotations

import re

ID_BYTES = 16

_FORM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def is_node_id(text: str) -> bool:
    return _FORM.fullmatch(text) is not None


def id_bytes(node_id: str) -> bytes:
    """Raises ValueError for any other form than the one text of a UUID."""
    if not is_node_id(node_id):
        raise ValueError(f"{node_id[:100]!r} is no node id: a UUID in lower case is")
    return bytes.fromhex(node_id.replace("-", ""))


def id_text(raw: bytes) -> str:
    if len(raw) != ID_BYTES:
        raise ValueError(f"a node id has {ID_BYTES} bytes, not {len(raw)}")
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
