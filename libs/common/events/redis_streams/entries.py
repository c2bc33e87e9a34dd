"""How a record stands in a stream: the fields ``k`` (key), ``v`` (value), ``h`` (headers, JSON)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from common.events.bus import Record

Entries = list[tuple[bytes, list[bytes]]]


def encode_headers(headers: Mapping[str, str]) -> bytes:
    return msgspec.json.encode(headers)


def records_of(topic: str, partition: int, entries: Entries) -> list[Record]:
    """The records of entries as the server answers them."""
    return [
        Record(
            topic,
            partition,
            token.decode(),
            fields[1].decode(),
            fields[3],
            msgspec.json.decode(fields[5], type=dict[str, str]),
        )
        for token, fields in entries
    ]
