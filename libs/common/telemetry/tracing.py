"""Traces: spans of each service, W3C trace context between them, OTLP where it is configured."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, MutableMapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common.telemetry.correlation import CORRELATION_HEADER, correlation_id

__all__ = ["SpanKind", "Tracing", "extract", "inject"]

_W3C = TraceContextTextMapPropagator()


class Tracing:
    """The traces of one process.

    Args:
        endpoint: base URL of an OTLP/HTTP receiver; spans go to ``<endpoint>/v1/traces``. None:
            no span is recorded, and the caller's trace context is passed on as it came, or a
            fresh one where there was none.
        version: of the platform, told with each span.
    """

    def __init__(self, endpoint: str | None, *, version: str) -> None:
        self._version = version
        self._processor: BatchSpanProcessor | None = None
        if endpoint is not None:
            exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
            self._processor = BatchSpanProcessor(exporter)

    def tracer(self, service: str) -> Tracer | None:
        """The tracer of one service, which its spans name; None where nothing is recorded."""
        if self._processor is None:
            return None
        resource = Resource.create(
            {
                "service.name": service,
                "service.namespace": "mindweave",
                "service.version": self._version,
            }
        )
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        return provider.get_tracer("mindweave", self._version)

    async def stop(self) -> None:
        """Send what is left, and end."""
        if self._processor is not None:
            await asyncio.to_thread(self._processor.shutdown)


def inject(headers: MutableMapping[str, str]) -> None:
    """Write the trace context and the correlation id at hand into headers of a message."""
    _W3C.inject(headers)
    if correlation := correlation_id():
        headers[CORRELATION_HEADER] = correlation


def extract(headers: Mapping[str, str]) -> Context:
    """The trace context in headers with lower-case names, as a parent for spans."""
    return _W3C.extract(headers, context=Context())


def traced(context: Context | None) -> Context:
    """The context (the one at hand when None) within a trace.

    One without a trace gets a fresh one, of which nobody records a span.
    """
    if context is not None and get_current_span(context).get_span_context().is_valid:
        return context
    root = SpanContext(
        secrets.randbits(128) or 1, secrets.randbits(64) or 1, False, TraceFlags.get_default()
    )
    return set_span_in_context(NonRecordingSpan(root), context)
