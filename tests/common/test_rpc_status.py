from __future__ import annotations

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from common.errors import (
    Conflict,
    FieldError,
    Invalid,
    MindWeaveError,
    NotFound,
    RateLimited,
    Unavailable,
)
from common.rpc.metadata import STATUS_DETAILS
from common.rpc.status import error_of, status_code, status_of

pytestmark = pytest.mark.unit

KINDS = [MindWeaveError, *MindWeaveError.__subclasses__()]


def received(status: Status | bytes, code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    raw = status if isinstance(status, bytes) else status.SerializeToString()
    trailing = grpc.aio.Metadata((STATUS_DETAILS, raw))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, "details", None)


def travelled(error: MindWeaveError) -> MindWeaveError:
    return error_of(received(status_of(error, "c-1"), status_code(error)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_arrives_as_what_it_was_raised_as(kind: type[MindWeaveError]) -> None:
    error = kind(
        "what happened",
        code="a_code",
        fields=[FieldError("/a/0", "missing_field", "is missing")],
        retry_after=2.5,
    )
    told = travelled(error)
    if kind.__module__ == "common.errors":
        assert type(told) is kind
    for field in ("status", "title", "code", "detail", "fields", "retry_after"):
        assert getattr(told, field) == getattr(error, field)


@pytest.mark.parametrize(
    ("codes", "whole"),
    [([], "invalid"), (["too_old", "too_old"], "too_old"), (["too_old", "in_future"], "invalid")],
)
def test_fields_that_are_wrong_alike_name_what_is_wrong_with_the_request(
    codes: list[str], whole: str
) -> None:
    assert Invalid(fields=[FieldError("/a", code, "is wrong") for code in codes]).code == whole
    assert Invalid(code="own", fields=[FieldError("/a", "too_old", "is")]).code == "own"


@pytest.mark.parametrize("status", range(400, 600))
def test_every_http_status_has_a_grpc_status_and_comes_back(status: int) -> None:
    kind = type("Odd", (MindWeaveError,), {"status": status, "code": "odd", "title": "Odd"})
    told = travelled(kind("odd"))
    assert (told.status, told.code, told.title, told.detail) == (status, "odd", "Odd", "odd")
    assert status_code(kind()) is not grpc.StatusCode.OK


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name != "OK"])
def test_every_grpc_status_without_our_details_has_a_meaning(code: grpc.StatusCode) -> None:
    bare = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "inside", None)
    told = error_of(bare)
    assert 400 <= told.status < 600
    assert "inside" not in told.detail


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (NotFound, grpc.StatusCode.NOT_FOUND),
        (Conflict, grpc.StatusCode.FAILED_PRECONDITION),
        (Invalid, grpc.StatusCode.INVALID_ARGUMENT),
        (RateLimited, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (Unavailable, grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_an_error_without_details_is_read_by_its_status(
    kind: type[MindWeaveError], code: grpc.StatusCode
) -> None:
    assert status_code(kind()) is code


def test_details_that_cannot_be_read_leave_the_status() -> None:
    assert type(error_of(received(b"\xff\xff", grpc.StatusCode.NOT_FOUND))) is NotFound


def test_details_of_others_are_not_taken_for_ours() -> None:
    status = Status(code=5, message="inside")
    status.details.add().Pack(ErrorInfo(reason="theirs", domain="other.example"))
    told = error_of(received(status, grpc.StatusCode.NOT_FOUND))
    assert (told.code, told.detail) == ("not_found", "Not found")


def test_a_status_carries_the_details_that_google_rpc_defines() -> None:
    error = RateLimited("slow down", retry_after=1.5, fields=[FieldError("/a", "c", "m")])
    status = status_of(error, "c-1")
    info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail, into in zip(status.details, (info, bad, retry), strict=True):
        assert detail.Unpack(into)
    assert (info.reason, info.domain) == ("rate_limited", "mindweave")
    assert dict(info.metadata) == {
        "http_status": "429",
        "title": "Too many requests",
        "correlation_id": "c-1",
    }
    violation = bad.field_violations[0]
    assert (violation.field, violation.reason, violation.description) == ("/a", "c", "m")
    assert retry.retry_delay.ToNanoseconds() == 1_500_000_000


def test_a_long_list_of_fields_is_cut_to_what_metadata_holds() -> None:
    fields = [FieldError(f"/items/{n}", "invalid_value", "x" * 100) for n in range(5000)]
    told = travelled(Invalid("y" * 5000, fields=fields))
    assert 100 < len(told.fields) < 500
    assert told.fields == tuple(fields[: len(told.fields)])
    assert status_of(Invalid(fields=fields), "c").ByteSize() < 32_000
