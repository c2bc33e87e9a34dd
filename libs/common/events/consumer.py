"""Consumers of domain events: each takes effect once, in the transaction that notes its id."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from common.background import PartStatus
from common.database import Change, Database, Scope
from common.events.bus import Backoff, Bus, Record
from common.events.catalog import event_types
from common.events.envelope import Envelope, EventRefused, decode, message_of

# Given the transaction, the event's message and its envelope.
EventHandler = Callable[[Change, Any, Envelope], Awaitable[None]]


class EventConsumer:
    """Runs a service's handlers on the events of some topics.

    Events come in the order of their partition, but one that failed comes again later, behind
    others; ``ordered`` lets its partition wait instead. A handler's transaction is bound to the
    event's organization. An event seen before is skipped, and so is a type of the catalog without
    a handler; a type that is not in the catalog and data that do not fit go to the dead letters.
    """

    def __init__(
        self,
        *,
        bus: Bus,
        db: Database,
        handlers: Mapping[str, EventHandler],
        group: str | None = None,
        topics: Sequence[str] | None = None,
        ordered: bool = False,
        max_attempts: int = 5,
        backoff: Backoff | None = None,
    ) -> None:
        """Reads nothing before ``start``.

        Args:
            bus: where the events are.
            db: the service's; the effects go there.
            handlers: by type of event.
            group: whose place the bus keeps; the service's when absent.
            topics: what to read; the topics of the handlers' types when absent.
            ordered: see above.
            max_attempts: until an event is a dead letter.
            backoff: between attempts.

        Raises:
            ValueError: no proto declares a type.
        """
        unknown = sorted(set(handlers) - set(event_types()))
        if unknown:
            raise ValueError(f"no proto declares the event types {', '.join(unknown)}")
        self.name = f"{db.name} events"
        self._db = db
        self._group = group or db.name
        self._handlers = handlers
        self._subscription = bus.subscribe(
            topics or sorted({event_types()[kind].topic for kind in handlers}),
            self._group,
            self._consume,
            ordered=ordered,
            max_attempts=max_attempts,
            backoff=backoff,
        )

    async def start(self) -> None:
        await self._subscription.start()

    async def stop(self) -> None:
        await self._subscription.stop()

    def status(self) -> PartStatus:
        return self._subscription.status()

    async def _consume(self, record: Record) -> None:
        envelope = decode(record.value)
        handler = self._handlers.get(envelope.type)
        if handler is None:
            if envelope.type not in event_types():
                raise EventRefused(f"unknown event type {envelope.type}")
            return
        message = message_of(envelope)
        org_id = envelope.metadata.org_id
        scope = Scope((org_id,) if org_id is not None else ())
        async with self._db.change(scope, call=None) as change:
            if await self._first(change, envelope.id):
                await handler(change, message, envelope)

    async def _first(self, change: Change, event_id: UUID) -> bool:
        noted = await change.connection.fetchval(
            """
            INSERT INTO consumed_events (consumer, event_id) VALUES ($1, $2)
            ON CONFLICT DO NOTHING RETURNING true
            """,
            self._group,
            event_id,
        )
        return bool(noted)
