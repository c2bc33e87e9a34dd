"""What auth keeps, in a real PostgreSQL."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from asyncpg import ForeignKeyViolationError, UniqueViolationError

from common.clock import ManualClock
from common.database import Database, Scope
from common.ids import uuid7
from services.auth.domain.api_keys import ApiKey, NewKey, Owner, new_key, secret_digest
from services.auth.domain.sessions import Session, new_refresh_token, token_digest
from services.auth.domain.users import Credential, User, email_key
from services.auth.store.api_keys import ApiKeyStore
from services.auth.store.sessions import SessionStore
from services.auth.store.users import UserStore

pytestmark = pytest.mark.store

DAY = timedelta(days=1)


@pytest.fixture
async def user(database: Database, clock: ManualClock) -> User:
    now = clock.now()
    user = User(uuid7(), f"Ada.{uuid4().hex}@Example.org", "Ada", False, 1, now, now)
    async with database.change(Scope(), call=None) as change:
        assert await UserStore(change.connection).insert(user, "hash")
    return user


async def a_session(database: Database, user: User, clock: ManualClock) -> tuple[Session, bytes]:
    now, digest = clock.now(), token_digest(new_refresh_token())
    session = Session(uuid7(), user.id, now, now, now + DAY, "192.0.2.1", "curl/8")
    async with database.change(Scope(), call=None) as change:
        await SessionStore(change.connection).insert(session, digest)
    return session, digest


async def a_key(database: Database, owner: Owner, clock: ManualClock) -> tuple[ApiKey, bytes]:
    key, secret = new_key(owner, NewKey("ci", ["events:write"]), owner.user_id, clock.now())
    async with database.change(Scope(), call=None) as change:
        await ApiKeyStore(change.connection).insert(key, secret_digest(secret))
    return key, secret_digest(secret)


class TestUsers:
    async def test_a_user_is_found_by_any_spelling_of_the_address(
        self, database: Database, user: User
    ) -> None:
        async with database.read(Scope()) as connection:
            store = UserStore(connection)
            found = await store.find_credential(email_key(f" {user.email.upper()} "))
            assert found == Credential(user, "hash", 1)
            assert await store.get_credential(user.id) == found
            assert await store.get(user.id) == user

    async def test_a_taken_address_is_not_taken_twice(self, database: Database, user: User) -> None:
        twin = User(uuid7(), user.email.swapcase(), "A", False, 1, user.created_at, user.updated_at)
        async with database.change(Scope(), call=None) as change:
            assert not await UserStore(change.connection).insert(twin, "hash")

    async def test_an_unknown_user_is_not_found(self, database: Database) -> None:
        async with database.read(Scope()) as connection:
            store = UserStore(connection)
            assert await store.get(uuid4()) is None
            assert await store.get_credential(uuid4()) is None
            assert await store.find_credential("nobody@example.org") is None

    async def test_a_renewed_hash_is_no_new_password(
        self, database: Database, user: User, clock: ManualClock
    ) -> None:
        credential = Credential(user, "hash", 1)
        async with database.change(Scope(), call=None) as change:
            store = UserStore(change.connection)
            await store.renew_hash(credential, "a newer hash")
            assert await store.hold_password(credential)
            found = await store.get_credential(user.id)
        assert found == Credential(user, "a newer hash", 1)

    async def test_a_password_is_replaced_by_one_of_two_who_know_it(
        self, database: Database, user: User, clock: ManualClock
    ) -> None:
        credential = Credential(user, "hash", 1)
        later = clock.now() + DAY

        async def replace(new_hash: str) -> bool:
            async with database.change(Scope(), call=None) as change:
                return await UserStore(change.connection).replace_password(
                    credential, new_hash, later
                )

        assert sorted(await asyncio.gather(replace("one"), replace("other"))) == [False, True]
        async with database.change(Scope(), call=None) as change:
            assert not await UserStore(change.connection).hold_password(credential)


class TestSessions:
    async def test_a_session_has_one_unspent_token(
        self, database: Database, user: User, clock: ManualClock
    ) -> None:
        session, _ = await a_session(database, user, clock)
        with pytest.raises(UniqueViolationError):
            async with database.change(Scope(), call=None) as change:
                await SessionStore(change.connection).follow(session, b"x" * 32, clock.now())

    async def test_a_successor_is_forgotten_once_its_grace_is_over(
        self, database: Database, user: User, clock: ManualClock
    ) -> None:
        session, first = await a_session(database, user, clock)
        second, third = b"2" * 32, token_digest(new_refresh_token())
        async with database.change(Scope(), call=None) as change:
            store = SessionStore(change.connection)
            await store.spend(first, b"hidden", session.created_at)
            await store.follow(session, second, session.created_at)
            await store.spend(second, b"hidden too", session.created_at + DAY)
            await store.follow(session, third, session.created_at + DAY)
            spent, then = await store.get_token(first), await store.get_token(second)
        assert spent is not None
        assert then is not None
        assert (spent.spent_at, spent.successor) == (session.created_at, None)
        assert then.successor == b"hidden too"

    async def test_an_expired_session_is_not_open(
        self, database: Database, user: User, clock: ManualClock
    ) -> None:
        session, digest = await a_session(database, user, clock)
        end = session.expires_at
        async with database.change(Scope(), call=None) as change:
            store = SessionStore(change.connection)
            assert await store.find(session.id, end - DAY / 2) == session
            assert await store.find(session.id, end) is None
            assert not await store.hold(session.id, user.id, end)
            assert await store.lock_family(digest, end) is None
            assert await store.list_of(user.id, None, 10, end) == []
            assert await store.delete_expired(end) >= 1
            assert await store.get_token(digest) is None

    async def test_pages_of_sessions_show_each_session_once(
        self, database: Database, user: User, clock: ManualClock
    ) -> None:
        made = [(await a_session(database, user, clock))[0].id for _ in range(5)]
        shown: list[UUID] = []
        async with database.read(Scope()) as connection:
            store = SessionStore(connection)
            while page := await store.list_of(
                user.id, shown[-1] if shown else None, 2, clock.now()
            ):
                shown += [session.id for session in page]
        assert shown == sorted(made, reverse=True)

    async def test_a_session_of_another_user_is_not_deleted(
        self, database: Database, user: User, clock: ManualClock
    ) -> None:
        session, _ = await a_session(database, user, clock)
        async with database.change(Scope(), call=None) as change:
            store = SessionStore(change.connection)
            assert not await store.delete(session.id, uuid4())
            assert not await store.hold(session.id, uuid4(), clock.now())
            assert await store.delete(session.id, user.id)

    async def test_a_session_is_marked_as_seen_once_a_minute(
        self, database: Database, user: User, clock: ManualClock
    ) -> None:
        session, _ = await a_session(database, user, clock)
        minute, now = timedelta(minutes=1), session.created_at
        async with database.change(Scope(), call=None) as change:
            store = SessionStore(change.connection)
            for at in (now + minute, now + 1.5 * minute):
                await store.touch(session.id, at, at - minute)
            seen = await store.find(session.id, now)
        assert seen is not None
        assert seen.last_seen_at == now + minute

    async def test_a_session_belongs_to_a_user(
        self, database: Database, user: User, clock: ManualClock
    ) -> None:
        nobody = User(uuid4(), "x@example.org", "X", False, 1, clock.now(), clock.now())
        with pytest.raises(ForeignKeyViolationError):
            await a_session(database, nobody, clock)


class TestApiKeys:
    async def test_a_key_is_found_by_its_digest(
        self, database: Database, user: User, clock: ManualClock
    ) -> None:
        key, digest = await a_key(database, Owner(user_id=user.id), clock)
        async with database.read(Scope()) as connection:
            assert await ApiKeyStore(connection).find(digest) == key
            assert await ApiKeyStore(connection).find(b"x" * 32) is None

    async def test_a_user_s_keys_are_the_user_s_alone(
        self, database: Database, user: User, clock: ManualClock
    ) -> None:
        key, _ = await a_key(database, Owner(user_id=user.id), clock)
        async with database.change(Scope(), call=None) as change:
            store = ApiKeyStore(change.connection)
            assert await store.list_of_user(uuid4(), None, 10) == []
            assert not await store.delete_of_user(uuid4(), key.id)
            assert await store.list_of_user(user.id, None, 10) == [key]
            assert await store.delete_of_user(user.id, key.id)
            assert not await store.delete_of_user(user.id, key.id)

    async def test_a_project_s_keys_are_reached_only_by_organization_and_project(
        self, database: Database, clock: ManualClock
    ) -> None:
        org_id, project_id = uuid4(), uuid4()
        key, _ = await a_key(database, Owner(org_id=org_id, project_id=project_id), clock)
        async with database.change(Scope(), call=None) as change:
            store = ApiKeyStore(change.connection)
            assert await store.list_of_project(uuid4(), project_id, None, 10) == []
            assert await store.list_of_project(org_id, uuid4(), None, 10) == []
            assert not await store.delete_of_project(uuid4(), project_id, key.id)
            assert not await store.delete_of_project(org_id, uuid4(), key.id)
            assert await store.list_of_project(org_id, project_id, None, 10) == [key]
            assert await store.delete_of_project(org_id, project_id, key.id)

    async def test_all_keys_of_an_organization_go_and_no_others(
        self, database: Database, user: User, clock: ManualClock
    ) -> None:
        org_id, project_id = uuid4(), uuid4()
        own, _ = await a_key(database, Owner(user_id=user.id), clock)
        foreign, _ = await a_key(database, Owner(org_id=uuid4(), project_id=project_id), clock)
        one, _ = await a_key(database, Owner(org_id=org_id, project_id=project_id), clock)
        other, _ = await a_key(database, Owner(org_id=org_id, project_id=uuid4()), clock)
        async with database.change(Scope(), call=None) as change:
            store = ApiKeyStore(change.connection)
            assert await store.delete_all(org_id, project_id) == [one]
            assert await store.delete_all(org_id) == [other]
            assert await store.delete_all(org_id) == []
            assert await store.list_of_user(user.id, None, 10) == [own]
            assert len(await store.list_of_project(foreign.org_id or org_id, project_id, None, 9))

    async def test_pages_of_keys_show_each_key_once(
        self, database: Database, user: User, clock: ManualClock
    ) -> None:
        made = [(await a_key(database, Owner(user_id=user.id), clock))[0].id for _ in range(3)]
        async with database.read(Scope()) as connection:
            store = ApiKeyStore(connection)
            first = await store.list_of_user(user.id, None, 2)
            second = await store.list_of_user(user.id, first[-1].id, 2)
        assert [key.id for key in first + second] == sorted(made, reverse=True)

    async def test_the_last_use_of_a_key_is_written_once_a_minute(
        self, database: Database, user: User, clock: ManualClock
    ) -> None:
        key, digest = await a_key(database, Owner(user_id=user.id), clock)
        minute, now = timedelta(minutes=1), key.created_at
        async with database.change(Scope(), call=None) as change:
            store = ApiKeyStore(change.connection)
            for at in (now, now + minute / 2, now + minute, now + 1.9 * minute):
                await store.touch(key.id, at, at - minute)
            used = await store.find(digest)
        assert used is not None
        assert used.last_used_at == now + minute
