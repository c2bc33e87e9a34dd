"""Rate, errors and duration of every rpc."""

from __future__ import annotations

import asyncio
import time

import grpc

from common.rpc.contract import Operation
from common.rpc.exchange import Exchange, Handler
from common.telemetry import Telemetry


class Metrics:
    """Counts calls by status, and times them."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._calls = telemetry.counter(
            "mindweave_rpc_server_calls_total", "Calls answered.", ("method", "code")
        )
        self._seconds = telemetry.histogram(
            "mindweave_rpc_server_duration_seconds", "Time to answer a call.", ("method",)
        )

    def wrap(self, operation: Operation, handler: Handler) -> Handler:
        seconds = self._seconds.of(method=operation.label)
        answered = self._calls

        async def measured(exchange: Exchange) -> bytes:
            began = time.perf_counter()
            try:
                return await handler(exchange)
            except asyncio.CancelledError:
                exchange.code = grpc.StatusCode.CANCELLED
                raise
            finally:
                seconds.observe(time.perf_counter() - began)
                answered.of(method=operation.label, code=exchange.code.name).inc()

        return measured
