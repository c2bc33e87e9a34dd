"""Who acts on what is their own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from common.database import Connection
from services.auth.domain.sessions import SessionEnded
from services.auth.domain.users import User
from services.auth.store.sessions import SessionStore
from services.auth.store.users import UserStore


@dataclass(frozen=True, slots=True)
class Caller:
    """A signed-in user and the session in which the call is made."""

    user_id: UUID
    session_id: UUID


async def lock_user(connection: Connection, caller: Caller, now: datetime) -> User:
    """The caller's user; changes of one user wait for each other.

    Raises:
        SessionEnded: the session has ended, although its access token lasts a little longer.
    """
    user = await UserStore(connection).lock(caller.user_id)
    open_ = await SessionStore(connection).hold(caller.session_id, caller.user_id, now)
    if user is None or not open_:
        raise SessionEnded
    return user
