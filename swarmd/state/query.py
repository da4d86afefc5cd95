"""What a query is, for those who define some."""

from __future__ import annotations

import sqlite3
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")
Conn = sqlite3.Connection


class Query(msgspec.Struct, Generic[T], frozen=True, tag=True, omit_defaults=True):
    """T is the answer."""
