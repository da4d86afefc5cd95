"""Garbage: what decoders raise for bytes that are not what they are taken for, named once.

A string that is no UTF-8 and nesting without end are no DecodeErrors of msgspec's.
"""

from __future__ import annotations

import msgspec

GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
