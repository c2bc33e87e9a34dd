"""Names of keys, and the arithmetic of tokens."""

from __future__ import annotations


def topic_key(topic: str) -> str:
    return f"mw:{topic}"


def stream_key(topic: str, partition: int) -> str:
    return f"mw:{topic}:{partition}"


def groups_key(topic: str, partition: int) -> str:
    return f"mw:{topic}:{partition}:groups"


def lease_key(topic: str, partition: int, group: str) -> str:
    return f"mw:{topic}:{partition}:lease:{group}"


def end_field(partition: int) -> str:
    return f"end:{partition}"


def group_field(group: str) -> str:
    return f"group:{group}"


def number(token: str) -> int:
    """The number of a record in its partition, from 1 and without gaps."""
    return int(token.rpartition("-")[2])
