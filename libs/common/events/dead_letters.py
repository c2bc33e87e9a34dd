"""Dead letters: what they are, how many there are, and what operators do with them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Literal

import msgspec

from common.clock import Clock
from common.errors import Conflict, NotFound
from common.events.bus import (
    DEAD,
    SETTLED,
    Bus,
    OffsetLost,
    Outgoing,
    Record,
    TopicUnknown,
    retry_topic,
)
from common.events.catalog import event_types
from common.events.envelope import EventRefused, decode
from common.events.origin import ERROR, REPLAY_OF, WHEN, Origin, origin_of, own_headers
from common.telemetry import Telemetry

WAITING = "waiting"
STATES = (WAITING, "replayed", "discarded")

_ID = re.compile(r"[A-Za-z0-9._-]+\.dead/\d{1,9}/\S+")
_BATCH = 200
# Seconds after which all is counted anew, since retention takes letters without a word.
_RECOUNT = 3600.0


class LetterUnknown(NotFound):
    """There is no such dead letter, or no longer."""

    code = "dead_letter_unknown"


class LetterSettled(Conflict):
    """The dead letter was replayed or discarded before."""

    code = "dead_letter_settled"


class NotReplayable(Conflict):
    """Nobody would read the dead letter if it were replayed."""

    code = "dead_letter_not_replayable"


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a dead letter, as it stands in the topic ``SETTLED``. ``at`` is RFC 3339."""

    letter: str
    outcome: Literal["replayed", "discarded"]
    by: str
    at: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter. ``id`` is "<topic>.dead/<partition>/<token>"; ``when`` is RFC 3339 or ""."""

    record: Record
    settlements: tuple[Settlement, ...] = ()

    @property
    def id(self) -> str:
        return letter_id(self.record.topic, self.record.partition, self.record.token)

    @property
    def origin(self) -> Origin:
        return origin_of(self.record)

    @property
    def error(self) -> str:
        return self.record.headers.get(ERROR, "")

    @property
    def when(self) -> str:
        return self.record.headers.get(WHEN, "")

    @property
    def replay_of(self) -> str:
        """The letter that was replayed and failed again; "" where this is the first."""
        return self.record.headers.get(REPLAY_OF, "")

    @property
    def state(self) -> str:
        return self.settlements[-1].outcome if self.settlements else WAITING


class DeadLetters:
    """Reads the dead letters of every topic, sends them to the group that failed, or lets them be.

    What is done to a letter is written to ``SETTLED``, which is only ever appended to. It is
    written last: a replay that breaks off in between is one more delivery to consumers that take
    an event once.
    """

    def __init__(self, bus: Bus, *, telemetry: Telemetry, clock: Clock) -> None:
        self._bus = bus
        self._telemetry = telemetry
        self._clock = clock

    async def topics(self) -> list[str]:
        """The topics of the catalog that may have dead letters."""
        found = []
        for topic in sorted({event.topic for event in event_types().values()}):
            try:
                await self._bus.partitions(topic + DEAD)
            except TopicUnknown:
                continue
            found.append(topic)
        return found

    async def read(self, topic: str) -> AsyncIterator[Letter]:
        """The letters of a topic, oldest first, settled or not.

        Raises:
            TopicUnknown: nobody has subscribed to the topic yet.
        """
        settled = await self._settlements()
        for partition in range(await self._bus.partitions(topic + DEAD)):
            async for record in _records(self._bus, topic + DEAD, partition):
                its_id = letter_id(record.topic, record.partition, record.token)
                yield Letter(record, tuple(settled.get(its_id, ())))

    async def waiting(self, topic: str) -> AsyncIterator[Letter]:
        """The letters of a topic that wait now; what is buried meanwhile is not among them.

        Raises:
            TopicUnknown: nobody has subscribed to the topic yet.
        """
        ids = {letter.id async for letter in self.read(topic) if letter.state == WAITING}
        if not ids:
            return
        async for letter in self.read(topic):
            if letter.id in ids and letter.state == WAITING:
                yield letter
            ids.discard(letter.id)
            if not ids:
                return

    async def find(self, ids: Sequence[str], *, settled: bool = True) -> list[Letter]:
        """The letters with these ids, in the order of the ids.

        Raises:
            LetterUnknown: one of them is not there.
            LetterSettled: one of them is settled, and ``settled`` ones are not wanted.
        """
        wanted = set(ids)
        found: dict[str, Letter] = {}
        for topic in sorted({_topic_of(each) for each in wanted if _ID.fullmatch(each)}):
            try:
                async for letter in self.read(topic):
                    if letter.id in wanted:
                        found[letter.id] = letter
            except TopicUnknown:
                continue
        for each in ids:
            if each not in found:
                raise LetterUnknown(f"There is no dead letter {each}.")
            if not settled and (settlements := found[each].settlements):
                last = settlements[-1]
                raise LetterSettled(f"{each} was {last.outcome} by {last.by} at {last.at}.")
        return [found[each] for each in dict.fromkeys(ids)]

    async def replay(self, letter: Letter, by: str) -> None:
        """Send it once more to the group that failed, as its first attempt.

        Raises:
            NotReplayable: that group reads no retries.
        """
        origin = letter.origin
        retries = retry_topic(origin.topic, origin.group)
        again = Origin(origin.topic, origin.partition, origin.token, origin.group)
        headers = {
            **own_headers(letter.record.headers),
            **again.headers(),
            REPLAY_OF: letter.id,
        }
        outgoing = Outgoing(letter.record.value, letter.record.key, partition=0, headers=headers)
        try:
            await self._bus.partitions(retries)
        except TopicUnknown:
            raise NotReplayable(
                f"{letter.id}: no consumer {origin.group or '(unnamed)'} reads {origin.topic}."
            ) from None
        await self._bus.publish(retries, [outgoing])
        await self._settle(letter, "replayed", by, "")

    async def discard(self, letter: Letter, by: str, reason: str) -> None:
        """Let it be; it stays where it is until its retention ends."""
        await self._settle(letter, "discarded", by, reason)

    async def _settle(
        self, letter: Letter, outcome: Literal["replayed", "discarded"], by: str, reason: str
    ) -> None:
        at = self._clock.now().isoformat(timespec="milliseconds")
        settlement = Settlement(letter=letter.id, outcome=outcome, by=by, at=at, reason=reason)
        await self._bus.declare(SETTLED, 1)
        await self._bus.publish(SETTLED, [Outgoing(msgspec.json.encode(settlement), letter.id)])
        self._telemetry.log.warning(
            "a dead letter is settled",
            outcome=outcome,
            letter=letter.id,
            topic=letter.origin.topic,
            group=letter.origin.group,
            by=by,
            **({"reason": reason} if reason else {}),
            **identity(letter.record.value),
        )

    async def _settlements(self) -> Mapping[str, list[Settlement]]:
        found: dict[str, list[Settlement]] = defaultdict(list)
        try:
            await self._bus.partitions(SETTLED)
        except TopicUnknown:
            return found
        async for record in _records(self._bus, SETTLED, 0):
            for settlement in _settlement(record):
                found[settlement.letter].append(settlement)
        return found


class LetterCount:
    """Keeps the gauge of dead letters for some topics by reading what is new.

    Letters that retention has taken are counted until the next full count.
    """

    def __init__(self, bus: Bus, topics: Sequence[str], telemetry: Telemetry) -> None:
        self._bus = bus
        self._topics = frozenset(topic + DEAD for topic in topics)
        self._gauge = telemetry.gauge(
            "mindweave_dead_letters",
            "Dead letters that are kept, by what became of them.",
            ["topic", "state"],
        )
        self._counted_at: float | None = None
        self._positions: dict[str, str | None] = {}
        self._outcomes: dict[str, str] = {}
        self._counts: dict[str, Counter[str]] = {}

    async def refresh(self) -> None:
        """Set the gauge.

        Raises:
            BusUnavailable: the broker is down.
        """
        now = monotonic()
        try:
            if self._counted_at is None or now - self._counted_at > _RECOUNT:
                await self._count_all()
                self._counted_at = now
            else:
                await self._count_new()
        except OffsetLost:
            self._counted_at = None
            return
        for topic, counts in self._counts.items():
            for state in STATES:
                self._gauge.of(topic=topic.removesuffix(DEAD), state=state).set(counts[state])

    async def _count_all(self) -> None:
        self._positions = dict.fromkeys((SETTLED, *self._topics))
        self._counts = {topic: Counter() for topic in self._topics}
        self._outcomes = {}
        async for settlement in self._new_settlements():
            self._outcomes[settlement.letter] = settlement.outcome
        for topic in self._topics:
            async for letter in self._new_letters(topic):
                self._counts[topic][self._outcomes.get(letter, WAITING)] += 1

    async def _count_new(self) -> None:
        for topic in self._topics:
            async for _ in self._new_letters(topic):
                self._counts[topic][WAITING] += 1
        async for settlement in self._new_settlements():
            counts = self._counts[_topic_of(settlement.letter) + DEAD]
            counts[self._outcomes.get(settlement.letter, WAITING)] -= 1
            counts[settlement.outcome] += 1
            self._outcomes[settlement.letter] = settlement.outcome

    async def _new_letters(self, topic: str) -> AsyncIterator[str]:
        async for record in self._new(topic):
            yield letter_id(record.topic, record.partition, record.token)

    async def _new_settlements(self) -> AsyncIterator[Settlement]:
        async for record in self._new(SETTLED):
            for settlement in _settlement(record):
                if _topic_of(settlement.letter) + DEAD in self._topics:
                    yield settlement

    async def _new(self, topic: str) -> AsyncIterator[Record]:
        position = self._positions[topic]
        if position == await self._bus.end(topic, 0):
            return
        async for record in _records(self._bus, topic, 0, position):
            self._positions[topic] = record.token
            yield record


def letter_id(topic: str, partition: int, token: str) -> str:
    """What an operator calls a dead letter. ``topic`` is the one that holds it."""
    return f"{topic}/{partition}/{token}"


def identity(value: bytes) -> dict[str, str]:
    """The ``event_id`` and ``event_type`` in a record's value; nothing where it is no envelope."""
    try:
        envelope = decode(value)
    except EventRefused:
        return {}
    return {"event_id": str(envelope.id), "event_type": envelope.type}


def _topic_of(letter: str) -> str:
    return letter.partition("/")[0].removesuffix(DEAD)


def _settlement(record: Record) -> Iterable[Settlement]:
    """None where somebody else has written there."""
    try:
        return [msgspec.json.decode(record.value, type=Settlement)]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []


async def _records(
    bus: Bus, topic: str, partition: int, after: str | None = None
) -> AsyncIterator[Record]:
    while records := await bus.fetch(topic, partition, after, max_records=_BATCH, wait=0):
        for record in records:
            yield record
        after = records[-1].token
