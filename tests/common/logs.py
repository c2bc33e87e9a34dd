"""What our own loggers tell, as data."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from common.telemetry import configure_logs
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


@contextmanager
def written_logs(level: str = "info") -> Iterator[Callable[[], list[str]]]:
    """The process's log lines while the block runs, as an operator would read them."""
    root = logging.getLogger()
    handlers, before = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logs(level, stream)
    try:
        yield lambda: stream.getvalue().splitlines()
    finally:
        root.handlers[:], root.level = handlers, before
