"""The bus port: ordered, durable, at-least-once delivery of records, whatever the broker is.

A topic has a fixed number of partitions; records of one partition keep their order. A reader is
either a subscription (the bus keeps its place) or fetches by explicit offset and keeps its place
itself, telling the broker by ``commit`` what may be trimmed.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import xxhash

from common.background import Background
from common.errors import Unavailable

CONTENT_TYPE = "content-type"
DEAD = ".dead"
RETRY = ".retry"
# What became of dead letters: who replayed or discarded which, and when.
SETTLED = "dead-letters.settled"
# Whom the broker keeps records of the ledger for until the next backup, as long as it has room.
BACKUPS = "backups"
# What the ledger counts: after a restore it is counted again.
LEDGER_TOPIC = "usage.events"
_PROOF = "@"


class BusUnavailable(Unavailable):
    """The broker cannot be reached or does not confirm."""

    code = "bus_unavailable"

    def __init__(self, detail: str = "The event broker is not available.") -> None:
        super().__init__(detail, retry_after=1.0)


class BusFull(Unavailable):
    """A partition holds as many records as it may; none of the call's records was taken."""

    code = "bus_full"

    def __init__(self, detail: str = "The event broker is full.") -> None:
        super().__init__(detail, retry_after=1.0)


class OffsetLost(Exception):
    """Records after the given token are not in the broker any more, or never were."""


class TopicMismatch(Exception):
    """The topic exists with another number of partitions."""


class TopicUnknown(Exception):
    """Nobody has declared the topic."""


class DeadLetter(Exception):
    """Raised by a handler: trying this record again cannot help."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record as read. ``token`` is the driver's offset, opaque and unique in its partition.

    ``attempt`` counts the deliveries to the handler from 1; those that met something unavailable
    count only until it is back. A record that comes back from a retry topic names the place where
    it was published first. ``proof`` tells the record from another one that has its token, where
    the driver needs more than the token for that.
    """

    topic: str
    partition: int
    token: str
    key: str
    value: bytes
    headers: Mapping[str, str]
    attempt: int = 1
    proof: str = ""

    @property
    def place(self) -> str:
        """What to keep in order to fetch on behind the record: its token, and its proof."""
        return f"{self.token}{_PROOF}{self.proof}" if self.proof else self.token


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record to publish; without ``partition`` its key's hash chooses one."""

    value: bytes
    key: str = ""
    partition: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds between attempts: doubled from ``first`` to ``limit``, spread by a fifth."""

    first: float = 0.2
    limit: float = 15.0

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row (1 or more)."""
        spread = 1 + secrets.SystemRandom().uniform(-0.2, 0.2)
        return float(min(self.limit, self.first * 2 ** min(failures - 1, 30)) * spread)


Handler = Callable[[Record], Awaitable[None]]


class Subscription(Background, Protocol):
    """A running reader; ``stop`` lets the handler finish the record at hand."""


class Bus(Protocol):
    """What every driver offers; the contract suite in tests/common says how it behaves.

    Every method that talks to the broker raises ``BusUnavailable`` within seconds when it is down.
    """

    name: str

    async def start(self) -> None:
        """Make ready; the broker need not be up yet."""
        ...

    async def stop(self) -> None:
        """Close every connection."""
        ...

    async def ping(self) -> None:
        """Ask the broker whether it is there."""
        ...

    async def declare(self, topic: str, partitions: int, groups: Sequence[str] = ()) -> None:
        """Make the topic, or add groups to it; its records are kept until every group commits.

        A topic without groups keeps its last 100,000 records a partition.

        Raises:
            TopicMismatch: it exists with another number of partitions.
        """
        ...

    async def partitions(self, topic: str) -> int:
        """The topic's stored number of partitions, as the broker says now.

        Raises:
            TopicUnknown: it was never declared.
        """
        ...

    async def replace(self, topic: str, partitions: int, groups: Sequence[str] = ()) -> None:
        """Throw the topic's records away and make it anew: each partition has another birth.

        Where it failed, the topic may be as it was, missing, or new; call again. Other buses learn
        of the new number of partitions by themselves.
        """
        ...

    async def birth(self, topic: str, partition: int) -> str:
        """An id made with the partition; another one means that the broker's data was replaced."""
        ...

    async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[str]:
        """Publish all or raise; returns their tokens once the broker has them durably.

        A caller whose publish was refused may publish again: at worst a record is there twice.

        Raises:
            BusFull: a partition is full; none was taken.
        """
        ...

    async def fetch(
        self, topic: str, partition: int, after: str | None, *, max_records: int, wait: float
    ) -> list[Record]:
        """The next records after a token or a place (None: from the first kept), in order.

        Waits up to ``wait`` seconds for the first one; returns fewer than ``max_records`` where
        their bytes would be too many at once.

        Raises:
            OffsetLost: the record next to ``after`` is not in the broker, or the record of this
                place is not.
        """
        ...

    async def end(self, topic: str, partition: int) -> str | None:
        """The token of the last record ever published; None while there was none."""
        ...

    async def commit(self, topic: str, partition: int, group: str, token: str) -> None:
        """Let the broker forget, for this group, all records up to the token."""
        ...

    async def forget(self, topic: str, group: str) -> None:
        """Keep nothing for this group any more."""
        ...

    async def room(self, topic: str, group: str) -> float | None:
        """How much may come before the broker drops what it keeps for a group that must give way.

        Returns:
            Of the fullest partition, as a share of what it holds; 0 where some was dropped. None
            where the group was never declared or was forgotten, and where their number does not
            bound records.
        """
        ...

    async def lag(self, topic: str, group: str) -> int:
        """Records that the group has not committed, over all partitions."""
        ...

    def subscribe(
        self,
        topics: Sequence[str],
        group: str,
        handler: Handler,
        *,
        ordered: bool = False,
        max_attempts: int = 5,
        backoff: Backoff | None = None,
    ) -> Subscription:
        """Read as one of a group, a partition by one member at a time, its records in order.

        A record is done when the handler returns. Where it raises ``Unavailable`` or a connection
        error, it is tried again in its place for ever; ``DeadLetter`` at once and other errors
        after ``max_attempts`` send it to ``<topic>.dead``. Between those attempts it waits in
        ``<topic>.<group>.retry``, which this subscription reads too, and its partition goes on;
        ``ordered`` keeps it, and all behind it, in its place instead.
        """
        ...

    def tail(self, topics: Sequence[str], handler: Handler) -> Subscription:
        """Show every new record to this process, from ``start`` on; nothing is kept for it."""
        ...


def token_of(place: str) -> str:
    """The token of a record's place."""
    return place.partition(_PROOF)[0]


def proof_of(place: str) -> str:
    """The proof in a record's place; "" where there is none."""
    return place.partition(_PROOF)[2]


def retry_topic(topic: str, group: str) -> str:
    """Where records of a topic wait that a group failed to handle."""
    return f"{topic}.{group}{RETRY}"


def partition_for(key: str | bytes, partitions: int) -> int:
    """The partition of a key: xxh3-64 of its bytes modulo their number."""
    raw = key.encode() if isinstance(key, str) else key
    return xxhash.xxh3_64_intdigest(raw) % partitions
