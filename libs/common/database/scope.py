"""Whose rows a transaction sees: the first argument of every read and change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from common.database.connection import Connection
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


async def bind(connection: Connection, scope: Scope) -> None:
    """Bind the running transaction, and only it, to the scope."""
    await connection.execute(
        "SELECT set_config('mindweave.orgs', $1::uuid[]::text, true),"
        " set_config('mindweave.user_id', $2, true)",
        list(scope.orgs),
        str(scope.user_id or ""),
    )
