"""JSON and query parameters to messages, and messages to JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from common.errors import FieldError, Invalid
from mindweave.analytics.v1.analytics_pb2 import (
    GetUsageRequest,
    GetUsageResponse,
    TopItem,
    UsageTotals,
)
from mindweave.auth.v1.auth_pb2 import CreateApiKeyRequest, RegisterRequest, Session, User
from mindweave.team.v1.team_pb2 import ListMembersRequest
from services.gateway.http import strict_json
from services.gateway.http.preconditions import NO_VERSION, etag, wanted_versions
from services.gateway.http.reading import (
    MAX_FAULTS,
    Faults,
    ObjectReader,
    QueryReader,
    child,
    message_of,
)
from services.gateway.http.writing import MAX_EXACT, writer_of

pytestmark = pytest.mark.unit

REGISTER = ObjectReader(RegisterRequest.DESCRIPTOR)
MEMBERS = ObjectReader(ListMembersRequest.DESCRIPTOR)
API_KEY = ObjectReader(CreateApiKeyRequest.DESCRIPTOR)
TOP = ObjectReader(TopItem.DESCRIPTOR)
USER = ObjectReader(User.DESCRIPTOR)
WHOLE = {"email": "user@example.com", "password": "p" * 20, "display_name": "A User"}
ORG = "0199a3f2-6a10-7c41-9d5e-3b8f0c2a7e11"


def faults_of(reader: ObjectReader, value: Any) -> list[FieldError]:
    faults = Faults()
    reader.check(value, "", faults)
    return faults.found


def codes(found: list[FieldError]) -> dict[str, str]:
    return {fault.pointer: fault.code for fault in found}


def queried(reader: QueryReader, *pairs: tuple[str | None, str | None]) -> dict[str, str]:
    faults = Faults()
    reader.read(pairs, faults)
    return codes(faults.found)


def test_a_body_that_fits_has_no_faults() -> None:
    assert faults_of(REGISTER, WHOLE) == []
    assert message_of(RegisterRequest.DESCRIPTOR, WHOLE) == RegisterRequest(**WHOLE)


@pytest.mark.parametrize("value", [5, 1.5, True, None, [], {}, ["x"]])
def test_a_string_field_takes_nothing_but_a_string(value: Any) -> None:
    assert codes(faults_of(REGISTER, WHOLE | {"email": value})) == {"/email": "invalid_type"}


@pytest.mark.parametrize("text", ['"5"', "true", "1e2", "5.0", "5.5", "null", "[5]", "{}", '""'])
def test_an_integer_field_takes_nothing_but_an_integer_token(text: str) -> None:
    value = strict_json.parse(b'{"org_id": "%s", "page_size": %s}' % (ORG.encode(), text.encode()))
    assert codes(faults_of(MEMBERS, value)) == {"/page_size": "invalid_type"}


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 10**40])
def test_an_integer_beyond_its_type_is_refused(value: int) -> None:
    found = faults_of(MEMBERS, {"org_id": ORG, "page_size": value})
    assert codes(found) == {"/page_size": "invalid_value"}


@pytest.mark.parametrize("value", [0, 1, "true", "false", None])
def test_a_boolean_field_takes_nothing_but_a_boolean(value: Any) -> None:
    assert codes(faults_of(USER, {"email_verified": value})) == {"/email_verified": "invalid_type"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("true", "invalid_type"),
        ('"1"', "invalid_type"),
        ("1e999", "invalid_value"),
        ("9" * 400, "invalid_value"),
    ],
)
def test_a_number_field_takes_nothing_but_a_finite_number(text: str, code: str) -> None:
    assert codes(faults_of(TOP, strict_json.parse(b'{"share": %s}' % text.encode()))) == {
        "/share": code
    }


@pytest.mark.parametrize("text", ["0", "-3", "0.5", "1e2"])
def test_a_number_field_takes_every_json_number(text: str) -> None:
    assert faults_of(TOP, strict_json.parse(b'{"share": %s}' % text.encode())) == []


@pytest.mark.parametrize("value", ["a\x00b", "\ud800", "x\udfffy"])
def test_a_string_that_no_database_keeps_is_refused(value: str) -> None:
    found = faults_of(REGISTER, WHOLE | {"display_name": value})
    assert codes(found) == {"/display_name": "invalid_value"}


@pytest.mark.parametrize(
    "value",
    ["2026-03-01T00:00:00Z", "2026-03-01T00:00:00.123456789Z", "2026-03-01T01:00:00+01:00"],
)
def test_a_time_is_taken_as_rfc_3339_writes_it(value: str) -> None:
    body = {"name": "n", "scopes": ["a"], "expires_at": value}
    assert faults_of(API_KEY, body) == []
    message_of(CreateApiKeyRequest.DESCRIPTOR, body)


@pytest.mark.parametrize(
    "value",
    [
        "2026-03-01", "2026-03-01T00:00:00", "2026-03-01 00:00:00Z", "2026-13-01T00:00:00Z",
        "2026-03-01T25:00:00Z", "2026-02-30T00:00:00Z", "", "now", "2026-03-01T00:00:00.Z",
        "2026-03-01T00:00:00.1234567890Z", "\u0662026-03-01T00:00:00Z", "0000-01-01T00:00:00Z",
        "2026-03-01T00:00:00+99:00", "2026-03-01T24:00:00Z", "0001-01-01T00:00:00+05:00",
    ],
)  # fmt: skip
def test_another_way_to_write_a_time_is_refused(value: str) -> None:
    found = faults_of(API_KEY, {"name": "n", "scopes": ["a"], "expires_at": value})
    assert codes(found) == {"/expires_at": "invalid_value"}


def test_faults_refuse_the_request_together() -> None:
    faults = Faults()
    faults.raise_any()
    faults.add("/a", "missing_field", "is required")
    faults.add("", "invalid_type", "must be an object")
    with pytest.raises(Invalid, match="/a is required") as refused:
        faults.raise_any()
    assert refused.value.code == "invalid"
    assert codes(list(refused.value.fields)) == {"/a": "missing_field", "": "invalid_type"}


def test_every_fault_is_told_at_once() -> None:
    found = faults_of(
        API_KEY, {"name": 5, "scopes": ["a", 7, None], "expires_at": 1, "expiresAt": "x", "key": 1}
    )
    assert codes(found) == {
        "/name": "invalid_type",
        "/scopes/1": "invalid_type",
        "/scopes/2": "invalid_type",
        "/expires_at": "invalid_type",
        "/expiresAt": "unknown_field",
        "/key": "unknown_field",
    }


def test_a_missing_field_is_named() -> None:
    assert codes(faults_of(API_KEY, {})) == {"/name": "missing_field", "/scopes": "missing_field"}


def test_null_stands_for_absence_only_where_the_proto_knows_absence() -> None:
    found = faults_of(API_KEY, {"name": None, "scopes": None, "expires_at": None})
    assert codes(found) == {"/name": "invalid_type", "/scopes": "invalid_type"}


@pytest.mark.parametrize("value", [[], "x", 5, True, None])
def test_a_body_is_an_object(value: Any) -> None:
    assert codes(faults_of(REGISTER, value)) == {"": "invalid_type"}


@pytest.mark.parametrize("value", [{}, "a,b", None, 5])
def test_a_list_field_takes_nothing_but_an_array(value: Any) -> None:
    found = faults_of(API_KEY, {"name": "n", "scopes": value})
    assert codes(found) == {"/scopes": "invalid_type"}


def test_only_so_many_faults_are_told() -> None:
    assert len(faults_of(REGISTER, {f"f{i}": 1 for i in range(1000)})) == MAX_FAULTS


def test_a_pointer_escapes_what_rfc_6901_says() -> None:
    assert child("/a", "b/c~d") == "/a/b~1c~0d"
    assert child("", "x" * 5000) == "/" + "x" * 200
    assert child("", "\ud800") == "/\ufffd"


def test_a_patch_requires_nothing_and_clears_only_what_may_be_absent() -> None:
    patch = ObjectReader(
        CreateApiKeyRequest.DESCRIPTOR, hidden=["scopes"], partial=True, clearable=["expires_at"]
    )
    assert faults_of(patch, {}) == []
    assert faults_of(patch, {"expires_at": None}) == []
    assert codes(faults_of(patch, {"name": None, "scopes": ["a"]})) == {
        "/name": "invalid_type",
        "/scopes": "unknown_field",
    }


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"{}x", b"{'a':1}", b'{"a":1,}', b"[1,]", b"nul", b"NaN", b'{"a":NaN}',
        b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":01}', b'{"a":.5}', b'{"a":+1}', b'{"a":1.}',
        b'\xef\xbb\xbf{}', b'{"a":"\xff"}', b'"\xed\xa0\x80"', b'{"a":"\n"}', b'{"a":"\\x"}',
        "{}".encode("utf-16"), b'{"a":1,"a":1}', b'{"b":{"a":1,"a":2}}', b"1" * 5000,
    ],
)  # fmt: skip
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(Invalid) as refused:
        strict_json.parse(body)
    assert refused.value.code == "invalid_json"


def test_a_key_that_occurs_twice_is_named() -> None:
    with pytest.raises(Invalid, match='"email" occurs twice'):
        strict_json.parse(b'{"email": "a", "email": "b"}')


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_json_may_be_nested_64_deep_and_no_deeper(opening: bytes, closing: bytes) -> None:
    strict_json.parse(opening * 64 + b"1" + closing * 64)
    for depth in (65, 100_000):
        with pytest.raises(Invalid, match="deeper than 64"):
            strict_json.parse(opening * depth + b"1" + closing * depth)


def test_a_wide_body_is_not_a_deep_one() -> None:
    strict_json.parse(b"[" + b",".join([b"[]"] * 1000) + b"]")


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20,
))  # fmt: skip
def test_any_json_is_either_taken_or_refused_with_every_fault(value: Any) -> None:
    parsed = strict_json.parse(json.dumps(value).encode())
    assert parsed == value
    for reader in (REGISTER, MEMBERS, API_KEY):
        assert faults_of(reader, value)


USAGE = QueryReader(GetUsageRequest.DESCRIPTOR)


def test_query_parameters_become_fields() -> None:
    faults = Faults()
    found = USAGE.read(
        [
            ("org_id", ORG),
            ("start", "2026-03-01T00:00:00Z"),
            ("group_by", "model,project_id"),
            ("page_size", "20"),
        ],
        faults,
    )
    faults.raise_any()
    message: Any = message_of(GetUsageRequest.DESCRIPTOR, found)
    assert message.org_id == ORG
    assert list(message.group_by) == ["model", "project_id"]
    assert message.page_size == 20
    assert message.start.ToJsonString() == "2026-03-01T00:00:00Z"


@pytest.mark.parametrize("text", ["", "x", "1.0", "1e2", "+5", " 5", "05", "\u0665", "0x5", "true"])
def test_a_query_parameter_that_is_no_integer_is_refused(text: str) -> None:
    assert queried(USAGE, ("page_size", text)) == {"/page_size": "invalid_type"}


def test_a_query_parameter_that_is_too_large_an_integer_is_refused() -> None:
    assert queried(USAGE, ("page_size", "9" * 20)) == {"/page_size": "invalid_value"}


def test_an_unknown_query_parameter_is_named() -> None:
    assert queried(USAGE, ("pageSize", "5"), ("x", "1"), (None, "1")) == {
        "/pageSize": "unknown_parameter",
        "/x": "unknown_parameter",
        "/?": "unknown_parameter",
    }


def test_a_repeated_query_parameter_is_refused() -> None:
    found = queried(USAGE, ("page_size", "5"), ("page_size", "6"))
    assert found == {"/page_size": "repeated_parameter"}


def test_a_query_parameter_that_is_not_utf8_is_refused() -> None:
    assert queried(USAGE, ("model", None)) == {"/model": "invalid_value"}
    assert queried(USAGE, ("model", "a\x00")) == {"/model": "invalid_value"}


def test_an_answer_has_every_field_and_null_where_there_is_none() -> None:
    session = Session(id=ORG, current=False)
    assert writer_of(Session.DESCRIPTOR)(session) == {
        "id": ORG,
        "created_at": None,
        "last_seen_at": None,
        "ip": None,
        "user_agent": None,
        "current": False,
    }


def test_64_bit_integers_are_numbers_and_lists_and_messages_nest() -> None:
    answer = GetUsageResponse(granularity="day", totals=UsageTotals(events=MAX_EXACT))
    answer.rows.add(model="m", input_tokens=7, latency_ms_avg=1.5)
    made = writer_of(GetUsageResponse.DESCRIPTOR)(answer)
    assert made["totals"]["events"] == 2**53
    assert made["rows"][0]["input_tokens"] == 7
    assert made["rows"][0]["latency_ms_avg"] == 1.5
    assert made["rows"][0]["latency_ms_p95"] is None
    assert made["next_page_token"] is None
    assert "update_mask" not in made


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**63 - 1])
def test_a_sum_that_a_json_number_cannot_hold_is_an_error(value: int) -> None:
    with pytest.raises(Invalid, match="input_tokens passes 2") as refused:
        writer_of(UsageTotals.DESCRIPTOR)(UsageTotals(input_tokens=value))
    assert refused.value.code == "number_too_large"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_null(value: float) -> None:
    assert writer_of(TopItem.DESCRIPTOR)(TopItem(share=value))["share"] is None


def if_match(*values: str) -> tuple[int, ...] | None:
    return wanted_versions(Headers(raw=[(b"if-match", v.encode()) for v in values]))


def test_if_match_names_versions_by_their_etags() -> None:
    assert etag(3) == '"3"'
    assert if_match() is None
    assert if_match("*") is None
    assert if_match('"3"') == (3,)
    assert if_match('"3", "7"') == (7, 3)
    assert if_match('"3"', '"7"') == (7, 3)
    assert if_match('"3","3",') == (3,)


@pytest.mark.parametrize(
    "value", ['W/"3"', '"abc"', '""', '"03"', '"-1"', '"0"', '"' + "9" * 30 + '"']
)
def test_a_weak_or_foreign_etag_never_matches(value: str) -> None:
    assert if_match(value) == (NO_VERSION,)


@pytest.mark.parametrize("value", ["3", "'3'", '"3', "", ",", '*, "3"', '"3" "4"', 'w/"3"'])
def test_an_if_match_that_is_no_list_of_etags_is_refused(value: str) -> None:
    with pytest.raises(Invalid):
        if_match(value)


def test_if_match_takes_only_so_many_etags() -> None:
    with pytest.raises(Invalid):
        if_match(", ".join(f'"{n}"' for n in range(1, 20)))
