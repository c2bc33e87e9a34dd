"""Whose rows a transaction sees: the first argument of every read and change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from common.database.connection import Connection, is_gone
from common.identity.call import Call


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose rows row-level security shows; an empty scope shows none.

    They are the rows of these organizations, and in tables with a policy for users of this user.
    """

    orgs: Sequence[UUID] = ()
    user_id: UUID | None = None

    @classmethod
    def of(cls, call: Call | None) -> Scope:
        """What the caller of ``call`` may see; nothing outside of a call."""
        return cls() if call is None else cls(call.orgs, call.principal.user_id)


@asynccontextmanager
async def bound(connection: Connection, scope: Scope, mode: str = "") -> AsyncIterator[None]:
    """A transaction that is bound to the scope from its begin on, both in one round trip.

    Args:
        connection: outside of any transaction.
        scope: whose rows are shown.
        mode: of the transaction, in SQL.
    """
    # One round trip takes no parameters. What is written of an id is the digits of a number.
    orgs = ",".join(f"{org.int:032x}" for org in scope.orgs)
    user = "" if scope.user_id is None else f"{scope.user_id.int:032x}"
    await connection.execute(
        f"BEGIN {mode}; SELECT set_config('mindweave.orgs', '{{{orgs}}}', true),"
        f" set_config('mindweave.user_id', '{user}', true)"
    )
    try:
        yield
    except BaseException:
        if not is_gone(connection):
            await connection.execute("ROLLBACK")
        raise
    await connection.execute("COMMIT")
