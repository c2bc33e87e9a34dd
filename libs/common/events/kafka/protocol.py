"""The requests that name a topic by its id, in versions that aiokafka does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from types import MappingProxyType
from typing import Never
from uuid import UUID

from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactBytes,
    CompactString,
    Int8,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

_FETCH, _FETCH_VERSION = 1, 13
_METADATA, _METADATA_VERSION = 3, 12
# What stands for a topic's id where it is asked for by name.
_NO_ID = UUID(int=0)
# What stands for a replica's id, an epoch and a session where there is none.
_CONSUMER = _ANY = _NO_SESSION = -1
_NO_TAGS: Mapping[int, bytes] = MappingProxyType({})


class Uuid(AbstractType):
    """Sixteen bytes."""

    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


_BROKER = (
    ("node_id", Int32),
    ("host", CompactString("utf-8")),
    ("port", Int32),
    ("rack", CompactString("utf-8")),
    ("tags", TaggedFields),
)
_PARTITION = (
    ("error_code", Int16),
    ("partition", Int32),
    ("leader", Int32),
    ("leader_epoch", Int32),
    ("replicas", CompactArray(Int32)),
    ("isr", CompactArray(Int32)),
    ("offline", CompactArray(Int32)),
    ("tags", TaggedFields),
)
_TOPIC = (
    ("error_code", Int16),
    ("topic", CompactString("utf-8")),
    ("topic_id", Uuid),
    ("is_internal", Boolean),
    ("partitions", CompactArray(*_PARTITION)),
    ("operations", Int32),
    ("tags", TaggedFields),
)


class TopicsResponse(Response):
    """Metadata v12."""

    API_KEY = _METADATA
    API_VERSION = _METADATA_VERSION
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", CompactArray(*_BROKER)),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        ("topics", CompactArray(*_TOPIC)),
        ("tags", TaggedFields),
    )


class TopicsRequestV12(RequestStruct):
    """Metadata v12 of topics by name."""

    FLEXIBLE_VERSION = True
    API_KEY = _METADATA
    API_VERSION = _METADATA_VERSION
    RESPONSE_TYPE = TopicsResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("topic_id", Uuid), ("topic", CompactString("utf-8")), ("tags", TaggedFields)
            ),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class TopicsRequest(Request[TopicsRequestV12]):
    """Asks what topics there are of some names; makes none."""

    API_KEY = _METADATA

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[TopicsRequestV12]) -> TopicsRequestV12:
        return request_struct_class(
            [(_NO_ID, t, _NO_TAGS) for t in self._topics], False, False, _NO_TAGS
        )


_ABORTED = (("producer_id", Int64), ("first_offset", Int64), ("tags", TaggedFields))
_FETCHED = (
    ("partition", Int32),
    ("error_code", Int16),
    ("high_watermark", Int64),
    ("last_stable_offset", Int64),
    ("log_start_offset", Int64),
    ("aborted", CompactArray(*_ABORTED)),
    ("preferred_read_replica", Int32),
    ("records", CompactBytes),
    ("tags", TaggedFields),
)
_WANTED = (
    ("partition", Int32),
    ("current_leader_epoch", Int32),
    ("offset", Int64),
    ("last_fetched_epoch", Int32),
    ("log_start_offset", Int64),
    ("max_bytes", Int32),
    ("tags", TaggedFields),
)
_FORGOTTEN = (("topic_id", Uuid), ("partitions", CompactArray(Int32)), ("tags", TaggedFields))


class FetchResponse(Response):
    """Fetch v13."""

    API_KEY = _FETCH
    API_VERSION = _FETCH_VERSION
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("session_id", Int32),
        (
            "topics",
            CompactArray(
                ("topic_id", Uuid),
                ("partitions", CompactArray(*_FETCHED)),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class FetchRequestV13(RequestStruct):
    """Fetch v13."""

    FLEXIBLE_VERSION = True
    API_KEY = _FETCH
    API_VERSION = _FETCH_VERSION
    RESPONSE_TYPE = FetchResponse
    SCHEMA = Schema(
        ("replica_id", Int32),
        ("max_wait_ms", Int32),
        ("min_bytes", Int32),
        ("max_bytes", Int32),
        ("isolation_level", Int8),
        ("session_id", Int32),
        ("session_epoch", Int32),
        (
            "topics",
            CompactArray(
                ("topic_id", Uuid),
                ("partitions", CompactArray(*_WANTED)),
                ("tags", TaggedFields),
            ),
        ),
        ("forgotten", CompactArray(*_FORGOTTEN)),
        ("rack_id", CompactString("utf-8")),
        ("tags", TaggedFields),
    )


class FetchRequest(Request[FetchRequestV13]):
    """Asks for a partition's records from an offset on, outside of any fetch session."""

    API_KEY = _FETCH

    def __init__(
        self,
        topic_id: UUID,
        partition: int,
        offset: int,
        *,
        last_epoch: int = _ANY,
        max_wait_ms: int,
        max_bytes: int,
        isolation_level: int,
    ) -> None:
        """Args: ``last_epoch`` is that of the record before, which the broker then compares."""
        self._topic_id = topic_id
        self._place = (partition, _ANY, offset, last_epoch, _ANY, max_bytes, _NO_TAGS)
        self._limits = (max_wait_ms, 1, max_bytes, isolation_level)

    def build(self, request_struct_class: type[FetchRequestV13]) -> FetchRequestV13:
        forgotten: list[Never] = []
        wanted = (self._topic_id, [self._place], _NO_TAGS)
        return request_struct_class(
            _CONSUMER, *self._limits, 0, _NO_SESSION, [wanted], forgotten, "", _NO_TAGS
        )
