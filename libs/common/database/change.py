"""One transaction: its rows, its events and its answer commit together or not at all."""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar
from uuid import UUID, uuid4

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from common.clock import Clock
from common.database.connection import Connection
from common.database.idempotency import Answer, remember
from common.events.catalog import event_type
from common.events.envelope import JSON_HEADERS, EventRefused, encode, envelope_for
from common.identity.call import Call
from common.identity.sealing import Sealer
from common.telemetry import correlation_id, inject
from mindweave.audit.v1.events_pb2 import AuditRecorded

M = TypeVar("M", bound=Message)
_OutboxRow = tuple[str, str, bytes, dict[str, str], datetime]


class Change:
    """A transaction that changes something, as ``Database.change`` gives it to a block."""

    connection: Connection

    def __init__(
        self,
        connection: Connection,
        call: Call | None,
        *,
        source: str,
        clock: Clock,
        sealer: Sealer,
    ) -> None:
        self.connection = connection
        self._call = call
        self._source = source
        self._clock = clock
        self._sealer = sealer
        self._outbox: list[_OutboxRow] = []
        self._answer: Answer | None = None
        self._org_id: UUID | None = None
        self._resource_id: str | None = None

    def publish(
        self,
        message: Message,
        *,
        key: str | None = None,
        org_id: UUID | None = None,
        user_id: UUID | None = None,
    ) -> None:
        """Have an event sent once this transaction has committed.

        Args:
            message: of a type with the option ``event``.
            key: events with the same key keep their order; the organization or the user when
                absent.
            org_id: the organization the event is about; the message's own ``org_id`` when absent.
            user_id: the user; the message's own ``user_id`` when absent, then the caller.

        Raises:
            EventRefused: the message does not fit its schema.
        """
        org_id = org_id or _id_in(message, "org_id")
        user_id = user_id or _id_in(message, "user_id")
        if user_id is None and self._call is not None:
            user_id = self._call.principal.user_id
        kind = event_type(message)
        if kind is None:
            raise EventRefused(f"{message.DESCRIPTOR.full_name} has no option event")
        envelope = envelope_for(
            message, self._source, self._clock, org_id, user_id, self._correlation_id()
        )
        headers = dict(JSON_HEADERS)
        inject(headers)
        key = key or str(org_id or user_id or "")
        self._outbox.append((kind.topic, key, encode(envelope), headers, envelope.timestamp))
        self._org_id = self._org_id or org_id

    def answer(self, message: M, *, etag: int | None = None, resource_id: UUID | None = None) -> M:
        """Remember the answer for the call's idempotency key, encrypted; returns it.

        Args:
            message: what the call is answered.
            etag: the version that the answer shows.
            resource_id: what was changed, for the audit; the ``id`` in the answer when absent.
        """
        if etag is not None and self._call is not None:
            self._call.etag = etag
        self._answer = Answer(message.SerializeToString(deterministic=True), etag)
        self._org_id = self._org_id or _id_in(message, "org_id")
        self._resource_id = str(resource_id) if resource_id else _resource_in(message)
        return message

    async def finish(self) -> None:
        """Write what was published, audited and answered; ``Database.change`` calls it."""
        call = self._call
        if call is not None and call.audited and not call.recorded:
            self._record(call)
        if self._outbox:
            await self._write_outbox()
        if call is not None and call.idempotency_key and self._answer is not None:
            await remember(self.connection, call, self._answer, self._sealer, self._clock.now())

    def committed(self) -> None:
        """Note on the call what has been done for it; ``Database.change`` calls it."""
        if self._call is not None:
            self._call.recorded = self._call.recorded or self._call.audited
            self._call.answered = self._call.answered or self._answer is not None

    def _record(self, call: Call) -> None:
        principal = call.principal
        org_id = self._org_id or call.org_id or principal.org_id
        actor = principal.api_key_id or principal.user_id or principal.service or ""
        occurred_at = Timestamp()
        occurred_at.FromDatetime(self._clock.now())
        self.publish(
            AuditRecorded(
                action=call.operation.lstrip("/"),
                actor_kind=principal.kind,
                actor_id=str(actor),
                org_id=str(org_id) if org_id else None,
                resource_id=self._resource_id,
                ip=call.ip,
                occurred_at=occurred_at,
            ),
            org_id=org_id,
        )

    async def _write_outbox(self) -> None:
        topics, keys, values, headers, times = zip(*self._outbox, strict=True)
        await self.connection.execute(
            """
            WITH written AS (
                INSERT INTO outbox (topic, key, value, headers, created_at)
                SELECT topic, key, value, headers, created_at
                FROM unnest($1::text[], $2::text[], $3::bytea[], $4::jsonb[], $5::timestamptz[])
                    WITH ORDINALITY AS o (topic, key, value, headers, created_at, n)
                ORDER BY n
            )
            SELECT pg_notify('mindweave_outbox', '')
            """,
            topics,
            keys,
            values,
            headers,
            times,
        )
        self._outbox.clear()

    def _correlation_id(self) -> str:
        own = self._call.correlation_id if self._call is not None else ""
        return own or correlation_id() or str(uuid4())


def _id_in(message: Message, field: str) -> UUID | None:
    """The id in a field that may lack; one that breaks the schema is refused with its message."""
    try:
        return UUID(getattr(message, field, ""))
    except (ValueError, AttributeError, TypeError):
        return None


def _resource_in(message: Message) -> str | None:
    """The ``id`` of a message, or of the one that it holds."""
    held = [value for _, value in message.ListFields() if isinstance(value, Message)]
    ids = (str(getattr(one, "id", "")) for one in (message, *held))
    return next(filter(None, ids), None)
