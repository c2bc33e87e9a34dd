"""Errors as gRPC statuses with ``google.rpc`` details, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar, cast

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from common.errors import (
    Conflict,
    DeadlineExceeded,
    FieldError,
    Invalid,
    MindWeaveError,
    NotFound,
    PayloadTooLarge,
    PermissionDenied,
    PreconditionFailed,
    RateLimited,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
)
from common.rpc.metadata import STATUS_DETAILS

M = TypeVar("M", bound=Message)

DOMAIN = "mindweave"
# Metadata has a size limit of its own, so only so much of a long list of fields is told.
_FIELD_BYTES = 24_000
_DETAIL_CHARACTERS = 1_000

_BY_HTTP_STATUS: dict[int, tuple[grpc.StatusCode, type[MindWeaveError]]] = {
    400: (grpc.StatusCode.INVALID_ARGUMENT, Invalid),
    401: (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
    403: (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied),
    404: (grpc.StatusCode.NOT_FOUND, NotFound),
    409: (grpc.StatusCode.FAILED_PRECONDITION, Conflict),
    412: (grpc.StatusCode.ABORTED, PreconditionFailed),
    413: (grpc.StatusCode.RESOURCE_EXHAUSTED, PayloadTooLarge),
    415: (grpc.StatusCode.INVALID_ARGUMENT, UnsupportedMediaType),
    422: (grpc.StatusCode.INVALID_ARGUMENT, Invalid),
    429: (grpc.StatusCode.RESOURCE_EXHAUSTED, RateLimited),
    500: (grpc.StatusCode.INTERNAL, MindWeaveError),
    503: (grpc.StatusCode.UNAVAILABLE, Unavailable),
    504: (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
}

# Nothing but a callee that is away, or a proxy before it, ends a call so without our details.
_SILENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)

# What a status means that came without our details: from gRPC itself or from a proxy.
_BY_CODE: dict[grpc.StatusCode, type[MindWeaveError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: Invalid,
    grpc.StatusCode.OUT_OF_RANGE: Invalid,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: Conflict,
    grpc.StatusCode.ABORTED: PreconditionFailed,
    # gRPC's own word for a message above the limit.
    grpc.StatusCode.RESOURCE_EXHAUSTED: PayloadTooLarge,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    grpc.StatusCode.UNIMPLEMENTED: MindWeaveError,
    grpc.StatusCode.UNKNOWN: MindWeaveError,
    grpc.StatusCode.INTERNAL: MindWeaveError,
    grpc.StatusCode.DATA_LOSS: MindWeaveError,
}


def status_code(error: MindWeaveError) -> grpc.StatusCode:
    """The gRPC status of an error; every HTTP status has one."""
    known = _BY_HTTP_STATUS.get(error.status)
    if known is not None:
        return known[0]
    if 400 <= error.status < 500:
        return grpc.StatusCode.FAILED_PRECONDITION
    return grpc.StatusCode.INTERNAL


def status_of(error: MindWeaveError, correlation_id: str) -> Status:
    """The error with its details: ErrorInfo (reason is its code), BadRequest, RetryInfo.

    ``BadRequest.field`` is a JSON pointer and its ``reason`` the field's code.
    """
    code, _ = status_code(error).value
    status = Status(code=code, message=error.detail[:_DETAIL_CHARACTERS])
    about = {
        "http_status": str(error.status),
        "title": error.title,
        "correlation_id": correlation_id,
    }
    _attach(status, ErrorInfo(reason=error.code, domain=DOMAIN, metadata=about))
    if error.fields:
        _attach(status, BadRequest(field_violations=_told(error.fields)))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        _attach(status, RetryInfo(retry_delay=delay))
    return status


def is_answer(rpc_error: grpc.aio.AioRpcError) -> bool:
    """Whether the callee itself has judged the call, so that it is there."""
    return rpc_error.code() not in _SILENT or _details(rpc_error) is not None


def error_of(rpc_error: grpc.aio.AioRpcError) -> MindWeaveError:
    """The error that a status tells of, with the code, fields and delay it was raised with."""
    status = _details(rpc_error)
    info, fields, retry_after = None, [], None
    for detail in status.details if status is not None else ():
        if detail.Is(ErrorInfo.DESCRIPTOR):
            info = _unpacked(detail, ErrorInfo())
        elif detail.Is(BadRequest.DESCRIPTOR):
            told = _unpacked(detail, BadRequest()).field_violations
            fields = [FieldError(v.field, v.reason, v.description) for v in told]
        elif detail.Is(RetryInfo.DESCRIPTOR):
            retry_after = _unpacked(detail, RetryInfo()).retry_delay.ToNanoseconds() / 1e9
    if status is None or info is None or info.domain != DOMAIN:
        return _foreign(rpc_error.code())
    http_status = int(info.metadata["http_status"])
    _, kind = _BY_HTTP_STATUS.get(http_status, (None, MindWeaveError))
    error = kind(status.message, code=info.reason, fields=fields, retry_after=retry_after)
    error.status, error.title = http_status, info.metadata["title"]
    return error


def _foreign(code: grpc.StatusCode) -> MindWeaveError:
    kind = _BY_CODE.get(code, MindWeaveError)
    if kind is Unavailable:
        return Unavailable("A part that is needed cannot be reached now.", retry_after=1)
    return kind()


def _told(fields: Iterable[FieldError]) -> list[BadRequest.FieldViolation]:
    told, size = [], 0
    for field in fields:
        violation = BadRequest.FieldViolation(
            field=field.pointer, reason=field.code, description=field.message
        )
        size += violation.ByteSize()
        if size > _FIELD_BYTES:
            break
        told.append(violation)
    return told


def _attach(status: Status, detail: Message) -> None:
    status.details.add().Pack(detail)


def _details(rpc_error: grpc.aio.AioRpcError) -> Status | None:
    pairs = cast("Iterable[tuple[str, str | bytes]]", rpc_error.trailing_metadata() or ())
    for key, value in pairs:
        if isinstance(value, bytes) and key == STATUS_DETAILS:
            try:
                return Status.FromString(value)
            except DecodeError:
                return None
    return None


def _unpacked(detail: AnyMessage, into: M) -> M:
    detail.Unpack(into)
    return into
