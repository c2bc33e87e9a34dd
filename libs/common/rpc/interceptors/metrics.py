"""Rate, errors and duration of every rpc."""

from __future__ import annotations

import asyncio
import time

import grpc

from common.rpc.contract import Operation
from common.rpc.exchange import Exchange, Handler
from common.telemetry import Telemetry


class Metrics:
    """Times calls by status: the count of a series is the rate, its label ``code`` the errors."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._seconds = telemetry.histogram(
            "mindweave_rpc_server_duration_seconds",
            "Time to answer a call, by its status.",
            ("method", "code"),
        )

    def wrap(self, operation: Operation, handler: Handler) -> Handler:
        seconds, method = self._seconds, operation.label

        async def measured(exchange: Exchange) -> bytes:
            began = time.perf_counter()
            try:
                return await handler(exchange)
            except asyncio.CancelledError:
                exchange.code = _ended_by_client(exchange)
                raise
            finally:
                took = time.perf_counter() - began
                seconds.of(method=method, code=exchange.code.name).observe(took)

        return measured


def _ended_by_client(exchange: Exchange) -> grpc.StatusCode:
    """A call is cancelled when its deadline has passed, as when its client has gone."""
    remaining: float | None = exchange.context.time_remaining()
    if remaining is not None and remaining <= 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED
