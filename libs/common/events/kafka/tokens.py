"""Tokens of records: ``<topic id>-<offset>``, the id shortened to eight hexadecimal digits.

With the topic's id in it, a token is never taken for the record that has the same offset in a
topic made anew under the same name.
"""

from __future__ import annotations

from uuid import UUID


def stamp(topic_id: UUID) -> str:
    """What the tokens of a topic's records begin with."""
    return topic_id.hex[:8]


def token_at(topic_id: UUID, offset: int) -> str:
    return f"{stamp(topic_id)}-{offset}"


def offset_in(token: str, topic_id: UUID) -> int | None:
    """The offset; None where the token is of another topic."""
    origin, _, offset = token.rpartition("-")
    return int(offset) if origin == stamp(topic_id) and offset.isdecimal() else None
