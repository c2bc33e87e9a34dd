"""Identifiers that sort by the time they were made."""

from __future__ import annotations

import os
import time
from uuid import UUID

_VERSION = 0x7 << 76
_VARIANT = 0b10 << 62


def uuid7(nanoseconds: int | None = None) -> UUID:
    """A new UUIDv7, whose twelve bits after the milliseconds are the fraction of the millisecond.

    RFC 9562, section 6.2, method 3; the other 62 bits are random.

    Args:
        nanoseconds: since the epoch; the machine's clock when absent.
    """
    milliseconds, rest = divmod(time.time_ns() if nanoseconds is None else nanoseconds, 1_000_000)
    fraction = (rest << 12) // 1_000_000
    random = int.from_bytes(os.urandom(8)) & ((1 << 62) - 1)
    stamp = milliseconds & ((1 << 48) - 1)
    return UUID(int=stamp << 80 | _VERSION | fraction << 64 | _VARIANT | random)
