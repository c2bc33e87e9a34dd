"""Tokens of records: ``<topic id>-<offset>``, the id shortened to eight hexadecimal digits.

With the topic's id in it, a token is never taken for the record that has the same offset in a
topic made anew under the same name. The proof in a place is the epoch of the leader that wrote the
record: another record at the same offset, written after a broker had lost that one, has a later
epoch.
"""

from __future__ import annotations

from uuid import UUID

from common.events.bus import proof_of, token_of

# What stands for an epoch where it is not known.
NO_EPOCH = -1


def stamp(topic_id: UUID) -> str:
    """What the tokens of a topic's records begin with."""
    return topic_id.hex[:8]


def token_at(topic_id: UUID, offset: int) -> str:
    return f"{stamp(topic_id)}-{offset}"


def offset_in(place: str, topic_id: UUID) -> int | None:
    """The offset in a place or a token; None where it is of another topic."""
    origin, _, offset = token_of(place).rpartition("-")
    return int(offset) if origin == stamp(topic_id) and offset.isdecimal() else None


def proof_by(epoch: int) -> str:
    return str(epoch) if epoch > NO_EPOCH else ""


def epoch_in(place: str) -> int:
    """The epoch of the leader that wrote the record."""
    proof = proof_of(place)
    return int(proof) if proof.isdecimal() else NO_EPOCH
