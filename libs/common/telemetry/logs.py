"""Logs: one JSON object a line, with the ids that tie it to its request and its trace."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from common.telemetry.correlation import correlation_id
from common.telemetry.masking import masked_field
from common.telemetry.tracing import trace_ids

# Every log of ours is a child of it.
LOGGER = "mindweave"
_FIELDS = "mindweave_fields"
# What every record has; the rest was given as ``extra``.
_USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class Log:
    """The log of one service, which each line names: ``log.info("ready", services=[...])``.

    The field ``exc_info``, an exception, becomes its traceback.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self._logger = logging.getLogger(f"{LOGGER}.{service}")

    def debug(self, event: str, **fields: Any) -> None:
        self._tell(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._tell(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._tell(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._tell(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error with the traceback of the exception that is handled just now."""
        self._tell(logging.ERROR, event, {"exc_info": True, **fields})

    def _tell(self, level: int, event: str, fields: dict[str, Any]) -> None:
        raised = fields.pop("exc_info", None)
        said = {"service": self._service, **fields}
        self._logger.log(level, event, exc_info=raised, extra={_FIELDS: said})


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a line was given beside its event; without a service of its own, the logger's name."""
    found: dict[str, Any] | None = getattr(record, _FIELDS, None)
    if found is not None:
        return found
    given = {name: value for name, value in vars(record).items() if name not in _USUAL}
    return {"logger": record.name, **given}


def configure_logs(level: str, stream: TextIO | None = None) -> None:
    """Send the process's logs, also those of libraries, to ``stream`` as JSON.

    Args:
        level: debug, info, warning or error.
        stream: standard error when absent.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    # These two tell of each request what the metrics tell already.
    for chatty in ("uvicorn.access", "httpx"):
        logging.getLogger(chatty).setLevel(max(number, logging.WARNING))


class JsonLines(logging.Formatter):
    """A record as one line of JSON, without any secret, by its field's name or by how it looks."""

    def format(self, record: logging.LogRecord) -> str:
        said = {**fields_of(record), "event": record.getMessage()}
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        line = {
            **{name: masked_field(name, value) for name, value in said.items()},
            "level": record.levelname.lower(),
            "timestamp": f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
            **_ids(),
        }
        return json.dumps(line, ensure_ascii=False)


def _ids() -> dict[str, str]:
    """The ids of the request and of the trace at hand."""
    found = {}
    if correlation := correlation_id():
        found["correlation_id"] = correlation
    if (ids := trace_ids()) is not None:
        found["trace_id"], found["span_id"] = ids
    return found
