"""Traces: spans of each service, W3C trace context between them, OTLP where it is configured."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar, Token
from types import MappingProxyType
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common.telemetry.correlation import CORRELATION_HEADER, correlation_id

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

__all__ = ["SpanKind", "Tracing", "carry", "extract", "inject", "let_go", "trace_ids"]

_W3C = TraceContextTextMapPropagator()
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
_TRACESTATE_LENGTH = 512
_LAST_SPANS_SECONDS = 2.0

Carried = Mapping[str, str]
_NOTHING: Carried = MappingProxyType({})
# Where nothing is recorded, the trace context that came with the request, to be passed on.
_carried: ContextVar[Carried] = ContextVar("mindweave_trace", default=_NOTHING)


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
        self._exporter: OTLPSpanExporter | None = None
        self._processor: BatchSpanProcessor | None = None
        if endpoint is not None:
            # Slow to import, and needed only here.
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            self._exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
            self._processor = BatchSpanProcessor(self._exporter)

    def tracer(self, service: str) -> Tracer | None:
        """The tracer of one service, which its spans name; None where nothing is recorded."""
        if self._processor is None:
            return None
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

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
        """Send what is left, and end; a receiver that does not answer is not waited for."""
        if self._processor is None or self._exporter is None:
            return
        ending = asyncio.ensure_future(asyncio.to_thread(self._processor.shutdown))
        await asyncio.wait([ending], timeout=_LAST_SPANS_SECONDS)
        if not ending.done():
            # Ends the exporter's retries, for which the processor waits.
            await asyncio.to_thread(self._exporter.shutdown)
        await ending


def inject(headers: MutableMapping[str, str]) -> None:
    """Write the trace context and the correlation id at hand into headers of a message."""
    carried = _carried.get()
    if carried:
        headers.update(carried)
    else:
        _W3C.inject(headers)
    if correlation := correlation_id():
        headers[CORRELATION_HEADER] = correlation


def extract(headers: Mapping[str, str]) -> Context:
    """The trace context in headers with lower-case names, as a parent for spans."""
    return _W3C.extract(headers, context=Context())


def carry(headers: Mapping[str, str] | None) -> Token[Carried] | None:
    """Pass on the trace context in ``headers``, or a fresh one where they hold none.

    Args:
        headers: with lower-case names; None goes on with what is carried already, if anything is.

    Returns:
        What ``let_go`` takes to undo it; None where nothing changed.
    """
    if headers is None and _carried.get():
        return None
    offered = headers or _NOTHING
    parent = offered.get("traceparent", "")
    if not _TRACEPARENT.fullmatch(parent):
        random = os.urandom(24).hex()
        return _carried.set({"traceparent": f"00-{random[:32]}-{random[32:]}-00"})
    carried = {"traceparent": f"00{parent[2:55]}"}
    state = offered.get("tracestate", "")
    if state and len(state) <= _TRACESTATE_LENGTH and state.isascii() and state.isprintable():
        carried["tracestate"] = state
    return _carried.set(carried)


def let_go(token: Token[Carried] | None) -> None:
    """Undo ``carry``."""
    if token is not None:
        _carried.reset(token)


def trace_ids() -> tuple[str, str] | None:
    """Trace id and span id at hand, in hexadecimal; None outside of any trace."""
    carried = _carried.get()
    if carried:
        return carried["traceparent"][3:35], carried["traceparent"][36:52]
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return None
    return trace.format_trace_id(span.trace_id), trace.format_span_id(span.span_id)
