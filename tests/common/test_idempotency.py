from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from common.clock import ManualClock
from common.database import (
    Answer,
    AnswerExists,
    Database,
    Scope,
    find_answer,
    forget_expired,
    housekeeping,
)
from common.errors import Conflict, Invalid
from common.identity.call import Call, Principal
from common.identity.sealing import SealBroken, Sealer
from common.testing import a_user
from mindweave.account.v1.account_pb2 import Org
from tests.common.waiting import eventually

pytestmark = pytest.mark.store

NAME = "repeated"
NOW = datetime(2026, 11, 21, 9, tzinfo=UTC)
MADE = "CREATE TABLE made (name text PRIMARY KEY, by text NOT NULL)"
OPERATION = "/mindweave.account.v1.AccountService/CreateOrg"
DAY = timedelta(hours=24)


@pytest.fixture(scope="module")
async def db(
    service_database: Callable[..., Awaitable[Database]], tmp_path_factory: pytest.TempPathFactory
) -> Database:
    folder = tmp_path_factory.mktemp("migrations")
    (folder / "0001_made.sql").write_text(MADE)
    return await service_database(NAME, folder, size=8, clock=ManualClock(NOW))


def a_call(key: str, principal: Principal, body: bytes = b"body", **given: Any) -> Call:
    return Call(OPERATION, principal, idempotency_key=key, request_hash=body, **given)


async def look_up(db: Database, call: Call) -> Answer | None:
    return await find_answer(
        db,
        call.principal.subject,
        call.operation,
        call.idempotency_key or "",
        call.request_hash,
    )


async def make(db: Database, call: Call, name: str, secret: str = "") -> Org:
    """Creates something whose name may exist once, as an operation of a service would."""
    async with db.change(Scope(), call) as change:
        status = await change.connection.execute(
            "INSERT INTO made VALUES ($1, $2) ON CONFLICT DO NOTHING", name, str(uuid4())
        )
        if status != "INSERT 0 1":
            raise Conflict("taken")
        return change.answer(Org(id=str(uuid4()), name=name, slug=secret), etag=3)


async def as_interceptor(db: Database, call: Call, name: str) -> bytes:
    answer = await look_up(db, call)
    if answer is None:
        try:
            return (await make(db, call, name)).SerializeToString(deterministic=True)
        except AnswerExists:
            answer = await look_up(db, call)
    assert answer is not None
    return answer.message


async def count(db: Database, name: str) -> int:
    async with db.session() as connection:
        found: int = await connection.fetchval("SELECT count(*) FROM made WHERE name = $1", name)
    return found


async def test_a_repeat_finds_the_first_answer_with_its_etag(db: Database) -> None:
    call = a_call("key", a_user())
    assert await look_up(db, call) is None
    first = await make(db, call, "first")
    found = await look_up(db, call)
    assert found is not None
    assert (Org.FromString(found.message), found.etag) == (first, 3)


async def test_many_at_once_with_one_key_make_one_change_and_get_the_same_answer(
    db: Database,
) -> None:
    user, name = a_user(), str(uuid4())
    answers = await asyncio.gather(
        *(as_interceptor(db, a_call("twins", user), name) for _ in range(12))
    )
    assert len(set(answers)) == 1
    assert await count(db, name) == 1


async def test_a_twin_waits_for_the_first_and_does_nothing_itself(db: Database) -> None:
    user = a_user()
    async with db.change(Scope(), a_call("slow", user)) as change:
        twin = asyncio.create_task(make(db, a_call("slow", user), "made by the twin"))
        async with db.session() as watching:
            await eventually(
                lambda: watching.fetchval(
                    "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                )
            )
        change.answer(Org(name="made by the first"))
    with pytest.raises(AnswerExists):
        await twin
    assert await count(db, "made by the twin") == 0


async def test_a_twin_takes_over_where_the_first_fails(db: Database) -> None:
    user, name = a_user(), str(uuid4())
    twins: list[asyncio.Task[Org]] = []

    async def fail() -> None:
        async with db.change(Scope(), a_call("fails", user)) as change:
            twins.append(asyncio.create_task(make(db, a_call("fails", user), name)))
            change.answer(Org(name="never kept"))
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert (await twins[0]).name == name
    found = await look_up(db, a_call("fails", user))
    assert found is not None
    assert Org.FromString(found.message).name == name


async def test_a_refused_call_may_be_tried_again_under_its_key(db: Database) -> None:
    user, name = a_user(), str(uuid4())
    await make(db, a_call("one", user), name)
    with pytest.raises(Conflict):
        await make(db, a_call("two", user), name)
    assert await look_up(db, a_call("two", user)) is None
    assert (await make(db, a_call("two", user), name + "!")).name == name + "!"


async def test_a_key_used_for_another_body_is_refused(db: Database) -> None:
    user = a_user()
    await make(db, a_call("reused", user), str(uuid4()))
    other = a_call("reused", user, body=b"another body")
    with pytest.raises(Invalid) as caught:
        await look_up(db, other)
    assert caught.value.code == "idempotency_key_reused"
    with pytest.raises(AnswerExists):
        await make(db, other, str(uuid4()))


async def test_keys_of_others_and_of_other_operations_do_not_meet(db: Database) -> None:
    user = a_user()
    await make(db, a_call("mine", user), str(uuid4()))
    assert await look_up(db, a_call("mine", a_user())) is None
    elsewhere = Call("/other/Operation", user, idempotency_key="mine", request_hash=b"body")
    assert await look_up(db, elsewhere) is None
    key = Principal("user_key", user_id=user.user_id, api_key_id=uuid4())
    assert await look_up(db, a_call("mine", key)) is None


async def test_a_call_without_key_is_not_remembered(db: Database) -> None:
    call = Call(OPERATION, a_user(), request_hash=b"body")
    await make(db, call, str(uuid4()))
    async with db.session() as connection:
        assert not await connection.fetchval(
            "SELECT count(*) FROM idempotency_keys WHERE subject = $1", call.principal.subject
        )


async def test_a_secret_in_an_answer_cannot_be_read_in_the_table(db: Database) -> None:
    call = a_call("secret", a_user())
    await make(db, call, "keeper", secret="mwp_shown-this-once")
    async with db.session() as connection:
        row = await connection.fetchrow(
            "SELECT t::text AS all, answer FROM idempotency_keys AS t WHERE subject = $1",
            call.principal.subject,
        )
    assert row is not None
    assert b"mwp_shown-this-once" not in row["answer"]
    assert b"mwp_shown-this-once".hex() not in row["all"]
    with pytest.raises(SealBroken):
        Sealer(bytes(32)).open(row["answer"], b"")
    found = await look_up(db, call)
    assert found is not None
    assert Org.FromString(found.message).slug == "mwp_shown-this-once"


async def test_an_answer_moved_to_another_key_cannot_be_opened(db: Database) -> None:
    call = a_call("here", a_user())
    await make(db, call, str(uuid4()))
    async with db.change(Scope(), None) as change:
        await change.connection.execute(
            "UPDATE idempotency_keys SET key = 'there' WHERE subject = $1", call.principal.subject
        )
    with pytest.raises(SealBroken):
        await look_up(db, a_call("there", call.principal))


async def test_several_transactions_of_one_call_do_not_take_each_other_for_a_repeat(
    db: Database,
) -> None:
    call = a_call("steps", a_user())
    async with db.change(Scope(), None):
        pass
    await make(db, call, str(uuid4()))
    assert call.answered
    async with db.change(Scope(), call) as change:
        await change.connection.execute("INSERT INTO made VALUES ($1, 'after')", str(uuid4()))


async def test_after_a_day_a_key_is_free_and_its_record_removed(db: Database) -> None:
    clock = db.clock
    assert isinstance(clock, ManualClock)
    call, again = a_call("old", a_user()), a_call("older", a_user())
    await make(db, call, str(uuid4()))
    await make(db, again, str(uuid4()))
    clock.advance(DAY - timedelta(seconds=1))
    assert await look_up(db, call) is not None
    assert await forget_expired(db) == 0
    clock.advance(timedelta(seconds=1))
    assert await look_up(db, call) is None
    fresh = await make(db, a_call("old", call.principal, body=b"new"), str(uuid4()))
    found = await look_up(db, a_call("old", call.principal, body=b"new"))
    assert found is not None
    assert Org.FromString(found.message) == fresh
    assert await forget_expired(db) > 0
    async with db.session() as connection:
        kept = await connection.fetch("SELECT key FROM idempotency_keys")
    assert [row["key"] for row in kept] == ["old"]


async def test_housekeeping_removes_old_ids_of_consumed_events(db: Database) -> None:
    recent, old = uuid4(), uuid4()
    async with db.change(Scope(), None) as change:
        await change.connection.executemany(
            "INSERT INTO consumed_events VALUES ('group', $1, $2)",
            [
                (recent, db.clock.now() - timedelta(days=13)),
                (old, db.clock.now() - timedelta(days=14)),
            ],
        )
    cleaning = housekeeping(db, timedelta(hours=1))
    await cleaning.start()

    async def only_recent() -> bool:
        async with db.session() as connection:
            rows = await connection.fetch("SELECT event_id FROM consumed_events")
        return [row["event_id"] for row in rows] == [recent]

    try:
        await eventually(only_recent)
    finally:
        await cleaning.stop()
