"""Answers that hold for a time are asked for again before it is over: nobody waits for them."""

from __future__ import annotations

import asyncio
from typing import Any

from common.errors import MindWeaveError

# The part of its time after which an answer in use is asked for again.
AHEAD = 2 / 3


def not_needed_yet(asking: asyncio.Future[Any]) -> None:
    """See what became of a question that was asked ahead.

    A failure is none yet: the present answer serves on, and whoever comes after it asks.
    """
    error = None if asking.cancelled() else asking.exception()
    if error is not None and not isinstance(error, MindWeaveError | OSError):
        raise error
