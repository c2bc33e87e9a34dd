from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import jsonschema
import msgspec
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import DoubleValue
from hypothesis import given
from hypothesis import strategies as st

from common.clock import ManualClock
from common.errors import Unavailable
from common.events import asyncapi
from common.events.bus import Backoff, BusFull, BusUnavailable, partition_for
from common.events.catalog import event_types
from common.events.envelope import (
    Envelope,
    EventRefused,
    Metadata,
    decode,
    encode,
    envelope_for,
    message_of,
    pack,
    unpack,
)
from mindweave.account.v1.events_pb2 import OrgCreated
from mindweave.options.v1.options_pb2 import Operation
from mindweave.project.v1.events_pb2 import ProjectCreated
from mindweave.project.v1.project_pb2 import CreateProjectRequest, CreateProjectResponse
from mindweave.team.v1.team_pb2 import Member
from mindweave.usage_tracker.v1.events_pb2 import UsageConflict, UsageUnpriced

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 21, 9, 30, 0, 123456, tzinfo=UTC)
ORG, USER = uuid4(), uuid4()
DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs/api/asyncapi.json"


class Columns(msgspec.Struct):
    org_id: list[bytes]
    tokens: list[int]


def created(**fields: Any) -> Envelope:
    message = OrgCreated(**{"org_id": str(ORG), "name": "Ours", **fields})
    return envelope_for(message, "account", ManualClock(NOW), ORG, USER, "request-1")


def usage(data: dict[str, Any] | bytes) -> Envelope:
    return Envelope(
        id=uuid4(), type="usage.events", source="usage_tracker", timestamp=NOW, data=data
    )


def test_an_event_says_what_happened_to_whom_and_why() -> None:
    shown = json.loads(encode(created()))
    assert UUID(shown.pop("id")).version == 7
    assert shown == {
        "type": "org.created",
        "source": "account",
        "timestamp": "2026-11-21T09:30:00.123456Z",
        "version": "1.0",
        "correlation_id": "request-1",
        "data": {"org_id": str(ORG), "name": "Ours"},
        "metadata": {"user_id": str(USER), "org_id": str(ORG)},
    }


def test_what_was_sent_is_what_arrives() -> None:
    envelope = created()
    assert decode(encode(envelope)) == envelope
    message = message_of(decode(encode(envelope)))
    assert message == OrgCreated(org_id=str(ORG), name="Ours")


def test_every_field_of_an_event_is_there_and_optional_ones_where_they_are_set() -> None:
    clock = ManualClock(NOW)
    conflict = envelope_for(UsageConflict(org_id=str(ORG), events=3), "usage_tracker", clock)
    assert conflict.data == {"org_id": str(ORG), "events": "3", "event_ids": []}
    project = envelope_for(ProjectCreated(project_id=str(USER), org_id=str(ORG)), "project", clock)
    assert project.data == {"project_id": str(USER), "org_id": str(ORG)}


def test_an_event_that_breaks_a_rule_is_not_sent() -> None:
    with pytest.raises(EventRefused, match="org_id: must be a valid UUID"):
        created(org_id="ours")
    with pytest.raises(EventRefused, match="no option event"):
        envelope_for(Member(), "team", ManualClock(NOW))


@pytest.mark.parametrize(
    ("type_", "data", "why"),
    [
        ("moon.risen", {}, "unknown event type moon.risen"),
        ("org.created", {"org_id": "ours", "name": "x"}, "valid UUID"),
        ("org.created", {"name": "x"}, "valid UUID"),
        ("org.created", {"org_id": str(ORG), "name": "x", "size": 3}, "size"),
        ("org.created", {"org_id": str(ORG), "name": 7}, "name"),
        ("usage.conflict", {"org_id": str(ORG), "events": "many"}, "events"),
    ],
)
def test_an_event_that_does_not_fit_its_schema_is_refused(
    type_: str, data: dict[str, Any], why: str
) -> None:
    envelope = msgspec.structs.replace(created(), type=type_, data=data)
    with pytest.raises(EventRefused, match=why):
        message_of(decode(encode(envelope)))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "no uuid"},
        {"id": None},
        {"timestamp": "2026-11-21T09:30:00"},
        {"version": "2.0"},
        {"data": None},
        {"data": []},
        {"surprise": 1},
        {"metadata": {"tenant": "x"}},
    ],
)
def test_what_is_no_envelope_is_refused(change: dict[str, Any]) -> None:
    value = json.loads(encode(created())) | change
    with pytest.raises(EventRefused, match="not an envelope"):
        decode(json.dumps(value).encode())


@pytest.mark.parametrize("value", [b"", b"{", b"{}", b"\xff\xfe", b"null", b"\x93\x01\x02\x03"])
def test_noise_is_refused(value: bytes) -> None:
    with pytest.raises(EventRefused):
        decode(value)
    with pytest.raises(EventRefused):
        unpack(value, Columns)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_envelope_or_refused(value: bytes) -> None:
    for read in (decode, lambda v: unpack(v, Columns)):
        try:
            read(value)
        except EventRefused:
            continue


def test_columns_travel_as_msgpack() -> None:
    columns = {"org_id": [ORG.bytes], "tokens": [2**40]}
    envelope = usage(columns)
    assert decode(pack(envelope)) == envelope
    assert pack(msgspec.structs.replace(envelope, data=msgspec.msgpack.encode(columns))) == pack(
        envelope
    )
    read, data = unpack(pack(envelope), Columns)
    assert data == Columns([ORG.bytes], [2**40])
    assert (read.id, read.type, read.timestamp) == (envelope.id, "usage.events", NOW)
    assert isinstance(read.data, bytes)
    assert msgspec.msgpack.decode(read.data) == columns


def test_columns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EventRefused, match="tokens"):
        unpack(pack(usage({"org_id": [], "tokens": ["many"]})), Columns)
    with pytest.raises(EventRefused, match="not a packed envelope"):
        unpack(encode(created()), Columns)
    with pytest.raises(EventRefused, match=r"usage\.events"):
        message_of(usage({}))
    with pytest.raises(EventRefused, match="columns"):
        message_of(msgspec.structs.replace(created(), data=b""))


def test_times_of_other_zones_are_the_same_times() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-9)))
    envelope = msgspec.structs.replace(created(), timestamp=elsewhere)
    assert decode(encode(envelope)).timestamp == NOW


def test_metadata_may_be_empty() -> None:
    envelope = usage({})
    assert envelope.metadata == Metadata(None, None)
    assert decode(pack(envelope)).metadata == Metadata(None, None)


def test_every_event_type_names_its_topic() -> None:
    types = event_types()
    assert types["org.deleted"].topic == "platform.events"
    assert types["audit.recorded"].topic == "audit.log"
    for name, event in types.items():
        assert name == event.type
        assert event.message().DESCRIPTOR.full_name == event.descriptor.full_name


@given(st.text(), st.integers(1, 64))
def test_a_key_has_one_partition_that_exists(key: str, partitions: int) -> None:
    chosen = partition_for(key, partitions)
    assert 0 <= chosen < partitions
    assert chosen == partition_for(key.encode(), partitions)


def test_the_partition_of_a_key_is_for_good() -> None:
    assert [partition_for(key, 16) for key in ("", "a", "org", b"\x00" * 32)] == [2, 15, 4, 13]


@given(st.integers(1, 10_000))
def test_a_backoff_grows_to_its_limit(failures: int) -> None:
    backoff = Backoff(first=0.5, limit=20)
    expected = min(20.0, 0.5 * 2 ** min(failures - 1, 30))
    assert expected * 0.8 <= backoff.delay(failures) <= expected * 1.2


def test_a_broker_that_is_down_or_full_is_a_503_with_a_time_to_come_back() -> None:
    for error in (BusUnavailable(), BusFull()):
        assert isinstance(error, Unavailable)
        assert (error.status, error.retry_after) == (503, 1.0)
    assert {BusUnavailable().code, BusFull().code} == {"bus_unavailable", "bus_full"}


SAMPLES = [
    OrgCreated(org_id=str(ORG), name="Ours"),
    ProjectCreated(project_id=str(USER), org_id=str(ORG), team_id=str(USER)),
    UsageConflict(org_id=str(ORG), events=2, event_ids=[str(USER)]),
    UsageUnpriced(
        org_id=str(ORG), model="m", provider="p", events=1, first_at=Timestamp(seconds=5)
    ),
]


def payload_of(document: dict[str, Any], event: str) -> dict[str, Any]:
    payload: dict[str, Any] = document["components"]["messages"][event]["payload"]
    return {**payload, "components": document["components"]}


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: m.DESCRIPTOR.name)
def test_the_asyncapi_document_describes_what_is_sent(message: Any) -> None:
    envelope = envelope_for(message, "a", ManualClock(NOW), ORG)
    shown = json.loads(encode(envelope))
    schema = payload_of(asyncapi.document(), envelope.type)
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    validator.validate(shown)
    for broken in (
        {**shown, "type": "other.type"},
        {**shown, "surprise": 1},
        {**shown, "data": {**shown["data"], "surprise": 1}},
        {**shown, "data": {k: v for k, v in shown["data"].items() if k != "org_id"}},
        {**shown, "data": {**shown["data"], "org_id": "ours"}},
    ):
        assert not validator.is_valid(broken)


def test_every_kind_of_field_has_its_json_type() -> None:
    def types(message: Any) -> dict[str, Any]:
        properties: dict[str, Any] = asyncapi.schema(message.DESCRIPTOR)["properties"]
        return {name: p.get("format", p["type"]) for name, p in properties.items()}

    operation = types(Operation)
    assert operation["public"] == "boolean"
    assert operation["success_status"] == "integer"
    assert operation["tenant"] == "string"
    assert types(DoubleValue) == {"value": "number"}
    assert types(UsageUnpriced)["first_at"] == "date-time"
    assert types(UsageConflict) == {"org_id": "uuid", "events": "string", "event_ids": "array"}
    nested = asyncapi.schema(CreateProjectResponse.DESCRIPTOR)["properties"]["project"]
    assert nested["properties"]["name"] == {"type": "string"}
    limited = asyncapi.schema(CreateProjectRequest.DESCRIPTOR)["properties"]["name"]
    assert limited["minLength"] == 1
    assert limited["maxLength"] == 200


def test_the_asyncapi_document_names_every_topic_and_type() -> None:
    document = asyncapi.document()
    assert set(document["components"]["messages"]) == set(event_types())
    listed = {
        (topic, event)
        for topic, channel in document["channels"].items()
        for event in channel["messages"]
    }
    assert listed == {(event.topic, event.type) for event in event_types().values()}
    deleted = document["components"]["messages"]["org.deleted"]
    assert deleted["summary"] == "Every service removes what it keeps of the organization."


def test_the_asyncapi_document_is_what_the_protos_make(tmp_path: Path) -> None:
    assert asyncapi.main(["--check", str(DOCUMENT)]) == 0
    made = tmp_path / "api" / "asyncapi.json"
    assert asyncapi.main(["--check", str(made)]) == 1
    assert asyncapi.main([str(made)]) == 0
    assert made.read_text() == DOCUMENT.read_text()
    made.write_text("{}")
    assert asyncapi.main(["--check", str(made)]) == 1
