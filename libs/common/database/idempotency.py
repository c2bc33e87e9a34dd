"""What a call was answered, so that its repeat is answered alike and changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from common.database.connection import Connection
from common.errors import Invalid
from common.identity.call import Call
from common.identity.sealing import Sealer

if TYPE_CHECKING:
    from common.database.pool import Database

KEPT = timedelta(hours=24)


class AnswerExists(Exception):
    """Another call with the same key has been answered: nothing was changed here, look it up."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A serialized response message and its ETag."""

    message: bytes
    etag: int | None = None


async def find_answer(
    db: Database, subject: str, operation: str, key: str, request_hash: bytes
) -> Answer | None:
    """What the same call was answered within the last 24 hours.

    Raises:
        Invalid: the key was used for another request (code ``idempotency_key_reused``).
    """
    async with db.session() as connection:
        row = await connection.fetchrow(
            """
            SELECT request_hash, answer, etag FROM idempotency_keys
            WHERE subject = $1 AND operation = $2 AND key = $3 AND created_at > $4
            """,
            subject,
            operation,
            key,
            db.clock.now() - KEPT,
        )
    if row is None:
        return None
    if row["request_hash"] != db.sealer.fingerprint(request_hash):
        raise Invalid(
            "This Idempotency-Key was used for another request; take a new one.",
            code="idempotency_key_reused",
        )
    sealed: bytes = row["answer"]
    return Answer(db.sealer.open(sealed, _context(subject, operation, key)), row["etag"])


async def claim(connection: Connection, call: Call, now: datetime) -> None:
    """Wait until no other transaction works under the call's key, and keep others waiting.

    Raises:
        AnswerExists: one of them has answered.
    """
    subject, key = call.principal.subject, call.idempotency_key
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))",
        f"mindweave.idempotency\n{subject}\n{call.operation}\n{key}",
    )
    if await connection.fetchval(
        """
        SELECT true FROM idempotency_keys
        WHERE subject = $1 AND operation = $2 AND key = $3 AND created_at > $4
        """,
        subject,
        call.operation,
        key,
        now - KEPT,
    ):
        raise AnswerExists


async def remember(
    connection: Connection, call: Call, answer: Answer, sealer: Sealer, now: datetime
) -> None:
    """Keep the answer under the call's key, which this transaction has claimed."""
    subject, key = call.principal.subject, call.idempotency_key or ""
    await connection.execute(
        """
        INSERT INTO idempotency_keys AS kept
            (subject, operation, key, request_hash, answer, etag, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        ON CONFLICT (subject, operation, key) DO UPDATE SET request_hash = excluded.request_hash,
            answer = excluded.answer, etag = excluded.etag, created_at = excluded.created_at
        """,
        subject,
        call.operation,
        key,
        # A plain hash of a request that holds a password could be guessed at.
        sealer.fingerprint(call.request_hash),
        sealer.seal(answer.message, _context(subject, call.operation, key)),
        answer.etag,
        now,
    )


def _context(subject: str, operation: str, key: str) -> bytes:
    return f"{subject}\n{operation}\n{key}".encode()
