"""What a service tells of itself: structured logs, Prometheus metrics, OpenTelemetry traces."""

from common.telemetry.correlation import (
    CORRELATION_HEADER,
    accepted_correlation_id,
    bind_correlation_id,
    correlation_id,
)
from common.telemetry.logs import Log, configure_logs
from common.telemetry.metrics import Family, Metrics
from common.telemetry.telemetry import Telemetry
from common.telemetry.tracing import SpanKind, Tracing, extract, inject

__all__ = [
    "CORRELATION_HEADER",
    "Family",
    "Log",
    "Metrics",
    "SpanKind",
    "Telemetry",
    "Tracing",
    "accepted_correlation_id",
    "bind_correlation_id",
    "configure_logs",
    "correlation_id",
    "extract",
    "inject",
]
