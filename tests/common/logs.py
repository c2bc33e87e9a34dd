"""What our own loggers tell, as data."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from common.telemetry.logs import LOGGER, fields_of


@contextmanager
def capture_logs() -> Iterator[list[dict[str, Any]]]:
    """The lines of services while the block runs, of every level, with their fields."""
    lines: list[dict[str, Any]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told = {"event": record.getMessage(), "level": record.levelname.lower()}
            if record.exc_info:
                told["exception"] = repr(record.exc_info[1])
            lines.append({**fields_of(record), **told})

    ours, handler = logging.getLogger(LOGGER), Handler()
    level = ours.level
    ours.setLevel(logging.DEBUG)
    ours.addHandler(handler)
    try:
        yield lines
    finally:
        ours.removeHandler(handler)
        ours.setLevel(level)
