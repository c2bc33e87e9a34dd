"""What groups have committed. A group of the bus is one of Kafka's for each topic it reads.

So a hint about one topic never meets the members of a subscription to another: Kafka takes an
offset from outside only while a group has no members.
"""

from __future__ import annotations

from typing import Any

from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest

from common.events.kafka.cluster import (
    MENDED_OUTSIDE,
    Cluster,
    Refused,
    Topic,
    Unready,
    partition_errors,
)

_NO_MEMBER, _NO_GENERATION = "", -1
_BROKERS_RETENTION = -1
_NONE = 0


class Lost(Exception):
    """The member that commits is not one of its group any more, or its group begins anew."""


# Error codes: illegal generation, unknown member, rebalance in progress, fenced instance.
LOST = {22, 25, 27, 82}


def group_id(group: str, topic: str) -> str:
    """The group's name in Kafka."""
    return f"{group}.{topic}"


class Groups:
    """Reads and writes the offsets that groups have committed: of the record to read next."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def committed(self, group: str, topic: Topic) -> list[int | None]:
        """Of each partition; None where the group has committed nothing."""
        name = group_id(group, topic.name)
        parts = range(len(topic.leaders))
        request = OffsetFetchRequest(name, [(topic.name, list(parts))])
        answer = await self._cluster.ask_coordinator(name, request, _fetch_error)
        self._check(f"offsets of {name}", _fetch_error(answer))
        found = {p: offset for _, rows in answer.topics for p, offset, *_ in rows}
        return [offset if (offset := found.get(p, -1)) >= 0 else None for p in parts]

    async def commit(
        self,
        group: str,
        topic: str,
        partition: int,
        offset: int,
        *,
        member: str = _NO_MEMBER,
        generation: int = _NO_GENERATION,
    ) -> None:
        """Store the offset of the record to read next.

        Raises:
            Lost: the member may not.
        """
        name = group_id(group, topic)
        places = [(topic, [(partition, offset, "")])]
        request = OffsetCommitRequest(name, generation, member, _BROKERS_RETENTION, places)
        answer = await self._cluster.ask_coordinator(
            name, request, lambda given: partition_errors(given.topics)
        )
        code = partition_errors(answer.topics)
        if code in LOST:
            raise Lost(f"{name}: {code}")
        self._check(f"commit of {name}", code)

    def _check(self, what: str, code: int) -> None:
        if code in (_UNSTABLE, *_PASSING, *MENDED_OUTSIDE):
            raise Unready(f"{what}: {code}")
        if code != _NONE:
            raise Refused(what, code)


_UNSTABLE = 88
# Error codes: unknown topic, time out.
_PASSING = (3, 7)


def _fetch_error(answer: Any) -> int:
    return int(answer.error_code) or partition_errors(answer.topics)
