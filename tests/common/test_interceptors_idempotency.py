from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.database import Answer, AnswerExists, Database, find_answer
from common.errors import Conflict, Invalid, NotFound, Unavailable
from common.identity.call import Call, Principal, current_call
from common.rpc import client
from common.testing import a_user
from mindweave.account.v1.account_pb2 import (
    CreateOrgRequest,
    CreateOrgResponse,
    DeleteOrgRequest,
    DeleteOrgResponse,
    Org,
)
from mindweave.auth.v1.auth_pb2 import RegisterRequest, RegisterResponse
from mindweave.team.v1.team_pb2 import ResolveAccessRequest
from tests.common.serving import ACCOUNT, AUTH, TEAM, Fleet, as_call, fleet, on_behalf_of

pytestmark = pytest.mark.rpc

CREATE = f"{ACCOUNT}/CreateOrg"
USER, OTHER = a_user(), a_user()
Found = tuple[str, str, str, bytes]


@pytest.fixture(scope="module")
async def database(service_database: Callable[..., Awaitable[Database]]) -> Database:
    return await service_database("account")


@pytest.fixture
async def served(database: Database) -> AsyncIterator[Fleet]:
    """CreateOrg as a service writes it: the answer is kept in the transaction of the change."""
    async with fleet(ACCOUNT, AUTH, find_answer=partial(find_answer, database)) as running:

        async def create(request: Any, context: Any) -> CreateOrgResponse:
            async with database.change() as change:
                made = CreateOrgResponse(org=Org(id=str(uuid4()), name=request.name))
                return change.answer(made, etag=1)

        async def register(request: Any, context: Any) -> RegisterResponse:
            async with database.change() as change:
                made = RegisterResponse()
                made.user.id = str(uuid4())
                return change.answer(made)

        running.handlers[ACCOUNT].on("CreateOrg", create)
        running.handlers[AUTH].on("Register", register)
        yield running


async def create(
    served: Fleet, name: str, key: str | None, principal: Principal = USER
) -> client.Answer:
    method = served.method(CREATE)
    call = on_behalf_of(served.signer.signed(principal))
    answer: client.Answer = await as_call(
        call, lambda: method.invoke(CreateOrgRequest(name=name), idempotency_key=key)
    )
    return answer


async def test_a_repeat_is_answered_as_the_call_was_and_the_handler_does_not_run(
    served: Fleet,
) -> None:
    key = str(uuid4())
    first, second = await create(served, "a", key), await create(served, "a", key)
    assert second.message == first.message
    assert (first.etag, first.replayed) == (1, False)
    assert (second.etag, second.replayed) == (1, True)
    assert served.handlers[ACCOUNT].seen == ["CreateOrg"]


async def test_a_repeat_is_answered_as_the_call_was_although_the_caller_has_lost_the_permission(
    served: Fleet, database: Database
) -> None:
    async def delete(request: Any, context: Any) -> DeleteOrgResponse:
        async with database.change() as change:
            return change.answer(DeleteOrgResponse())

    served.handlers[ACCOUNT].on("DeleteOrg", delete)
    method, org, key = served.method(f"{ACCOUNT}/DeleteOrg"), uuid4(), str(uuid4())

    async def ask(org_id: UUID, principal: Principal) -> client.Answer:
        request = DeleteOrgRequest(id=str(org_id))
        call = on_behalf_of(served.signer.signed(principal))
        answer: client.Answer = await as_call(
            call, lambda: method.invoke(request, idempotency_key=key)
        )
        return answer

    served.access.grant(USER, org, "owner")
    assert not (await ask(org, USER)).replayed
    served.access.revoke(USER, org)
    assert (await ask(org, USER)).replayed
    with pytest.raises(Invalid):
        await ask(uuid4(), USER)
    with pytest.raises(NotFound):
        await ask(org, OTHER)


async def test_another_key_is_another_call(served: Fleet) -> None:
    first, second = await create(served, "a", str(uuid4())), await create(served, "a", str(uuid4()))
    assert first.message != second.message


async def test_without_a_key_of_the_callers_each_call_has_a_fresh_one(served: Fleet) -> None:
    first, second = await create(served, "a", None), await create(served, "a", None)
    assert first.message != second.message
    assert not second.replayed


async def test_a_key_with_another_body_is_refused(served: Fleet) -> None:
    key = str(uuid4())
    await create(served, "a", key)
    with pytest.raises(Invalid) as refused:
        await create(served, "b", key)
    assert refused.value.code == "idempotency_key_reused"


async def test_one_callers_key_is_not_anothers(served: Fleet) -> None:
    key = str(uuid4())
    first, second = await create(served, "a", key), await create(served, "a", key, OTHER)
    assert first.message != second.message


async def test_calls_with_one_key_at_once_change_something_once(served: Fleet) -> None:
    key = str(uuid4())
    answers = await asyncio.gather(*(create(served, "a", key) for _ in range(6)))
    assert len({answer.message.org.id for answer in answers}) == 1
    assert [answer.replayed for answer in answers].count(False) == 1


async def test_a_call_that_failed_leaves_nothing_and_its_repeat_may_succeed(
    served: Fleet, database: Database
) -> None:
    key, fails = str(uuid4()), [True]

    async def sometimes(request: Any, context: Any) -> CreateOrgResponse:
        async with database.change() as change:
            made = change.answer(CreateOrgResponse(org=Org(name=request.name)))
            if fails.pop() if fails else False:
                raise Conflict
            return made

    served.handlers[ACCOUNT].on("CreateOrg", sometimes)
    with pytest.raises(Conflict):
        await create(served, "a", key)
    assert not (await create(served, "a", key)).replayed
    assert (await create(served, "a", key)).replayed


async def test_people_who_are_not_signed_in_do_not_share_keys(served: Fleet) -> None:
    method, key = served.method(f"{AUTH}/Register"), str(uuid4())
    request = RegisterRequest(email="a@b.co", password="a long password 123", display_name="a")

    async def register(ip: str) -> client.Answer:
        call = on_behalf_of(ip=ip)
        answer: client.Answer = await as_call(
            call, lambda: method.invoke(request, idempotency_key=key)
        )
        return answer

    first, second, third = [await register(ip) for ip in ("10.0.0.1", "10.0.0.1", "10.0.0.2")]
    assert (first.replayed, second.replayed, third.replayed) == (False, True, False)
    assert third.message != first.message


async def test_an_operation_that_may_be_repeated_is_not_looked_up() -> None:
    looked_up: list[Found] = []

    async def find(*asked: Any) -> Answer | None:
        looked_up.append(asked)
        return None

    async with fleet(TEAM, find_answer=find) as served:
        method = served.method(f"{TEAM}/ResolveAccess", "account")
        await method(ResolveAccessRequest(), metadata=[("idempotency-key", "k")])
    assert looked_up == []


async def test_what_is_looked_up_names_caller_operation_key_and_request() -> None:
    looked_up: list[Found] = []

    async def find(*asked: Any) -> Answer | None:
        looked_up.append(asked)
        return None

    async with fleet(ACCOUNT, find_answer=find) as served:
        for name in ("a", "a", "b"):
            await create(served, name, "the key")
    for subject, operation, key, _ in looked_up:
        assert (subject, operation, key) == (USER.subject, CREATE, "the key")
    hashes = [request_hash for _, _, _, request_hash in looked_up]
    assert hashes[0] == hashes[1] != hashes[2]


async def test_a_twin_that_answered_meanwhile_is_looked_up_once_more() -> None:
    kept = [None, Answer(CreateOrgResponse(org=Org(name="twin")).SerializeToString(), 3)]

    async def find(*_: Any) -> Answer | None:
        return kept.pop(0)

    async def late(request: Any, context: Any) -> Any:
        raise AnswerExists

    async with fleet(ACCOUNT, find_answer=find) as served:
        served.handlers[ACCOUNT].on("CreateOrg", late)
        answer = await create(served, "a", "k")
    assert (answer.message.org.name, answer.etag, answer.replayed) == ("twin", 3, True)


async def test_a_twin_whose_answer_is_not_to_be_found_makes_the_caller_come_back() -> None:
    async def find(*_: Any) -> Answer | None:
        return None

    async def late(request: Any, context: Any) -> Any:
        raise AnswerExists

    async with fleet(ACCOUNT, find_answer=find) as served:
        served.handlers[ACCOUNT].on("CreateOrg", late)
        with pytest.raises(Unavailable):
            await create(served, "a", "k")


async def test_a_call_without_any_key_is_served_and_nothing_is_looked_up() -> None:
    async def find(*_: Any) -> Answer | None:
        raise AssertionError("nothing to look up")

    seen: list[Call] = []

    async def handle(request: Any, context: Any) -> CreateOrgResponse:
        seen.append(current_call())
        return CreateOrgResponse()

    async with fleet(ACCOUNT, find_answer=find) as served:
        served.handlers[ACCOUNT].on("CreateOrg", handle)
        metadata = [
            ("x-mindweave-caller", await served.tokens_of("gateway").get()),
            ("authorization", f"Bearer {served.token(USER)}"),
        ]
        await served.bare(CREATE, CreateOrgRequest(name="a"), metadata)
    assert seen[0].idempotency_key is None
