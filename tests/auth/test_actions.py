"""Signing in while something else happens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import uuid4

import pytest
from argon2 import PasswordHasher
from redis.asyncio import Redis

from common.clock import ManualClock
from common.database import Database, Scope
from common.ids import uuid7
from services.auth.actions.callers import Caller
from services.auth.actions.limits import Limiter
from services.auth.actions.passwords import Passwords
from services.auth.actions.sessions import Device, SessionActions
from services.auth.actions.signing_keys import KeyRing
from services.auth.actions.tokens import TokenIssuer
from services.auth.actions.upkeep import Upkeep
from services.auth.domain.limits import Limit
from services.auth.domain.sessions import SessionNotFound
from services.auth.domain.users import Credential, InvalidCredentials, User, email_key
from services.auth.store.users import UserStore

pytestmark = pytest.mark.store

PASSWORD = "an uncommon pass phrase"
NOWHERE = Device(None, None)


class Watched(Passwords):
    """Counts what it checks, and lets a test act after each check."""

    def __init__(self) -> None:
        super().__init__()
        self.checked: list[bool] = []
        self.then: Callable[[], Awaitable[None]] | None = None

    async def verify(self, password_hash: str | None, password: str) -> bool:
        matches = await super().verify(password_hash, password)
        self.checked.append(password_hash is not None)
        if self.then is not None:
            await self.then()
        return matches


@pytest.fixture
def passwords() -> Watched:
    return Watched()


@pytest.fixture
def sessions(
    passwords: Watched, database: Database, cache: Redis, clock: ManualClock
) -> SessionActions:
    tokens = TokenIssuer(
        KeyRing(database, database.sealer, clock),
        issuer="https://mindweave.test",
        access_ttl=timedelta(minutes=10),
        service_secret=str,
        clock=clock,
    )
    return SessionActions(
        database,
        passwords,
        Limiter(cache, database, clock),
        tokens,
        failed_logins=Limit("failed_logins", 10, timedelta(minutes=5)),
        ttl=timedelta(days=30),
        clock=clock,
    )


async def a_user(database: Database, clock: ManualClock, password_hash: str) -> User:
    now = clock.now()
    user = User(uuid7(), f"{uuid4().hex}@example.org", "Ada", False, 1, now, now)
    async with database.change(Scope(), call=None) as change:
        await UserStore(change.connection).insert(user, password_hash)
    return user


async def the_credential(database: Database, user: User) -> Credential:
    async with database.read(Scope()) as connection:
        credential = await UserStore(connection).find_credential(email_key(user.email))
    assert credential is not None
    return credential


async def test_an_unknown_address_costs_one_check_as_a_known_one_does(
    sessions: SessionActions, passwords: Watched, database: Database, clock: ManualClock
) -> None:
    user = await a_user(database, clock, await passwords.hash(PASSWORD))
    for email in (user.email, f"{uuid4().hex}@example.org"):
        with pytest.raises(InvalidCredentials):
            await sessions.login(email, "wrong", NOWHERE)
    assert passwords.checked == [True, False]


async def test_a_password_that_changes_during_a_login_opens_no_session(
    sessions: SessionActions, passwords: Watched, database: Database, clock: ManualClock
) -> None:
    user = await a_user(database, clock, await passwords.hash(PASSWORD))

    async def change_password() -> None:
        credential = await the_credential(database, user)
        async with database.change(Scope(), call=None) as change:
            await UserStore(change.connection).replace_password(credential, "new", clock.now())

    passwords.then = change_password
    with pytest.raises(InvalidCredentials):
        await sessions.login(user.email, PASSWORD, NOWHERE)
    assert await sessions.list_open(user.id, None, 10) == []


async def test_a_login_renews_a_hash_of_weaker_parameters(
    sessions: SessionActions, passwords: Watched, database: Database, clock: ManualClock
) -> None:
    weaker = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)
    user = await a_user(database, clock, weaker)
    await sessions.login(user.email, PASSWORD, NOWHERE)
    renewed = await the_credential(database, user)
    assert not passwords.is_outdated(renewed.password_hash)
    assert renewed.user.version == 1
    await sessions.login(user.email, PASSWORD, NOWHERE)


async def test_a_session_shows_its_device_and_its_latest_one(
    sessions: SessionActions, passwords: Watched, database: Database, clock: ManualClock
) -> None:
    user = await a_user(database, clock, await passwords.hash(PASSWORD))
    pair = await sessions.login(user.email, PASSWORD, Device("192.0.2.1", "firefox"))
    await sessions.refresh(pair.refresh_token, Device("192.0.2.2", "firefox, newer"))
    (session,) = await sessions.list_open(user.id, None, 10)
    assert (session.ip, session.user_agent) == ("192.0.2.2", "firefox, newer")


async def test_what_has_expired_is_removed(
    sessions: SessionActions, passwords: Watched, database: Database, clock: ManualClock
) -> None:
    user = await a_user(database, clock, await passwords.hash(PASSWORD))
    await sessions.login(user.email, PASSWORD, NOWHERE)
    (session,) = await sessions.list_open(user.id, None, 10)
    clock.advance(timedelta(days=30))
    with pytest.raises(SessionNotFound):
        await sessions.check(Caller(user.id, session.id))
    await Upkeep(database, clock, attempts_kept=timedelta(minutes=5)).sweep()
    async with database.read(Scope()) as connection:
        assert await connection.fetchval("SELECT count(*) FROM sessions") == 0
        assert await connection.fetchval("SELECT count(*) FROM refresh_tokens") == 0
