"""The correlation id: one name for everything that follows from one request."""

from __future__ import annotations

import re
from contextvars import ContextVar
from uuid import uuid4

CORRELATION_HEADER = "x-correlation-id"
_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")

_current: ContextVar[str] = ContextVar("mindweave_correlation_id", default="")


def correlation_id() -> str:
    """The id of what this task works on; "" where nothing was bound."""
    return _current.get()


def bind_correlation_id(value: str) -> None:
    """Name what this task, and every task it starts from now on, works on."""
    _current.set(value)


def accepted_correlation_id(offered: str | None) -> str:
    """The id that a caller offers where it is short and plain, else a fresh one."""
    if offered and _SANE.fullmatch(offered):
        return offered
    return str(uuid4())
