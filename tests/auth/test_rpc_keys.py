"""AuthService behind the kit's real gRPC server: API keys of users and of projects."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.clock import ManualClock
from common.database import Database, Scope
from common.errors import Invalid, NotFound, PermissionDenied, Unauthenticated
from common.identity.api_keys import new_secret
from common.identity.call import Principal, permitted
from common.rpc.fields import moment, timestamp
from mindweave.account.v1.events_pb2 import OrgDeleted
from mindweave.auth.v1 import auth_pb2 as pb
from mindweave.project.v1.events_pb2 import ProjectDeleted
from services.auth.actions.api_keys import ApiKeyActions
from services.auth.actions.signing_keys import KeyRing
from services.auth.actions.tokens import TokenIssuer
from services.auth.consumer import handlers
from tests.auth.conftest import SERVICE, Auth
from tests.conftest import Published

pytestmark = pytest.mark.rpc


def asked(**given: Any) -> pb.CreateApiKeyRequest:
    return pb.CreateApiKeyRequest(**({"name": "ci", "scopes": ["org:read"]} | given))


class Keys:
    """API keys as the gateway and the service project use them."""

    def __init__(self, auth: Auth) -> None:
        self.auth = auth
        self.org_id, self.project_id = uuid4(), uuid4()

    async def create(self, caller: Principal, **given: Any) -> pb.CreatedApiKey:
        response: pb.CreateApiKeyResponse = await self.auth.call(
            "CreateApiKey", asked(**given), caller
        )
        return response.api_key

    async def exchange(self, secret: str) -> Principal:
        issued = await self.exchanged(secret)
        return await self.auth.verifier.verify(issued.token)

    async def exchanged(self, secret: str) -> pb.ExchangeApiKeyResponse:
        answer = await self.auth.answer(
            "ExchangeApiKey", pb.ExchangeApiKeyRequest(key=secret), SERVICE
        )
        response: pb.ExchangeApiKeyResponse = answer.message
        return response

    async def is_known(self, secret: str) -> bool:
        try:
            await self.exchanged(secret)
        except NotFound:
            return False
        return True

    async def create_for_project(self, caller: Principal, **given: Any) -> Any:
        fields = {
            "org_id": str(self.org_id),
            "project_id": str(self.project_id),
            "name": "ingest",
            "scopes": ["events:write"],
        }
        request = pb.CreateProjectApiKeyRequest(**(fields | given))
        answer = await self.auth.answer("CreateProjectApiKey", request, caller, caller="project")
        return answer.message.api_key

    async def list_of_project(self, **given: Any) -> Any:
        fields = {"org_id": str(self.org_id), "project_id": str(self.project_id)}
        request = pb.ListProjectApiKeysRequest(**(fields | given))
        return (
            await self.auth.answer("ListProjectApiKeys", request, SERVICE, caller="project")
        ).message

    async def delete_of_project(self, key_id: str, **given: Any) -> None:
        fields = {"org_id": str(self.org_id), "project_id": str(self.project_id), "id": key_id}
        request = pb.DeleteProjectApiKeyRequest(**(fields | given))
        await self.auth.answer("DeleteProjectApiKey", request, SERVICE, caller="project")


@pytest.fixture
def keys(auth: Auth) -> Keys:
    return Keys(auth)


class TestUserKeys:
    async def test_a_created_key_is_shown_once(
        self, keys: Keys, caller: Principal, auth: Auth, published: Published
    ) -> None:
        created = await keys.create(caller, name=" ci ", scopes=["org:read", "events:write"])
        assert created.key.startswith(created.prefix)
        assert created.name == "ci"
        (listed,) = (await auth.call("ListApiKeys", pb.ListApiKeysRequest(), caller)).api_keys
        assert (listed.id, listed.prefix) == (created.id, created.prefix)
        assert list(listed.scopes) == ["org:read", "events:write"]
        assert not listed.HasField("expires_at")
        assert not listed.HasField("last_used_at")
        assert created.key not in str(listed)
        event = next(e for e in await published() if e.type == "api_key.created")
        assert event.data == {"api_key_id": created.id, "user_id": str(caller.user_id)}

    async def test_a_repeat_under_the_same_key_shows_the_same_secret_for_a_day(
        self, auth: Auth, caller: Principal, clock: ManualClock
    ) -> None:
        idempotency_key = uuid4().hex

        async def create() -> str:
            answer = await auth.answer(
                "CreateApiKey", asked(), caller, idempotency_key=idempotency_key
            )
            key: str = answer.message.api_key.key
            return key

        first, twin = await asyncio.gather(create(), create())
        assert first == twin
        clock.advance(timedelta(hours=23))
        assert await create() == first
        listed = await auth.call("ListApiKeys", pb.ListApiKeysRequest(), caller)
        assert len(listed.api_keys) == 1

    async def test_an_unknown_scope_is_named_by_its_place(
        self, keys: Keys, caller: Principal
    ) -> None:
        with pytest.raises(Invalid) as refused:
            await keys.create(caller, scopes=["org:read", "org:paint", "self:write"])
        assert [f.pointer for f in refused.value.fields] == ["/scopes/1", "/scopes/2"]

    async def test_a_key_speaks_with_its_role_and_its_scopes_only(
        self, keys: Keys, caller: Principal
    ) -> None:
        created = await keys.create(caller, scopes=["analytics:read", "project:delete"])
        principal = await keys.exchange(created.key)
        assert (principal.kind, principal.user_id) == ("user_key", caller.user_id)
        assert principal.api_key_id == UUID(created.id)
        assert principal.session_id is None
        assert permitted(principal, "admin", "project:delete")
        assert not permitted(principal, "viewer", "project:delete")
        assert not permitted(principal, "admin", "project:write")

    async def test_an_exchanged_token_lasts_sixty_seconds(
        self, keys: Keys, caller: Principal, clock: ManualClock, auth: Auth
    ) -> None:
        issued = await keys.exchanged((await keys.create(caller)).key)
        lasts = moment(issued.expires_at) - clock.now()
        assert timedelta(seconds=59) < lasts <= timedelta(seconds=60)
        clock.advance(timedelta(seconds=60))
        with pytest.raises(Unauthenticated):
            await auth.verifier.verify(issued.token)

    async def test_a_key_expires(self, keys: Keys, caller: Principal, clock: ManualClock) -> None:
        ends = clock.now() + timedelta(days=400)
        created = await keys.create(caller, expires_at=timestamp(ends))
        assert moment(created.expires_at) == ends
        clock.advance(timedelta(days=400) - timedelta(seconds=20))
        assert moment((await keys.exchanged(created.key)).expires_at) <= ends
        clock.advance(timedelta(seconds=20))
        assert not await keys.is_known(created.key)

    async def test_the_last_use_is_shown(
        self, keys: Keys, caller: Principal, auth: Auth, clock: ManualClock
    ) -> None:
        created = await keys.create(caller)
        await keys.exchange(created.key)
        used = clock.now()
        clock.advance(timedelta(seconds=30))
        await keys.exchange(created.key)
        (listed,) = (await auth.call("ListApiKeys", pb.ListApiKeysRequest(), caller)).api_keys
        assert moment(listed.last_used_at) == used
        clock.advance(timedelta(seconds=30))
        await keys.exchange(created.key)
        (listed,) = (await auth.call("ListApiKeys", pb.ListApiKeysRequest(), caller)).api_keys
        assert moment(listed.last_used_at) == used + timedelta(minutes=1)

    async def test_a_mistyped_or_unknown_key_is_not_found(
        self, keys: Keys, caller: Principal
    ) -> None:
        created = await keys.create(caller)
        wrong = "A" if created.key[20] != "A" else "B"
        assert not await keys.is_known(created.key[:20] + wrong + created.key[21:])
        assert not await keys.is_known(new_secret("user"))
        assert await keys.is_known(created.key)

    async def test_a_revoked_key_is_unknown_at_once_and_told_of(
        self, keys: Keys, caller: Principal, auth: Auth, published: Published
    ) -> None:
        created = await keys.create(caller)
        await auth.call("DeleteApiKey", pb.DeleteApiKeyRequest(id=created.id), caller)
        assert not await keys.is_known(created.key)
        event = next(e for e in await published() if e.type == "api_key.revoked")
        assert event.data == {"api_key_id": created.id, "user_id": str(caller.user_id)}
        with pytest.raises(NotFound):
            await auth.call("DeleteApiKey", pb.DeleteApiKeyRequest(id=created.id), caller)

    async def test_a_key_of_another_user_does_not_exist(
        self, keys: Keys, caller: Principal, auth: Auth
    ) -> None:
        created = await keys.create(caller)
        stranger = await auth.sign_in(await auth.register())
        listed = await auth.call("ListApiKeys", pb.ListApiKeysRequest(), stranger)
        assert not listed.api_keys
        with pytest.raises(NotFound):
            await auth.call("DeleteApiKey", pb.DeleteApiKeyRequest(id=created.id), stranger)
        assert await keys.is_known(created.key)

    async def test_keys_come_in_pages(self, keys: Keys, caller: Principal, auth: Auth) -> None:
        made = [(await keys.create(caller)).id for _ in range(3)]
        first = await auth.call("ListApiKeys", pb.ListApiKeysRequest(page_size=2), caller)
        rest = pb.ListApiKeysRequest(page_size=2, page_token=first.next_page_token)
        second = await auth.call("ListApiKeys", rest, caller)
        assert [k.id for k in [*first.api_keys, *second.api_keys]] == made[::-1]
        assert not second.HasField("next_page_token")


class TestProjectKeys:
    async def test_a_project_s_key_speaks_for_its_project_alone(
        self, keys: Keys, caller: Principal, published: Published
    ) -> None:
        created = await keys.create_for_project(caller)
        principal = await keys.exchange(created.key)
        assert created.key.startswith("mwp_")
        assert (principal.kind, principal.user_id) == ("project_key", None)
        assert (principal.org_id, principal.project_id) == (keys.org_id, keys.project_id)
        assert principal.scopes == {"events:write"}
        event = next(e for e in await published() if e.type == "api_key.created")
        assert event.metadata.org_id == keys.org_id

    async def test_a_scope_that_reaches_beyond_the_project_is_refused(
        self, keys: Keys, caller: Principal
    ) -> None:
        with pytest.raises(Invalid) as refused:
            await keys.create_for_project(caller, scopes=["events:write", "member:read"])
        assert [f.pointer for f in refused.value.fields] == ["/scopes/1"]

    async def test_a_key_that_would_have_expired_is_refused(
        self, keys: Keys, caller: Principal, clock: ManualClock
    ) -> None:
        with pytest.raises(Invalid) as refused:
            await keys.create_for_project(caller, expires_at=timestamp(clock.now()))
        assert [f.pointer for f in refused.value.fields] == ["/expires_at"]

    async def test_a_project_s_keys_are_listed_in_pages(
        self, keys: Keys, caller: Principal
    ) -> None:
        made = [(await keys.create_for_project(caller)).id for _ in range(3)]
        first = await keys.list_of_project(page_size=2)
        second = await keys.list_of_project(page_size=2, page_token=first.next_page_token)
        assert [k.id for k in [*first.api_keys, *second.api_keys]] == made[::-1]

    async def test_a_key_is_reached_only_through_its_own_project(
        self, keys: Keys, caller: Principal
    ) -> None:
        created = await keys.create_for_project(caller)
        for other in ({"org_id": str(uuid4())}, {"project_id": str(uuid4())}):
            assert not (await keys.list_of_project(**other)).api_keys
            with pytest.raises(NotFound):
                await keys.delete_of_project(created.id, **other)
        assert await keys.is_known(created.key)
        await keys.delete_of_project(created.id)
        assert not await keys.is_known(created.key)

    async def test_a_user_does_not_reach_a_project_s_key_as_its_own(
        self, keys: Keys, caller: Principal, auth: Auth
    ) -> None:
        created = await keys.create_for_project(caller)
        with pytest.raises(NotFound):
            await auth.call("DeleteApiKey", pb.DeleteApiKeyRequest(id=created.id), caller)

    @pytest.mark.parametrize("caller_", ["gateway", "team", "usage_tracker"])
    async def test_only_the_service_project_keeps_projects_keys(
        self, keys: Keys, auth: Auth, caller: Principal, caller_: str
    ) -> None:
        request = pb.ListProjectApiKeysRequest(
            org_id=str(keys.org_id), project_id=str(keys.project_id)
        )
        with pytest.raises(PermissionDenied):
            await auth.answer("ListProjectApiKeys", request, caller, caller=caller_)

    async def test_what_is_deleted_takes_its_keys_along_and_nothing_else(
        self,
        keys: Keys,
        caller: Principal,
        auth: Auth,
        database: Database,
        clock: ManualClock,
        published: Published,
    ) -> None:
        other_project, other_org = uuid4(), uuid4()
        own = await keys.create(caller)
        first = await keys.create_for_project(caller)
        second = await keys.create_for_project(caller, project_id=str(other_project))
        third = await keys.create_for_project(caller, org_id=str(other_org))
        tokens = TokenIssuer(
            KeyRing(database, database.sealer, clock),
            issuer="https://mindweave.test",
            access_ttl=timedelta(minutes=10),
            service_secret=str,
            clock=clock,
        )
        on: Any = handlers(ApiKeyActions(database, tokens, clock))

        async def hear(kind: str, message: Any) -> None:
            for _ in range(2):
                async with database.change(Scope(), call=None) as change:
                    await on[kind](change, message, None)

        project_deleted = ProjectDeleted(project_id=str(keys.project_id), org_id=str(keys.org_id))
        await hear("project.deleted", project_deleted)
        assert [await keys.is_known(k.key) for k in (first, second, third, own)] == [
            False,
            True,
            True,
            True,
        ]
        await hear("org.deleted", OrgDeleted(org_id=str(keys.org_id)))
        assert [await keys.is_known(k.key) for k in (second, third, own)] == [False, True, True]
        revoked = [e for e in await published() if e.type == "api_key.revoked"]
        assert [e.data["api_key_id"] for e in revoked if isinstance(e.data, dict)] == [
            first.id,
            second.id,
        ]
        assert {e.metadata.org_id for e in revoked} == {keys.org_id}
