"""Use cases of sessions: signing in, staying signed in, and ending it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

from common.clock import Clock
from common.database import Change, Database, Scope
from common.ids import uuid7
from mindweave.auth.v1.events_pb2 import UserLogin, UserLogout, UserSessionInvalid
from services.auth.actions.callers import Caller, lock_user
from services.auth.actions.limits import Limiter
from services.auth.actions.passwords import Passwords
from services.auth.actions.tokens import Issued, TokenIssuer
from services.auth.domain.limits import Limit
from services.auth.domain.passwords import normalize_password
from services.auth.domain.sessions import (
    GRACE,
    SEEN_EVERY,
    EndReason,
    InvalidRefreshToken,
    RefreshToken,
    Session,
    SessionNotFound,
    conceal_successor,
    expiry,
    new_refresh_token,
    reveal_successor,
    shortened,
    token_digest,
)
from services.auth.domain.users import Credential, InvalidCredentials, email_key
from services.auth.store.sessions import SessionStore
from services.auth.store.users import UserStore

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Device:
    """Where a session is used."""

    ip: str | None
    user_agent: str | None


@dataclass(frozen=True, slots=True)
class TokenPair:
    """What keeps a user signed in; ``expires_in`` is of the access token, in seconds."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in: int


class SessionActions:
    """What can be done with sessions.

    Args:
        database: keeps them.
        passwords: checks them.
        limiter: counts guesses.
        tokens: signs access tokens.
        failed_logins: of one address.
        ttl: how long a session lasts after its last refresh.
        clock: tells the time.
    """

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        limiter: Limiter,
        tokens: TokenIssuer,
        *,
        failed_logins: Limit,
        ttl: timedelta,
        clock: Clock,
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._limiter = limiter
        self._tokens = tokens
        self._failed_logins = failed_logins
        self._ttl = ttl
        self._clock = clock

    async def login(self, email: str, password: str, device: Device) -> TokenPair:
        """Open a session. An address that nobody has costs and answers the same as a known one.

        Raises:
            InvalidCredentials: the address or the password is wrong.
            TooManyAttempts: too many wrong guesses at this address.
        """
        normal = normalize_password(password)
        async with self._limiter.guess(self._failed_logins, email_key(email)):
            credential = await self._authenticate(email, normal)
        session, refresh_token = self._new_session(credential.user.id, device)
        async with self._database.change() as change:
            if not await UserStore(change.connection).hold_password(credential):
                raise InvalidCredentials
            await SessionStore(change.connection).insert(session, token_digest(refresh_token))
            change.publish(UserLogin(user_id=str(session.user_id), session_id=str(session.id)))
        await self._renew_hash(credential, normal)
        return _pair(await self._tokens.for_session(session), refresh_token)

    async def refresh(self, refresh_token: str, device: Device) -> TokenPair:
        """Spend a refresh token for the next pair.

        One that was spent within the grace gives the same successor again; one that was spent
        before ends its session, since two hold it.

        Raises:
            InvalidRefreshToken: it is unknown, spent, or its session has ended.
        """
        async with self._database.change() as change:
            spent = await self._spend(change, refresh_token, device)
        # Raised only here, so that the end of a reused session is committed.
        if spent is None:
            raise InvalidRefreshToken
        session, successor = spent
        return _pair(await self._tokens.for_session(session), successor)

    async def logout(self, caller: Caller) -> None:
        """End the caller's session; one that has ended already is no error."""
        async with self._database.change() as change:
            if await _end(change, caller.session_id, caller.user_id, "ended"):
                change.publish(
                    UserLogout(user_id=str(caller.user_id), session_id=str(caller.session_id))
                )

    async def list_open(self, user_id: UUID, before: UUID | None, limit: int) -> list[Session]:
        """The user's open sessions, newest first, from the one after ``before`` on."""
        async with self._database.read(Scope()) as connection:
            return await SessionStore(connection).list_of(user_id, before, limit, self._clock.now())

    async def end(self, caller: Caller, session_id: UUID, answer: Callable[[Change], T]) -> T:
        """End a session of the caller.

        Raises:
            SessionNotFound: the caller has no such session.
        """
        async with self._database.change() as change:
            await lock_user(change.connection, caller, self._clock.now())
            if not await _end(change, session_id, caller.user_id, "ended"):
                raise SessionNotFound
            return answer(change)

    async def end_others(self, caller: Caller, answer: Callable[[Change], T]) -> T:
        """End every session of the caller but the present one."""
        async with self._database.change() as change:
            await lock_user(change.connection, caller, self._clock.now())
            store = SessionStore(change.connection)
            for session_id in await store.delete_others(caller.user_id, but=caller.session_id):
                _publish_invalid(change, session_id, caller.user_id, "ended")
            return answer(change)

    async def check(self, caller: Caller) -> None:
        """Note that a session is in use.

        Raises:
            SessionNotFound: it is not open, or another user's.
        """
        now = self._clock.now()
        async with self._database.read(Scope()) as connection:
            session = await SessionStore(connection).find(caller.session_id, now)
        if session is None or session.user_id != caller.user_id:
            raise SessionNotFound
        if now - session.last_seen_at >= SEEN_EVERY:
            async with self._database.change(Scope(), call=None) as change:
                await SessionStore(change.connection).touch(session.id, now, now - SEEN_EVERY)

    async def _authenticate(self, email: str, password: str) -> Credential:
        async with self._database.read(Scope()) as connection:
            credential = await UserStore(connection).find_credential(email_key(email))
        known = credential.password_hash if credential else None
        if not await self._passwords.verify(known, password) or credential is None:
            raise InvalidCredentials
        return credential

    def _new_session(self, user_id: UUID, device: Device) -> tuple[Session, str]:
        now = self._clock.now()
        session = Session(
            id=uuid7(),
            user_id=user_id,
            created_at=now,
            last_seen_at=now,
            expires_at=expiry(now, now, self._ttl),
            ip=device.ip,
            user_agent=shortened(device.user_agent),
        )
        return session, new_refresh_token()

    async def _renew_hash(self, credential: Credential, password: str) -> None:
        if not self._passwords.is_outdated(credential.password_hash):
            return
        renewed = await self._passwords.hash(password)
        async with self._database.change(Scope(), call=None) as change:
            await UserStore(change.connection).renew_hash(credential, renewed)

    async def _spend(
        self, change: Change, refresh_token: str, device: Device
    ) -> tuple[Session, str] | None:
        store, now = SessionStore(change.connection), self._clock.now()
        session = await store.lock_family(token_digest(refresh_token), now)
        token = await store.get_token(token_digest(refresh_token))
        if session is None or token is None:
            return None
        if token.spent_at is None:
            session = session.seen(now, self._ttl, device.ip, device.user_agent)
            return session, await self._rotate(store, session, refresh_token)
        if token.in_grace(now):
            successor = await _newest(store, refresh_token, token)
            return (session, successor) if successor else None
        await _end(change, session.id, session.user_id, "refresh_reused")
        return None

    async def _rotate(self, store: SessionStore, session: Session, spent: str) -> str:
        successor, now = new_refresh_token(), session.last_seen_at
        await store.spend(token_digest(spent), conceal_successor(spent, successor), now)
        await store.follow(session, token_digest(successor), now - GRACE)
        return successor


def _pair(access: Issued, refresh_token: str) -> TokenPair:
    return TokenPair(access.token, refresh_token, access.expires_in)


async def _newest(store: SessionStore, shown: str, token: RefreshToken) -> str | None:
    """The unspent token that follows, however often the family was refreshed in the grace."""
    while token.spent_at is not None:
        if token.successor is None:
            return None
        shown = reveal_successor(shown, token.successor)
        following = await store.get_token(token_digest(shown))
        if following is None:
            return None
        token = following
    return shown


async def _end(change: Change, session_id: UUID, user_id: UUID, reason: EndReason) -> bool:
    """Whether the user had such a session."""
    ended = await SessionStore(change.connection).delete(session_id, user_id)
    if ended:
        _publish_invalid(change, session_id, user_id, reason)
    return ended


def _publish_invalid(change: Change, session_id: UUID, user_id: UUID, reason: EndReason) -> None:
    change.publish(
        UserSessionInvalid(user_id=str(user_id), session_id=str(session_id), reason=reason)
    )
