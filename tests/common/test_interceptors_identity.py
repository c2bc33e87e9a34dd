from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import grpc
import pytest

from common.errors import MindWeaveError, Unavailable
from common.identity.call import Principal, current_call
from common.identity.callers import SERVICES, may_call
from common.identity.tokens import Keys, TokenVerifier
from common.rpc.contract import operations
from common.rpc.status import error_of
from common.testing import Signer, a_project_key, a_user, a_user_key
from tests.common.serving import ACCOUNT, AUTH, PROJECT, TEAM, Fleet, fleet

pytestmark = pytest.mark.rpc

ANALYTICS = "mindweave.analytics.v1.AnalyticsService"
SERVED = {
    "account": (ACCOUNT, "ListOrgs"),
    "analytics": (ANALYTICS, "GetUsage"),
    "auth": (AUTH, "ListProfiles"),
    "project": (PROJECT, "ResolveProjects"),
    "team": (TEAM, "ResolveAccess"),
}
USER = a_user()


@pytest.fixture(scope="module")
async def served() -> AsyncIterator[Fleet]:
    async with fleet(*(service for service, _ in SERVED.values())) as running:
        yield running


def caller(served: Fleet, service: str = "gateway") -> tuple[str, str]:
    return "x-mindweave-caller", served.token(Principal("service", service=service))


def bearer(served: Fleet, principal: Principal) -> tuple[str, str]:
    return "authorization", f"Bearer {served.token(principal)}"


async def refused(served: Fleet, name: str, *metadata: tuple[str, str]) -> MindWeaveError:
    """The error of a call with this metadata, whose request is no message at all."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await served.bare(name, b"\xff\xff\xff", metadata)
    return error_of(raised.value)


async def seen(served: Fleet, service: str, method: str, *metadata: tuple[str, str]) -> Principal:
    """The principal that the handler saw of a call with this metadata and an empty request."""
    found: list[Principal] = []

    async def handle(request: Any, context: Any) -> Any:
        call = current_call()
        found.append(call.principal)
        call.authorized = True
        return operations()[f"/{service}/{method}"].response_class()

    served.handlers[service].on(method, handle)
    await served.bare(f"{service}/{method}", b"", metadata)
    return found[0]


@pytest.mark.parametrize("callee", SERVED)
@pytest.mark.parametrize("service", SERVICES)
async def test_every_pair_of_services_is_let_in_or_turned_away_as_the_table_says(
    served: Fleet, service: str, callee: str
) -> None:
    name = "/".join(SERVED[callee])
    error = await refused(served, name, caller(served, service), bearer(served, USER))
    if may_call(service, callee):
        assert error.status == 422
    else:
        assert (error.status, error.code) == (403, "caller_not_permitted")


async def test_a_call_that_no_service_makes_is_refused(served: Fleet) -> None:
    error = await refused(served, f"{TEAM}/ResolveAccess", bearer(served, USER))
    assert (error.status, error.code) == (401, "caller_unknown")


@pytest.mark.parametrize(
    "principal",
    [
        USER,
        a_user_key(uuid4(), ["org:read"]),
        a_project_key(uuid4(), uuid4(), ["events:write"]),
    ],
    ids=lambda principal: principal.kind,
)
async def test_the_token_of_a_person_or_a_key_is_no_callers(
    served: Fleet, principal: Principal
) -> None:
    shown = ("x-mindweave-caller", served.token(principal))
    error = await refused(served, f"{TEAM}/ResolveAccess", shown)
    assert (error.status, error.code) == (401, "caller_unknown")


async def test_a_token_that_another_made_is_no_callers(served: Fleet) -> None:
    forged = Signer().signed(Principal("service", service="gateway")).token
    error = await refused(served, f"{TEAM}/ResolveAccess", ("x-mindweave-caller", forged))
    assert (error.status, error.code) == (401, "caller_unknown")


async def test_the_token_of_one_service_does_not_open_what_another_may_call(
    served: Fleet,
) -> None:
    """Audit may not call project; it shows the token of its own all the same."""
    error = await refused(served, f"{PROJECT}/ResolveProjects", caller(served, "audit"))
    assert (error.status, error.code) == (403, "caller_not_permitted")


async def test_a_service_is_no_user_even_with_a_token_that_is_right(served: Fleet) -> None:
    service = bearer(served, Principal("service", service="scheduler"))
    error = await refused(served, f"{ACCOUNT}/ListOrgs", caller(served), service)
    assert (error.status, error.code) == (401, "unauthenticated")


@pytest.mark.parametrize("method", ["GetJwks", "IssueServiceToken"])
async def test_what_a_service_needs_before_it_has_a_token_needs_none(
    served: Fleet, method: str
) -> None:
    error = await refused(served, f"{AUTH}/{method}")
    assert error.status == 422


async def test_other_public_operations_are_called_by_services_alone(served: Fleet) -> None:
    assert (await refused(served, f"{AUTH}/Login")).status == 401
    assert (await refused(served, f"{AUTH}/Login", caller(served))).status == 422


@pytest.mark.parametrize(
    "offered",
    ["", "Bearer ", "Bearer nonsense", "nonsense", "Basic dXNlcjpwYXNz", "bearer x"],
)
async def test_a_credential_that_is_none_is_refused_even_where_none_is_needed(
    served: Fleet, offered: str
) -> None:
    for name in (f"{ACCOUNT}/ListOrgs", f"{AUTH}/Login"):
        error = await refused(served, name, caller(served), ("authorization", offered))
        assert error.status == 401


async def test_the_edge_acts_for_those_outside_and_never_for_itself(served: Fleet) -> None:
    error = await refused(served, f"{ACCOUNT}/ListOrgs", caller(served))
    assert error.status == 401
    internal = await seen(served, AUTH, "ListProfiles", caller(served))
    assert (internal.kind, internal.service) == ("service", "gateway")


async def test_a_service_that_calls_for_itself_is_the_principal(served: Fleet) -> None:
    found = await seen(served, TEAM, "ResolveAccess", caller(served, "alerts"))
    assert (found.kind, found.service, found.token) == ("service", "alerts", "")


async def test_a_user_is_the_principal_behind_whichever_service_calls(served: Fleet) -> None:
    found = await seen(
        served, TEAM, "ResolveAccess", caller(served, "alerts"), bearer(served, USER)
    )
    assert (found.kind, found.user_id) == ("user", USER.user_id)
    assert found.token


async def test_a_public_operation_is_called_by_nobody_in_particular(served: Fleet) -> None:
    assert (await seen(served, AUTH, "GetJwks")).kind == "anonymous"
    assert (await seen(served, AUTH, "GetJwks", caller(served))).kind == "anonymous"


async def test_what_a_call_says_of_itself_beside_the_token_is_ignored(served: Fleet) -> None:
    found = await seen(
        served,
        TEAM,
        "ResolveAccess",
        caller(served),
        bearer(served, USER),
        ("x-mindweave-user", "somebody-else"),
        ("x-mindweave-principal", "service:audit"),
        ("x-mindweave-roles", "owner"),
        ("x-mindweave-unheard-of", "1"),
    )
    assert found.user_id == USER.user_id


async def test_organizations_that_are_no_uuids_are_refused(served: Fleet) -> None:
    error = await refused(
        served,
        f"{ACCOUNT}/ListOrgs",
        caller(served, "analytics"),
        ("x-mindweave-acting-for", "everything"),
    )
    assert error.status == 401


async def test_the_credential_is_judged_before_the_shape_of_the_request(served: Fleet) -> None:
    name = f"{ACCOUNT}/GetOrg"
    assert (await refused(served, name)).status == 401
    assert (await refused(served, name, caller(served))).status == 401
    error = await refused(served, name, caller(served), bearer(served, USER))
    assert error.status == 422


async def test_while_no_credential_can_be_judged_nobody_is_called_a_stranger() -> None:
    async def down() -> Keys:
        raise Unavailable

    signer = Signer()
    async with fleet(AUTH, verifier=TokenVerifier(down, signer.issuer, signer.clock)) as served:
        error = await refused(served, f"{AUTH}/Login", caller(served))
    assert (error.status, error.code) == (503, "unavailable")
    assert error.retry_after == 1
