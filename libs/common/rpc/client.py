"""Channels to other services."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self, cast

import grpc
from google.protobuf.message import Message

from common.errors import DeadlineExceeded, MindWeaveError, Unavailable
from common.identity.call import current_call_or_none
from common.identity.callers import may_call
from common.identity.service_tokens import ServiceTokens
from common.resilience import Guard, Outcome
from common.rpc.contract import Operation, operations
from common.rpc.interceptors.caller import CALLER_NOT_PERMITTED, CALLER_UNKNOWN
from common.rpc.metadata import (
    CALLER,
    ETAG,
    IDEMPOTENCY_KEY,
    IF_MATCH,
    REPLAYED,
    WITHOUT_CALLER,
)
from common.rpc.outgoing import (
    DEFAULT_TIMEOUT,
    acting_for,
    key_for,
    time_for,
    told_exactly,
    travelling,
)
from common.rpc.server import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES
from common.rpc.status import error_of, is_answer
from common.settings import Resilience
from common.telemetry import SpanKind, Telemetry

__all__ = ["DEFAULT_TIMEOUT", "Answer", "Channel", "UnaryMethod", "acting_for"]

# gRPC's own retries, with a budget: three failures for each thirty calls that pass.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}

# A server that says NOT_SERVING is left before it refuses; one without health is taken as healthy.
_WATCHED = SERVICE_CONFIG | {"healthCheckConfig": {"serviceName": ""}}

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # Calls between services never leave by a proxy.
    ("grpc.enable_http_proxy", 0),
    # Else a channel waits for the next attempt of another one to the same address.
    ("grpc.use_local_subchannel_pool", 1),
    # A callee that is back is found again within 2 s; gRPC's own limit is 120 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Until an attempt to connect is given up.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    # Between two look-ups of a name, however many connections end; gRPC's own limit is 30 s.
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    # An address that is frozen is left within 5 s, with or without calls.
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
# A call that was left sooner says nothing of its callee: its caller had no time, or went.
PATIENT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Answer:
    """A message, its ETag where it has one, and whether an earlier call was answered with it."""

    message: Any
    etag: int | None = None
    replayed: bool = False


class UnaryMethod:
    """One rpc of a callee. Generated stubs call it; the gateway uses ``invoke``."""

    def __init__(
        self,
        operation: Operation,
        method: Callable[..., Any],
        *,
        telemetry: Telemetry,
        tokens: ServiceTokens | None,
        timeout: float,
        guard: Guard,
    ) -> None:
        self._operation = operation
        self._method = method
        self._telemetry = telemetry
        self._tokens = None if operation.full_name in WITHOUT_CALLER else tokens
        self._timeout = timeout
        self._guard = guard
        self._seconds = telemetry.histogram(
            "mindweave_rpc_client_duration_seconds",
            "Time until a call was answered, by its status.",
            ("callee", "method", "code"),
        )
        self._attributes = {
            "rpc.system": "grpc",
            "rpc.service": operation.grpc_service,
            "rpc.method": operation.method,
        }

    async def __call__(self, request: Message, **given: Any) -> Any:
        """Call as generated stubs do: with ``timeout`` in seconds and ``metadata``, if any."""
        message, _ = await self._send(request, given.get("timeout"), given.get("metadata") or ())
        return message

    async def invoke(
        self,
        request: Message,
        *,
        within: float | None = None,
        idempotency_key: str | None = None,
        if_match: int | None = None,
    ) -> Answer:
        """Call, on behalf of whom the present call is served, for what comes beside the message.

        Args:
            request: the message to send.
            within: seconds; never more than what the present call has left.
            idempotency_key: the caller's own key; else one is made where one is needed.
            if_match: the version that the caller expects.

        Raises:
            MindWeaveError: of the same kind, code and fields as the callee raised.
        """
        metadata = []
        if idempotency_key is not None:
            metadata.append((IDEMPOTENCY_KEY, idempotency_key))
        if if_match is not None:
            metadata.append((IF_MATCH, str(if_match)))
        message, sent = await self._send(request, within, metadata)
        trailing = dict(await sent.trailing_metadata())
        etag = trailing.get(ETAG)
        return Answer(message, None if etag is None else int(etag), REPLAYED in trailing)

    async def _send(
        self, request: Message, within: float | None, metadata: Iterable[tuple[str, str]]
    ) -> tuple[Any, Any]:
        """The answer, and gRPC's own call; ``metadata`` goes before the kit's by the same name."""
        call = current_call_or_none()
        seconds = time_for(call, self._timeout if within is None else within)
        body = request.SerializeToString(deterministic=True)
        with self._telemetry.span(
            self._operation.name, kind=SpanKind.CLIENT, attributes=self._attributes
        ):
            headers = travelling(call)
            headers.update(metadata)
            if not self._operation.idempotent and IDEMPOTENCY_KEY not in headers:
                headers[IDEMPOTENCY_KEY] = key_for(call, self._operation, body)
            if self._tokens is not None:
                token = self._tokens.fresh()
                if token is None:
                    token, seconds = await _in_time(self._tokens, seconds)
                headers[CALLER] = token
            return await self._exchange(body, headers, seconds)

    async def _exchange(
        self, body: bytes, headers: dict[str, str], seconds: float
    ) -> tuple[Any, Any]:
        passed, began = self._guard.enter(), time.monotonic()
        outcome, code = Outcome.UNDECIDED, grpc.StatusCode.OK
        try:
            sent = self._method(body, timeout=seconds, metadata=tuple(headers.items()))
            answer = await sent
            outcome = Outcome.ANSWERED
            return answer, sent
        except grpc.aio.AioRpcError as error:
            code = error.code()
            outcome = Outcome.ANSWERED
            if not is_answer(error):
                outcome = _of_silence(code, began)
                self._tell_of_silence(error, began)
            self._raise(error, headers.get(CALLER, ""))
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            outcome = _of_silence(grpc.StatusCode.DEADLINE_EXCEEDED, began)
            raise
        finally:
            self._guard.leave(passed, outcome)
            operation = self._operation
            self._seconds.of(
                callee=operation.service, method=operation.label, code=code.name
            ).observe(time.monotonic() - began)

    def _tell_of_silence(self, error: grpc.aio.AioRpcError, began: float) -> None:
        self._telemetry.log.warning(
            "a callee did not answer",
            operation=self._operation.name,
            code=error.code().name,
            reason=error.details(),
            seconds=round(time.monotonic() - began, 3),
        )

    def _raise(self, rpc_error: grpc.aio.AioRpcError, token: str) -> NoReturn:
        error = error_of(rpc_error)
        if error.code not in (CALLER_UNKNOWN, CALLER_NOT_PERMITTED):
            raise error from rpc_error
        # That this service was turned away is no word to whom it serves.
        self._telemetry.log.error(
            "a callee refuses this service", operation=self._operation.name, reason=error.detail
        )
        if error.code == CALLER_UNKNOWN and self._tokens is not None:
            self._tokens.forget(token)
            raise Unavailable(retry_after=1) from rpc_error
        raise MindWeaveError from rpc_error


class Channel(grpc.aio.Channel):
    """Calls one service. Generated stubs take it as they take gRPC's own.

    Args:
        callee: the service's name.
        target: its "host:port".
        telemetry: of the calling service, whose name is the caller's.
        tokens: the calling service's own token; None for a channel that only fetches it.
        timeout: seconds for a call that says none.
        guard: stands before every call; one of its own when absent.
        watched: ask the callee's servers for their health, and call only those that serve.

    Raises:
        LookupError: the table of callers does not let this service call ``callee``.
    """

    def __init__(
        self,
        callee: str,
        target: str,
        *,
        telemetry: Telemetry,
        tokens: ServiceTokens | None,
        timeout: float = DEFAULT_TIMEOUT,
        guard: Guard | None = None,
        watched: bool = True,
    ) -> None:
        if not may_call(telemetry.service, callee):
            raise LookupError(f"{telemetry.service} may not call {callee}")
        self.callee = callee
        self.target = target
        self._telemetry = telemetry
        self._tokens = tokens
        self._timeout = timeout
        self._methods: dict[str, UnaryMethod] = {}
        self._guard = guard or Guard(callee, Resilience(), telemetry)
        config = json.dumps(_WATCHED if watched else SERVICE_CONFIG)
        self._channel = grpc.aio.insecure_channel(
            target, options=(*_OPTIONS, ("grpc.service_config", config))
        )

    def method(self, operation: Operation) -> UnaryMethod:
        """One rpc of the callee.

        Raises:
            LookupError: another service serves it.
            TypeError: it is a stream.
        """
        known = self._methods.get(operation.full_name)
        if known is None:
            known = self._methods[operation.full_name] = self._method(operation)
        return known

    def _method(self, operation: Operation) -> UnaryMethod:
        if operation.service != self.callee:
            raise LookupError(f"{self.callee} does not serve {operation.name}")
        if operation.streaming:
            raise _streams(operation.name)
        # Registered as generated stubs do it; the type stubs are older than that.
        bare = cast(Any, self._channel).unary_unary(
            operation.full_name,
            request_serializer=None,
            response_deserializer=operation.response_class.FromString,
            _registered_method=True,
        )
        return UnaryMethod(
            operation,
            bare,
            telemetry=self._telemetry,
            tokens=self._tokens,
            timeout=self._timeout,
            guard=self._guard,
        )

    def unary_unary(self, method: str, *_: Any, **__: Any) -> Any:
        return self.method(operations()[method])

    def unary_stream(self, method: str, *_: Any, **__: Any) -> NoReturn:
        raise _streams(method)

    def stream_unary(self, method: str, *_: Any, **__: Any) -> NoReturn:
        raise _streams(method)

    def stream_stream(self, method: str, *_: Any, **__: Any) -> NoReturn:
        raise _streams(method)

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()


async def _in_time(tokens: ServiceTokens, seconds: float) -> tuple[str, float]:
    """The token to show, and the seconds that are left of ``seconds`` then."""
    until = time.monotonic() + seconds
    try:
        async with asyncio.timeout(seconds):
            token = await tokens.get()
    except (TimeoutError, DeadlineExceeded) as error:
        raise Unavailable(retry_after=1) from error
    left = told_exactly(until - time.monotonic())
    if left <= 0:
        raise Unavailable(retry_after=1)
    return token, left


def _of_silence(code: grpc.StatusCode, began: float) -> Outcome:
    """What it says of a callee that a call ended without its answer."""
    if code is not grpc.StatusCode.DEADLINE_EXCEEDED:
        return Outcome.FAILED
    patient = time.monotonic() - began >= PATIENT_SECONDS
    return Outcome.FAILED if patient else Outcome.UNDECIDED


def _streams(method: str) -> TypeError:
    return TypeError(f"{method} is a stream, which the kit's client does not cover")
