"""Logs: one JSON object a line, with the ids that tie it to its request and its trace."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

from common.telemetry.correlation import correlation_id
from common.telemetry.masking import masked_field
from common.telemetry.tracing import trace_ids

_OWN_FIELDS = ("timestamp", "level", "service", "correlation_id", "trace_id", "span_id")


def configure_logs(level: str, stream: TextIO | None = None) -> None:
    """Send the process's logs, also those of libraries, to ``stream`` as JSON.

    Args:
        level: debug, info, warning or error.
        stream: standard error when absent.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    ours: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
        add_ids,
        structlog.processors.format_exc_info,
        mask_secrets,
    ]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *ours],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(sort_keys=False, ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    # These two tell of each request what the metrics tell already.
    for chatty in ("uvicorn.access", "httpx"):
        logging.getLogger(chatty).setLevel(max(number, logging.WARNING))
    structlog.configure(
        processors=[*ours, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def add_ids(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the ids of the request and of the trace at hand."""
    correlation = correlation_id()
    if correlation:
        event["correlation_id"] = correlation
    ids = trace_ids()
    if ids is not None:
        event["trace_id"], event["span_id"] = ids
    return event


def mask_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace every secret, by its field's name or by how it looks."""
    for name, value in event.items():
        if name not in _OWN_FIELDS and not name.startswith("_"):
            event[name] = masked_field(name, value)
    return event
