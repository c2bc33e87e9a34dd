"""AuthService behind the kit's real gRPC server: what services ask of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from common.clock import ManualClock
from common.errors import NotFound, Unauthenticated
from common.identity.call import Principal
from common.rpc.fields import moment
from common.settings import Settings, service_secret
from common.testing import Served
from mindweave.auth.v1 import auth_pb2 as pb
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceStub
from tests.auth.conftest import SERVICE, Auth

pytestmark = pytest.mark.rpc


class TestServices:
    async def test_a_service_gets_its_token_for_its_secret(
        self, served: Served, auth: Auth, settings: Settings
    ) -> None:
        request = pb.IssueServiceTokenRequest(
            service="team", secret=service_secret(settings, "team")
        )
        issued = await served.stub(AuthServiceStub).IssueServiceToken(request)
        principal = await auth.verifier.verify(issued.token)
        assert (principal.kind, principal.service) == ("service", "team")

    @pytest.mark.parametrize(
        ("service", "named"), [("team", "project"), ("team", ""), ("nobody", "nobody")]
    )
    async def test_another_secret_is_refused(
        self, served: Served, settings: Settings, service: str, named: str
    ) -> None:
        secret = service_secret(settings, named) if named else "x"
        request = pb.IssueServiceTokenRequest(service=service, secret=secret)
        with pytest.raises(Unauthenticated):
            await served.stub(AuthServiceStub).IssueServiceToken(request)

    async def test_an_open_session_is_open_for_its_user_only(
        self, auth: Auth, caller: Principal
    ) -> None:
        async def check(session_id: Any, user_id: Any) -> bool:
            request = pb.CheckSessionRequest(session_id=str(session_id), user_id=str(user_id))
            try:
                await auth.call("CheckSession", request, SERVICE)
            except NotFound:
                return False
            return True

        assert await check(caller.session_id, caller.user_id)
        assert not await check(caller.session_id, uuid4())
        assert not await check(uuid4(), caller.user_id)
        await auth.call("Logout", pb.LogoutRequest(), caller)
        assert not await check(caller.session_id, caller.user_id)

    async def test_a_checked_session_was_seen(
        self, auth: Auth, caller: Principal, clock: ManualClock
    ) -> None:
        request = pb.CheckSessionRequest(
            session_id=str(caller.session_id), user_id=str(caller.user_id)
        )

        async def last_seen() -> Any:
            await auth.call("CheckSession", request, SERVICE)
            (session,) = (
                await auth.call("ListSessions", pb.ListSessionsRequest(), caller)
            ).sessions
            return moment(session.last_seen_at)

        opened = await last_seen()
        clock.advance(timedelta(seconds=59))
        assert await last_seen() == opened
        clock.advance(timedelta(seconds=1))
        assert await last_seen() == opened + timedelta(minutes=1)

    async def test_profiles_are_given_for_the_ids_that_there_are(self, auth: Auth) -> None:
        person = await auth.register()
        request = pb.ListProfilesRequest(user_ids=[str(person.id), str(uuid4())])
        (profile,) = (await auth.call("ListProfiles", request, SERVICE)).profiles
        assert (profile.user_id, profile.email) == (str(person.id), person.email)
        assert profile.display_name == "Ada Lovelace"

    async def test_the_published_keys_hold_no_private_part(self, auth: Auth) -> None:
        jwks = await auth.call("GetJwks", pb.GetJwksRequest())
        for key in jwks.keys:
            assert (key.kty, key.crv, key.alg, key.use) == ("OKP", "Ed25519", "EdDSA", "sig")
            assert len(key.x) == 43
