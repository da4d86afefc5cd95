"""Values: what a person may write for a setting, and what becomes of it.

Every refusal says what would be right. Nothing here knows a setting by name.
"""

from __future__ import annotations

import ipaddress
import re

from swarmd.domain.errors import Invalid

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d|)")
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")

WORDS_OF_TRUTH = {"true": True, "yes": True, "on": True, "1": True,
                  "false": False, "no": False, "off": False, "0": False}  # fmt: skip


def size_bytes(text: str) -> int:
    """`64MiB`, `400 MB`, `1.5g` or a plain count of bytes. Without the i, units are decimal."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or len(text) > 40:
        raise Invalid(f"{text[:40]!r} is no size; write for example 64MiB, 400MB or 65536")
    count, unit, binary = match[1], match[2].lower(), match[3]
    step = (1024 if binary else 1000) ** " kmgt".index(unit or " ")
    return int(float(count) * step) if "." in count else int(count) * step


def duration_s(text: str) -> float:
    """`500ms`, `30s`, `5m`, `48h`, `2d` or a plain count of seconds."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or len(text) > 40:
        raise Invalid(
            f"{text[:40]!r} is no length of time; write for example 500ms, 30s, 5m or 48h"
        )
    return float(match[1]) * _SECONDS[match[2]]


def truth(text: str) -> bool:
    try:
        return WORDS_OF_TRUTH[text.strip().lower()]
    except KeyError:
        raise Invalid(f"{text[:40]!r} is neither true nor false") from None


def ip_address(text: str) -> str:
    """An address to listen at, in its one canonical spelling."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        raise Invalid(
            f"{text[:80]!r} is no IP address to listen at; write for example 127.0.0.1, 0.0.0.0"
            " or ::1, without a port"
        ) from None


def host_and_port(text: str, port_default: int) -> tuple[str, int]:
    """`10.0.0.1`, `10.0.0.1:8473`, `[fd00::1]:8473`, `fd00::1` or `name.example:8473`."""
    problem = Invalid(
        f"{text[:80]!r} is no HOST[:PORT]; write for example 10.0.0.1, [fd00::1]:{port_default}"
        f" or name.example:{port_default}"
    )
    bracketed = re.fullmatch(r"\[([^\[\]]+)\](?::(\d{1,5}))?", text)
    if bracketed:
        host, digits = bracketed[1], bracketed[2]
        if ":" not in host:
            raise problem
    elif text.count(":") > 1:
        host, digits = text, None
    else:
        host, colon, digits = text.partition(":")
        if colon and not re.fullmatch(r"\d{1,5}", digits):
            raise problem
    port = int(digits) if digits else port_default
    if not 1 <= port <= 65535:
        raise problem
    return _host(host, problem), port


def host_name(text: str) -> str:
    """A name or an address as a Host header has it, without the port."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return _host(bare, Invalid(f"{text[:80]!r} is no host; write a name or an address, no port"))


def _host(host: str, problem: Invalid) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        # What looks like an address and is none (300.1.1.1) must not become a name.
        if len(host) > 253 or not _HOST.fullmatch(host) or re.fullmatch(r"[\d.]+", host):
            raise problem from None
        return host.lower()


def joined(host: str, port: int) -> str:
    """The one spelling of an address and port that host_and_port reads back."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def node_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise Invalid(
            f"{text[:80]!r} is no node name; use up to 63 letters, digits, dots, hyphens and"
            " underscores, with a letter or digit at both ends"
        )
    return text


def pairs(text: str) -> dict[str, str]:
    """`disk=ssd,zone=a`"""
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise Invalid(f"{part[:80]!r} is no NAME=VALUE; write for example disk=ssd,zone=a")
        found[key.strip()] = value.strip()
    return found
