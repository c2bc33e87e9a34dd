"""Credentials, and the answers of auth that are kept for seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from google.protobuf.message import Message
from starlette.datastructures import Headers

from common.clock import ManualClock
from common.errors import (
    DeadlineExceeded,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from common.events.bus import Bus, Handler, Record
from common.events.envelope import encode, envelope_for
from common.http.credentials import PLATFORM_EVENTS, Credentials
from common.http.freshness import FreshCache, Noted
from common.identity.api_keys import new_secret
from common.identity.call import Principal
from common.testing import Signer, a_project_key, a_user
from mindweave.auth.v1.auth_pb2 import (
    CheckSessionResponse,
    ExchangeApiKeyResponse,
)
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceStub
from mindweave.auth.v1.events_pb2 import ApiKeyRevoked, UserLogin, UserSessionInvalid
from tests.common.waiting import eventually

pytestmark = pytest.mark.unit

KEY = new_secret("project")


class Hands:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Auth:
    """auth, as far as the edge asks it; ``fault`` is raised instead of an answer."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self.fault: Exception | None = None
        self.keys: dict[str, Principal] = {}
        self.asked: list[Any] = []
        self.gate: asyncio.Event | None = None

    def __getattr__(self, method: str) -> Any:
        async def call(request: Any, **given: float) -> Message:
            assert given["timeout"] > 0
            self.asked.append(request)
            if self.gate is not None:
                await self.gate.wait()
            if self.fault is not None:
                raise self.fault
            if method == "CheckSession":
                return CheckSessionResponse()
            signed = self._signer.signed(self.keys[request.key], timedelta(seconds=60))
            return ExchangeApiKeyResponse(token=signed.token)

        return call


class Guesses:
    """Counts wrong credentials up to a limit."""

    def __init__(self) -> None:
        self.counted, self.most = 0, 1000

    def check(self) -> None:
        if self.counted >= self.most:
            raise RateLimited

    def count(self) -> None:
        self.counted += 1


class Edge:
    """Credentials in front of ``Auth``, with hands to turn."""

    def __init__(self) -> None:
        self.clock = ManualClock(datetime(2026, 3, 1, tzinfo=UTC))
        self.hands = Hands()
        self.signer = Signer(self.clock)
        self.auth = Auth(self.signer)
        self.credentials = Credentials(
            self.signer.verifier(), cast(AuthServiceStub, self.auth), self.hands
        )
        self.guesses = Guesses()
        self.user = self.signer.signed(a_user())

    def advance(self, seconds: float) -> None:
        self.hands.now += seconds
        self.clock.advance(timedelta(seconds=seconds))

    async def of_user(self) -> Principal:
        return await self.principal("Authorization", f"Bearer {self.user.token}")

    async def of_key(self) -> Principal:
        return await self.principal("X-API-Key", KEY)

    async def principal(self, name: str, value: str) -> Principal:
        return await self.credentials.principal(Headers({name: value}), self.guesses)


async def test_a_session_is_asked_for_once_in_three_seconds() -> None:
    edge = Edge()
    assert (await edge.of_user()).user_id == edge.user.user_id
    edge.advance(2.9)
    await edge.of_user()
    assert len(edge.auth.asked) == 1
    edge.advance(0.2)
    await edge.of_user()
    assert [UUID(a.session_id) for a in edge.auth.asked] == [edge.user.session_id] * 2


async def test_many_requests_at_once_ask_once() -> None:
    edge = Edge()
    edge.auth.gate = asyncio.Event()
    waiting = [asyncio.create_task(edge.of_user()) for _ in range(20)]
    await asyncio.sleep(0.01)
    edge.auth.gate.set()
    await asyncio.gather(*waiting)
    assert len(edge.auth.asked) == 1


async def test_a_request_that_is_given_up_takes_nothing_from_the_others() -> None:
    edge = Edge()
    edge.auth.gate = asyncio.Event()
    first, second = (asyncio.create_task(edge.of_user()) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    edge.auth.gate.set()
    assert (await second).user_id == edge.user.user_id


@pytest.mark.parametrize("fault", [Unavailable(), DeadlineExceeded()])
async def test_a_session_stands_for_a_minute_while_auth_is_down(fault: Exception) -> None:
    edge = Edge()
    await edge.of_user()
    edge.auth.fault = fault
    edge.advance(59)
    assert (await edge.of_user()).user_id == edge.user.user_id
    edge.advance(2)
    with pytest.raises(type(fault)):
        await edge.of_user()


async def test_an_unknown_session_does_not_stand_while_auth_is_down() -> None:
    edge = Edge()
    edge.auth.fault = Unavailable()
    with pytest.raises(Unavailable):
        await edge.of_user()


async def test_a_session_that_has_ended_ends_at_the_next_question() -> None:
    edge = Edge()
    await edge.of_user()
    edge.auth.fault = NotFound()
    edge.advance(5)
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            await edge.of_user()
    edge.auth.fault = Unavailable()
    with pytest.raises(Unauthenticated):
        await edge.of_user()
    edge.advance(60)
    with pytest.raises(Unavailable):
        await edge.of_user()


async def test_a_session_belongs_to_one_user() -> None:
    edge = Edge()
    await edge.of_user()
    other = edge.signer.signed(a_user(session_id=edge.user.session_id))
    with pytest.raises(Unauthenticated):
        await edge.principal("Authorization", f"Bearer {other.token}")


async def test_an_api_key_is_exchanged_once_in_three_seconds() -> None:
    edge = Edge()
    edge.auth.keys[KEY] = a_project_key(uuid4(), uuid4(), ["events:write"])
    first = await edge.of_key()
    assert first.kind == "project_key"
    assert first.scopes == frozenset({"events:write"})
    edge.advance(2)
    assert (await edge.of_key()).token == first.token
    edge.advance(1)
    assert (await edge.of_key()).token != first.token


async def test_an_api_key_stands_while_auth_is_down_and_never_turns_into_a_401() -> None:
    edge = Edge()
    edge.auth.keys[KEY] = a_project_key(uuid4(), uuid4(), ["events:write"])
    await edge.of_key()
    edge.auth.fault = Unavailable()
    edge.advance(54)
    assert (await edge.of_key()).kind == "project_key"
    for _ in range(6):
        edge.advance(1)
        with pytest.raises(Unavailable):
            await edge.of_key()


async def test_what_does_not_look_like_a_key_is_not_asked_for() -> None:
    edge = Edge()
    mistyped = KEY[:-1] + ("0" if KEY[-1] != "0" else "1")
    for key in ("mwp_short", "mwu_" + KEY[4:], mistyped, KEY + "0", KEY[:-1] + "\xe9"):
        with pytest.raises(Unauthenticated):
            await edge.principal("X-API-Key", key)
    assert edge.auth.asked == []
    assert edge.guesses.counted == 0


async def test_what_was_refused_is_refused_again_without_a_question_and_counts_once() -> None:
    edge = Edge()
    edge.auth.fault = NotFound()
    for _ in range(5):
        for attempt in (edge.of_key, edge.of_user):
            with pytest.raises(Unauthenticated):
                await attempt()
        edge.advance(10)
    assert len(edge.auth.asked) == edge.guesses.counted == 2


async def test_nothing_is_asked_for_a_place_that_guesses_but_of_credentials_that_are_known() -> (
    None
):
    edge = Edge()
    edge.auth.keys[KEY] = a_project_key(uuid4(), uuid4(), ["events:write"])
    for known in (edge.of_key, edge.of_user):
        await known()
    edge.guesses.most = 0
    edge.advance(5)
    for known in (edge.of_key, edge.of_user):
        await known()
    stranger = edge.signer.signed(a_user())
    asked = len(edge.auth.asked)
    assert asked == 4
    for name, value in (
        ("X-API-Key", new_secret("user")),
        ("Authorization", f"Bearer {stranger.token}"),
    ):
        with pytest.raises(RateLimited):
            await edge.principal(name, value)
    assert len(edge.auth.asked) == asked


async def test_any_number_of_strangers_leaves_calls_for_those_who_are_known() -> None:
    edge = Edge()
    edge.auth.gate = asyncio.Event()
    strangers = [
        asyncio.create_task(edge.principal("X-API-Key", new_secret("user"))) for _ in range(300)
    ]
    await eventually(lambda: len(edge.auth.asked) == 100)
    edge.auth.fault = NotFound()
    edge.guesses.most = 100
    edge.auth.gate.set()
    ended = await asyncio.gather(*strangers, return_exceptions=True)
    assert [type(e) for e in ended] == [Unauthenticated] * 100 + [RateLimited] * 200
    assert len(edge.auth.asked) == 100


def test_only_so_much_is_noted_and_for_so_long() -> None:
    hands = Hands()
    noted: Noted[int] = Noted(seconds=60, now=hands, capacity=2)
    for key in (1, 2, 1, 3):
        noted.add(key)
    assert [key in noted for key in (1, 2, 3)] == [True, False, True]
    hands.now += 60
    assert 3 not in noted


class TailBus:
    """A bus that remembers who listens."""

    def __init__(self) -> None:
        self.tails: list[tuple[Sequence[str], Handler]] = []

    def tail(self, topics: Sequence[str], handler: Handler) -> None:
        self.tails.append((topics, handler))


async def heard(edge: Edge, message: Message) -> None:
    bus = TailBus()
    edge.credentials.listen(cast(Bus, bus))
    [(topics, handler)] = bus.tails
    assert topics == [PLATFORM_EVENTS]
    value = encode(envelope_for(message, "auth", edge.clock))
    await handler(Record(PLATFORM_EVENTS, 0, "1", "", value, {}))


async def test_the_end_of_a_session_is_heard_at_once() -> None:
    edge = Edge()
    await edge.of_user()
    edge.auth.fault = NotFound()
    user, session = str(edge.user.user_id), str(edge.user.session_id)
    await heard(edge, UserLogin(user_id=user, session_id=session))
    other = UserSessionInvalid(user_id=user, session_id=str(uuid4()), reason="ended")
    await heard(edge, other)
    await edge.of_user()
    await heard(edge, UserSessionInvalid(user_id=user, session_id=session, reason="ended"))
    with pytest.raises(Unauthenticated):
        await edge.of_user()


async def test_the_revocation_of_a_key_is_heard_at_once() -> None:
    edge = Edge()
    principal = edge.auth.keys[KEY] = a_project_key(uuid4(), uuid4(), ["events:write"])
    await edge.of_key()
    edge.auth.fault = NotFound()
    await heard(edge, ApiKeyRevoked(api_key_id=str(uuid4())))
    await edge.of_key()
    await heard(edge, ApiKeyRevoked(api_key_id=str(principal.api_key_id)))
    with pytest.raises(Unauthenticated):
        await edge.of_key()


async def test_an_answer_on_its_way_is_not_kept_when_its_subject_has_ended_meanwhile() -> None:
    edge = Edge()
    edge.auth.gate = asyncio.Event()
    early = asyncio.create_task(edge.of_user())
    await asyncio.sleep(0.01)
    edge.credentials.forget(session_id=edge.user.session_id)
    edge.auth.gate.set()
    await early
    await edge.of_user()
    assert len(edge.auth.asked) == 2


async def test_only_so_many_answers_are_kept() -> None:
    asked: list[int] = []
    cache: FreshCache[int, int] = FreshCache(fresh=5, stale=60, now=Hands(), capacity=2)

    def ask(key: int) -> Callable[[], Awaitable[int]]:
        async def answer() -> int:
            asked.append(key)
            return key

        return answer

    for key in (1, 2, 3, 3, 2, 1):
        assert await cache.get(key, ask(key)) == key
    assert asked == [1, 2, 3, 1]


async def test_an_answer_in_use_is_asked_for_again_before_its_time_is_over() -> None:
    hands, asked = Hands(), 0
    cache: FreshCache[str, int] = FreshCache(fresh=3, stale=60, now=hands)

    async def ask() -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        if asked == 2:
            raise Unavailable("down")
        return asked

    assert await cache.get("key", ask) == 1
    hands.now += 2
    for question in (2, 3):
        assert await cache.get("key", ask) == 1
        await eventually(lambda question=question: asked == question)
    await asyncio.sleep(0)
    hands.now += 1.5
    assert await cache.get("key", ask) == 3
    assert asked == 3
