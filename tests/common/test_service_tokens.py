"""A service's own token: asked for once, renewed in time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from common.clock import ManualClock
from common.errors import Unavailable
from common.identity.service_tokens import ServiceTokens, issued_by
from mindweave.auth.v1.auth_pb2 import IssueServiceTokenResponse
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceStub

pytestmark = pytest.mark.unit

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TTL = timedelta(minutes=10)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


class Issuing:
    """Gives tokens of ten minutes, and may be down."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.asked = 0
        self.down = False

    async def issue(self) -> tuple[str, datetime]:
        self.asked += 1
        await asyncio.sleep(0)
        if self.down:
            raise Unavailable
        return f"token {self.asked}", self.clock.now() + TTL


@pytest.fixture
def issuing(clock: ManualClock) -> Issuing:
    return Issuing(clock)


@pytest.fixture
def tokens(issuing: Issuing, clock: ManualClock) -> ServiceTokens:
    return ServiceTokens(issuing.issue, clock)


async def test_a_service_asks_for_its_token_once(tokens: ServiceTokens, issuing: Issuing) -> None:
    assert tokens.fresh() is None
    given = await asyncio.gather(*(tokens.get() for _ in range(5)))
    assert set(given) == {"token 1"}
    assert tokens.fresh() == "token 1"
    assert issuing.asked == 1


async def test_a_token_is_renewed_before_it_ends_and_serves_meanwhile(
    tokens: ServiceTokens, clock: ManualClock, issuing: Issuing
) -> None:
    await tokens.get()
    clock.advance(TTL * 0.7)
    assert await tokens.get() == "token 1"
    await asyncio.sleep(0.01)
    assert await tokens.get() == "token 2"
    assert issuing.asked == 2


async def test_while_auth_is_down_the_token_serves_until_it_ends(
    tokens: ServiceTokens, clock: ManualClock, issuing: Issuing
) -> None:
    await tokens.get()
    issuing.down = True
    clock.advance(TTL * 0.7)
    for _ in range(3):
        assert await tokens.get() == "token 1"
        await asyncio.sleep(0.01)
    assert issuing.asked == 2
    clock.advance(TTL)
    with pytest.raises(Unavailable):
        await tokens.get()
    issuing.down = False
    assert await tokens.get() == "token 4"


async def test_an_error_that_nobody_expected_while_renewing_is_not_swallowed(
    clock: ManualClock,
) -> None:
    answers: list[Any] = [("token", START + TTL), ValueError("broken")]

    async def issue() -> tuple[str, datetime]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return cast(tuple[str, datetime], answer)

    tokens, told = ServiceTokens(issue, clock), list[dict[str, Any]]()
    await tokens.get()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    clock.advance(TTL * 0.7)
    assert await tokens.get() == "token"
    await asyncio.sleep(0.01)
    loop.set_exception_handler(None)
    assert [str(context["exception"]) for context in told] == ["broken"]


async def test_one_caller_that_gives_up_does_not_take_the_token_from_the_others(
    tokens: ServiceTokens,
) -> None:
    hasty, patient = asyncio.create_task(tokens.get()), asyncio.create_task(tokens.get())
    await asyncio.sleep(0)
    hasty.cancel()
    assert await patient == "token 1"


async def test_a_token_that_a_callee_refuses_is_asked_for_anew(tokens: ServiceTokens) -> None:
    refused = await tokens.get()
    tokens.forget("another")
    assert tokens.fresh() == refused
    tokens.forget(refused)
    assert await tokens.get() == "token 2"


async def test_auth_is_shown_the_services_name_and_secret() -> None:
    shown: list[Any] = []

    async def issue_service_token(request: Any) -> Any:
        shown.append((request.service, request.secret))
        answer = IssueServiceTokenResponse(token="given")
        answer.expires_at.FromDatetime(START)
        return answer

    stub = SimpleNamespace(IssueServiceToken=issue_service_token)
    issue = issued_by(cast(AuthServiceStub, stub), "team", "the secret")
    assert await issue() == ("given", START)
    assert shown == [("team", "the secret")]
