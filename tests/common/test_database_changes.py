from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.empty_pb2 import Empty

from common.clock import ManualClock
from common.database import Database, Scope
from common.events.bus import partition_for
from common.events.envelope import Envelope, EventRefused, decode, message_of
from common.identity.call import Call, Principal, set_call
from common.telemetry import bind_correlation_id, correlation_id
from common.testing import a_project_key, a_user
from mindweave.account.v1.account_pb2 import Org
from mindweave.audit.v1.events_pb2 import AuditRecorded
from mindweave.auth.v1.events_pb2 import UserCreated
from mindweave.team.v1.events_pb2 import MemberAdded

pytestmark = pytest.mark.store

NAME = "changing"
NOW = datetime(2026, 11, 21, 9, tzinfo=UTC)


@pytest.fixture(scope="module")
async def db(
    service_database: Callable[..., Awaitable[Database]], tmp_path_factory: pytest.TempPathFactory
) -> Database:
    return await service_database(NAME, tmp_path_factory.mktemp("none"), clock=ManualClock(NOW))


@pytest.fixture(autouse=True)
async def _empty_outbox(db: Database) -> AsyncIterator[None]:
    yield
    async with db.session() as connection:
        await connection.execute("DELETE FROM outbox")


@pytest.fixture(autouse=True)
def _no_call() -> Iterator[None]:
    yield
    set_call(None)


def a_call(principal: Principal | None = None, **given: Any) -> Call:
    operation = "/mindweave.team.v1.TeamService/AddMember"
    return Call(operation, principal or a_user(), audited=True, ip="192.0.2.7", **given)


def added(org: UUID, user: UUID) -> MemberAdded:
    return MemberAdded(org_id=str(org), user_id=str(user), role="admin")


async def outbox(db: Database) -> list[tuple[str, str, Envelope]]:
    async with db.session() as connection:
        rows = await connection.fetch("SELECT topic, key, value FROM outbox ORDER BY id")
    return [(row["topic"], row["key"], decode(row["value"])) for row in rows]


async def audits(db: Database) -> list[AuditRecorded]:
    messages = [message_of(envelope) for topic, _, envelope in await outbox(db)]
    return [message for message in messages if isinstance(message, AuditRecorded)]


async def test_an_event_is_keyed_by_its_organization_else_by_its_user(db: Database) -> None:
    org, user, acting = uuid4(), uuid4(), a_user()
    async with db.change(Scope(), a_call(acting)) as change:
        change.publish(added(org, user))
        change.publish(UserCreated(user_id=str(user)))
        change.publish(added(org, user), key="elsewhere", org_id=org, user_id=acting.user_id)
    found = (await outbox(db))[:3]
    assert [key for _, key, _ in found] == [str(org), str(user), "elsewhere"]
    assert [e.metadata.org_id for _, _, e in found] == [org, None, org]
    assert [e.metadata.user_id for _, _, e in found] == [user, user, acting.user_id]
    assert {e.source for _, _, e in found} == {NAME}
    assert partition_for(str(org), 2) == partition_for(found[0][1], 2)


async def test_an_event_carries_the_correlation_id_of_its_call(db: Database) -> None:
    async with db.change(Scope(), a_call(correlation_id="of-the-call")) as change:
        change.publish(added(uuid4(), uuid4()))
    bind_correlation_id("of-the-work")
    try:
        async with db.change(Scope(), None) as change:
            change.publish(added(uuid4(), uuid4()))
    finally:
        bind_correlation_id("")
    assert correlation_id() == ""
    async with db.change(Scope(), None) as change:
        change.publish(added(uuid4(), uuid4()))
    found = [e.correlation_id for _, _, e in await outbox(db) if e.type == "member.added"]
    assert found[:2] == ["of-the-call", "of-the-work"]
    assert UUID(found[2])


async def test_what_is_no_event_or_breaks_its_schema_is_refused(db: Database) -> None:
    for wrong in (Org(name="no event"), MemberAdded(org_id="no uuid", user_id=str(uuid4()))):
        with pytest.raises(EventRefused):
            async with db.change(Scope()) as change:
                change.publish(wrong)
    assert await outbox(db) == []


async def test_an_audited_call_is_recorded_with_its_change(db: Database) -> None:
    org, principal = uuid4(), a_user()
    call = a_call(principal)
    async with db.change(Scope((org,)), call) as change:
        change.publish(added(org, uuid4()))
        change.answer(Org(id="a-resource", name="x"))
    [(_, _, event), (topic, key, envelope)] = await outbox(db)
    record = message_of(envelope)
    assert isinstance(record, AuditRecorded)
    assert (topic, key) == ("audit.log", str(org))
    assert event.metadata.org_id == envelope.metadata.org_id == org
    assert envelope.metadata.user_id == principal.user_id
    assert record.action == "mindweave.team.v1.TeamService/AddMember"
    assert (record.actor_kind, record.actor_id) == ("user", str(principal.user_id))
    assert (record.org_id, record.resource_id) == (str(org), "a-resource")
    assert record.ip == "192.0.2.7"
    assert record.occurred_at.ToDatetime(UTC) == NOW
    assert call.recorded
    assert call.answered


async def test_a_call_is_recorded_once_and_not_by_its_earlier_steps(db: Database) -> None:
    call = a_call()
    async with db.change(Scope(), None):
        pass
    assert await audits(db) == []
    for _ in range(2):
        async with db.change(Scope(), call):
            pass
    assert len(await audits(db)) == 1


async def test_a_call_that_failed_or_is_not_audited_leaves_no_record(db: Database) -> None:
    call = a_call()
    with pytest.raises(LookupError):
        async with db.change(Scope(), call):
            raise LookupError
    assert not call.recorded
    async with db.change(Scope(), Call("/x/Y", a_user())):
        pass
    assert await audits(db) == []


async def test_a_keys_call_is_recorded_by_its_key(db: Database) -> None:
    org = uuid4()
    key = a_project_key(org, uuid4(), ["events:write"])
    async with db.change(Scope(), a_call(key)):
        pass
    [record] = await audits(db)
    assert (record.actor_kind, record.actor_id) == ("project_key", str(key.api_key_id))
    assert record.org_id == str(org)


async def test_an_anonymous_call_without_organization_is_recorded_too(db: Database) -> None:
    async with db.change(Scope(), a_call(Principal("anonymous"))):
        pass
    [record] = await audits(db)
    assert (record.actor_kind, record.actor_id) == ("anonymous", "")
    assert not record.HasField("org_id")
    assert not record.HasField("resource_id")


async def test_the_call_at_hand_gives_scope_and_record_where_none_is_named(db: Database) -> None:
    org, principal = uuid4(), a_user()
    set_call(a_call(principal, roles={org: "admin"}))
    async with db.change() as change:
        bound = await change.connection.fetchrow("SELECT mindweave_orgs(), mindweave_user()")
    assert tuple(bound or ()) == ([org], principal.user_id)
    assert len(await audits(db)) == 1
    async with db.read() as connection:
        bound = await connection.fetchrow("SELECT mindweave_orgs(), mindweave_user()")
    assert tuple(bound or ()) == ([org], principal.user_id)


async def test_an_answer_goes_through_as_it_is_and_sets_the_calls_etag(db: Database) -> None:
    call, message = a_call(), Empty()
    async with db.change(Scope(), call) as change:
        assert change.answer(message, etag=7) is message
    assert call.etag == 7
    async with db.change(Scope(), None) as change:
        assert change.answer(message, etag=8) is message
