"""A member of one of Kafka's groups: joining, staying and leaving, by the classic protocol.

aiokafka's own consumer does this inside of itself. It tells neither when the broker last heard of
the member, which decides whether another may work on a partition by now, nor that it was fenced.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from time import monotonic
from typing import Any

from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)
from aiokafka.protocol.group import (
    HeartbeatRequest,
    JoinGroupRequest,
    LeaveGroupRequest,
    SyncGroupRequest,
)

from common.events.kafka.cluster import Cluster, Refused
from common.events.kafka.groups import LOST, Groups, Lost, group_id

_PROTOCOL_TYPE = "consumer"
# Its own name: members that share it hold to the same rule.
_RULE = "mindweave-ranks"
_NONE, _REBALANCE = 0, 27


class Standing(Enum):
    """What the broker thinks of a member."""

    MEMBER = "member"
    # The group begins anew: give everything back and join again.
    REBALANCE = "rebalance"


class Membership:
    """A static member of the group that reads one topic."""

    def __init__(
        self,
        cluster: Cluster,
        groups: Groups,
        *,
        group: str,
        topic: str,
        instance: str,
        session: float,
        rebalance: float,
    ) -> None:
        """Is no member yet.

        Args:
            cluster: the brokers.
            groups: takes the commits.
            group: as the bus names it.
            topic: what is read.
            instance: no other living member has it; who comes back with it takes its partitions.
            session: seconds without a sign of life after which another gets the partitions.
            rebalance: seconds that members get to give their partitions back.
        """
        self.until = 0.0
        self._cluster = cluster
        self._groups = groups
        self._group = group
        self._topic = topic
        self._name = group_id(group, topic)
        self._instance = instance
        self._session = session
        self._rebalance = rebalance
        self._member = ""
        self._generation = -1

    @property
    def held(self) -> bool:
        """Whether nobody else can have been given the partitions by now."""
        return monotonic() < self.until

    async def join(self, partitions: int) -> list[int]:
        """Be given partitions; returns when every member has joined or was left behind.

        Raises:
            Lost: the group began anew meanwhile; join again.
            BusUnavailable: the group's broker does not answer.
        """
        asked = monotonic()
        joined = await self._ask(
            JoinGroupRequest(
                self._name,
                int(self._session * 1000),
                int(self._rebalance * 1000),
                self._member,
                self._instance,
                _PROTOCOL_TYPE,
                [(_RULE, ConsumerProtocolMemberMetadata(0, [self._topic], b"").encode())],
            ),
            wait=self._rebalance,
        )
        self._see("join", joined.error_code)
        self._member, self._generation = joined.member_id, joined.generation_id
        plan: list[tuple[str, bytes]] = []
        if joined.leader_id == joined.member_id:
            plan = self._plan(joined.members, partitions)
        asked = monotonic()
        synced = await self._ask(
            SyncGroupRequest(self._name, self._generation, self._member, self._instance, plan),
            wait=self._rebalance,
        )
        self._see("sync", synced.error_code)
        self.until = asked + self._session
        if not synced.member_assignment:
            return []
        given = ConsumerProtocolMemberAssignment.decode(synced.member_assignment)
        return [p for topic, parts in given.assignment for p in parts if topic == self._topic]

    async def beat(self) -> Standing:
        """Give a sign of life.

        Raises:
            Lost: this is no member any more.
            BusUnavailable: the group's broker does not answer.
        """
        asked = monotonic()
        answer = await self._ask(HeartbeatRequest(self._name, self._generation, self._member))
        if answer.error_code not in (_NONE, _REBALANCE):
            self._see("heartbeat", answer.error_code)
        self.until = asked + self._session
        return Standing.REBALANCE if answer.error_code == _REBALANCE else Standing.MEMBER

    async def commit(self, partition: int, offset: int) -> None:
        """Store the offset to read next.

        Raises:
            Lost: the partition may be another's.
            BusUnavailable: the group's broker does not answer.
        """
        await self._groups.commit(
            self._group,
            self._topic,
            partition,
            offset,
            member=self._member,
            generation=self._generation,
        )

    async def leave(self) -> None:
        """Let others have the partitions at once."""
        self.until = 0.0
        if self._member:
            await self._ask(LeaveGroupRequest(self._name, self._member))
            self._member = ""

    def _plan(self, members: Sequence[Any], partitions: int) -> list[tuple[str, bytes]]:
        """Partition p belongs to the member of rank p modulo their number."""
        ranked = sorted(members, key=lambda member: str(member[1]))
        return [
            (
                member[0],
                ConsumerProtocolMemberAssignment(
                    0, [(self._topic, list(range(rank, partitions, len(ranked))))], b""
                ).encode(),
            )
            for rank, member in enumerate(ranked)
        ]

    async def _ask(self, request: Any, wait: float = 0.0) -> Any:
        return await self._cluster.ask_coordinator(
            self._name,
            request,
            lambda answer: int(answer.error_code),
            lane=("member", self._name, self._instance),
            wait=wait,
        )

    def _see(self, what: str, code: int) -> None:
        if code in LOST:
            if code != _REBALANCE:
                self._member, self._generation, self.until = "", -1, 0.0
            raise Lost(f"{self._name}: {what}: {code}")
        if code != _NONE:
            raise Refused(f"{what} of {self._name}", code)
