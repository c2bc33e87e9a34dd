"""A span for each call, below the caller's."""

from __future__ import annotations

import grpc
from opentelemetry.trace import Status, StatusCode

from common.rpc.contract import Operation
from common.rpc.exchange import Exchange, Handler
from common.telemetry import SpanKind, Telemetry

# Answers that are the server's fault, as OpenTelemetry's conventions for gRPC count them.
_SERVER_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class Tracing:
    """Continues the trace that the caller's metadata carries (W3C trace context)."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def wrap(self, operation: Operation, handler: Handler) -> Handler:
        telemetry = self._telemetry
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": operation.grpc_service,
            "rpc.method": operation.method,
        }

        async def traced(exchange: Exchange) -> bytes:
            with telemetry.below(
                exchange.metadata, operation.name, kind=SpanKind.SERVER, attributes=attributes
            ) as span:
                answer = await handler(exchange)
                if telemetry.records:
                    span.set_attribute("rpc.grpc.status_code", exchange.code.value[0])
                    if exchange.code in _SERVER_FAULTS:
                        span.set_status(Status(StatusCode.ERROR))
                return answer

        return traced
