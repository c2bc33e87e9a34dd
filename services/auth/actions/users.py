"""Use cases of users: who they are, and their passwords."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from common.addresses import address_line
from common.clock import Clock
from common.database import Change, Database, Scope
from common.ids import uuid7
from mindweave.auth.v1.events_pb2 import UserCreated, UserSessionInvalid, UserUpdated
from services.auth.actions.callers import Caller, lock_user
from services.auth.actions.limits import Limiter
from services.auth.actions.passwords import Passwords
from services.auth.domain.limits import Limit
from services.auth.domain.passwords import check_password, normalize_password
from services.auth.domain.sessions import SessionEnded
from services.auth.domain.users import (
    EmailTaken,
    PasswordChanged,
    User,
    WrongPassword,
    clean_email,
)
from services.auth.store.sessions import SessionStore
from services.auth.store.users import UserStore

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class UserLimits:
    """Registrations of one address, and wrong guesses of one user at the present password."""

    registrations: Limit
    password_changes: Limit


class UserActions:
    """What can be done with users.

    ``answer`` makes the result inside the transaction of a change, so that what it remembers
    there commits together with the effect.
    """

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        limiter: Limiter,
        limits: UserLimits,
        clock: Clock,
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._limiter = limiter
        self._limits = limits
        self._clock = clock

    async def register(
        self,
        email: str,
        password: str,
        display_name: str,
        *,
        ip: str | None,
        answer: Callable[[Change, User], T],
    ) -> T:
        """Register a user.

        Raises:
            Invalid: the password is too short, too long, leaked, or names its user.
            TooManyAttempts: too many registrations from this address.
            EmailTaken: there is a user with this address.
        """
        address = clean_email(email)
        normal = check_password(password, email=address, display_name=display_name)
        await self._limiter.count(self._limits.registrations, address_line(ip or "unknown"))
        await self._passwords.refuse_leaked(normal)
        password_hash = await self._passwords.hash(normal)
        now = self._clock.now()
        user = User(uuid7(), address, display_name, False, 1, now, now)
        async with self._database.change() as change:
            if not await UserStore(change.connection).insert(user, password_hash):
                raise EmailTaken
            change.publish(UserCreated(user_id=str(user.id)), user_id=user.id)
            return answer(change, user)

    async def get(self, user_id: UUID) -> User:
        """A user who is signed in.

        Raises:
            SessionEnded: the user is gone.
        """
        async with self._database.read(Scope()) as connection:
            user = await UserStore(connection).get(user_id)
        if user is None:
            raise SessionEnded
        return user

    async def list_by_id(self, user_ids: Sequence[UUID]) -> list[User]:
        """Those of the users that exist."""
        async with self._database.read(Scope()) as connection:
            return await UserStore(connection).list_by_id(user_ids)

    async def rename(
        self,
        caller: Caller,
        display_name: str | None,
        *,
        version: int | None,
        answer: Callable[[Change, User], T],
    ) -> T:
        """Show the user under another name; None changes nothing.

        Raises:
            PreconditionFailed: ``version`` is not the current one.
        """
        now = self._clock.now()
        async with self._database.change() as change:
            user = await lock_user(change.connection, caller, now)
            user.expect(version)
            renamed = user if display_name is None else user.renamed(display_name, now)
            if renamed != user:
                await UserStore(change.connection).save_profile(renamed)
                change.publish(UserUpdated(user_id=str(user.id), fields=["display_name"]))
            return answer(change, renamed)

    async def change_password(
        self,
        caller: Caller,
        current_password: str,
        password: str,
        answer: Callable[[Change], T],
    ) -> T:
        """Change the password and end every other session of the user.

        Raises:
            Invalid: the new password may not be used.
            WrongPassword: the current one is another.
            TooManyAttempts: it was guessed wrong too often.
            PasswordChanged: another call has changed it meanwhile.
        """
        async with self._database.read(Scope()) as connection:
            credential = await UserStore(connection).get_credential(caller.user_id)
        if credential is None:
            raise SessionEnded
        user = credential.user
        normal = check_password(password, email=user.email, display_name=user.display_name)
        await self._passwords.refuse_leaked(normal)
        async with self._limiter.guess(self._limits.password_changes, str(user.id)):
            current = normalize_password(current_password)
            if not await self._passwords.verify(credential.password_hash, current):
                raise WrongPassword
        password_hash = await self._passwords.hash(normal)
        async with self._database.change() as change:
            now = self._clock.now()
            await lock_user(change.connection, caller, now)
            if not await UserStore(change.connection).replace_password(
                credential, password_hash, now
            ):
                raise PasswordChanged
            change.publish(UserUpdated(user_id=str(user.id), fields=["password"]))
            sessions = SessionStore(change.connection)
            for ended in await sessions.delete_others(user.id, but=caller.session_id):
                change.publish(
                    UserSessionInvalid(
                        user_id=str(user.id), session_id=str(ended), reason="password_changed"
                    )
                )
            return answer(change)
