"""Limits on attempts: in the cache, without it, and in a race."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from common.clock import ManualClock
from common.database import Database, Scope
from common.errors import Unavailable
from common.identity.sealing import Sealer
from common.testing import silent_telemetry
from services.auth.actions.limits import Limiter
from services.auth.actions.upkeep import Upkeep
from services.auth.domain.limits import Limit, TooManyAttempts
from services.auth.domain.users import InvalidCredentials

pytestmark = pytest.mark.store

GUESSES = Limit("guesses", 10, timedelta(minutes=5))


@pytest.fixture
async def no_cache() -> AsyncIterator[Redis]:
    """A cache that is down: nothing listens there."""
    cache = Redis.from_url("redis://127.0.0.1:1", retry=Retry(NoBackoff(), 0))
    yield cache
    await cache.aclose()


@pytest.fixture(params=["cached", "stored"])
def any_cache(request: pytest.FixtureRequest, cache: Redis, no_cache: Redis) -> Redis:
    """A cache that is up, and one that is down."""
    return cache if request.param == "cached" else no_cache


@pytest.fixture
def limiter(any_cache: Redis, database: Database, clock: ManualClock) -> Limiter:
    return Limiter(any_cache, database, clock)


@pytest.fixture
def subject() -> str:
    return uuid4().hex


async def guess_wrong(limiter: Limiter, subject: str) -> str:
    try:
        async with limiter.guess(GUESSES, subject):
            await asyncio.sleep(0)
            raise InvalidCredentials
    except InvalidCredentials:
        return "judged"
    except TooManyAttempts:
        return "refused"


async def test_the_eleventh_wrong_guess_is_not_judged(limiter: Limiter, subject: str) -> None:
    guesses = [await guess_wrong(limiter, subject) for _ in range(12)]
    assert guesses == ["judged"] * 10 + ["refused"] * 2


async def test_parallel_guesses_do_not_beat_the_limit(limiter: Limiter, subject: str) -> None:
    guesses = await asyncio.gather(*(guess_wrong(limiter, subject) for _ in range(40)))
    assert guesses.count("judged") == 10


async def test_parallel_guesses_at_two_processes_do_not_beat_the_limit(
    any_cache: Redis, database: Database, clock: ManualClock, subject: str
) -> None:
    processes = [Limiter(any_cache, database, clock) for _ in range(2)]
    guesses = await asyncio.gather(
        *(guess_wrong(process, subject) for process in processes for _ in range(20))
    )
    assert guesses.count("judged") == 10


async def test_a_refusal_says_when_to_come_back(
    limiter: Limiter, subject: str, clock: ManualClock
) -> None:
    for _ in range(10):
        await guess_wrong(limiter, subject)
    clock.advance(timedelta(minutes=4))
    with pytest.raises(TooManyAttempts) as refused:
        await limiter.count(GUESSES, subject)
    assert refused.value.retry_after == pytest.approx(60)
    clock.advance(timedelta(minutes=1))
    assert await guess_wrong(limiter, subject) == "judged"


async def test_a_right_guess_forgets_the_wrong_ones(limiter: Limiter, subject: str) -> None:
    for _ in range(9):
        await guess_wrong(limiter, subject)
    async with limiter.guess(GUESSES, subject):
        pass
    assert [await guess_wrong(limiter, subject) for _ in range(11)].count("judged") == 10


async def test_right_guesses_at_once_do_not_use_up_the_limit(
    limiter: Limiter, subject: str
) -> None:
    async def guess_right() -> None:
        async with limiter.guess(GUESSES, subject):
            await asyncio.sleep(0)

    await asyncio.gather(*(guess_right() for _ in range(30)))


async def test_a_guess_that_was_not_judged_does_not_count(limiter: Limiter, subject: str) -> None:
    for _ in range(20):
        with pytest.raises(Unavailable):
            async with limiter.guess(GUESSES, subject):
                raise Unavailable
    assert await guess_wrong(limiter, subject) == "judged"


async def test_a_guess_that_is_given_up_counts(limiter: Limiter, subject: str) -> None:
    async def given_up() -> None:
        async with limiter.guess(GUESSES, subject):
            raise asyncio.CancelledError

    for _ in range(10):
        with pytest.raises(asyncio.CancelledError):
            await given_up()
    assert await guess_wrong(limiter, subject) == "refused"


async def test_one_subject_s_guesses_are_not_another_s(limiter: Limiter, subject: str) -> None:
    for _ in range(10):
        await guess_wrong(limiter, subject)
    assert await guess_wrong(limiter, uuid4().hex) == "judged"
    await limiter.count(Limit("registrations", 1, timedelta(minutes=1)), subject)


async def test_neither_the_cache_nor_the_database_keeps_an_address(
    cache: Redis, no_cache: Redis, database: Database, clock: ManualClock
) -> None:
    await Limiter(cache, database, clock).count(GUESSES, "ada@example.org")
    await Limiter(no_cache, database, clock).count(GUESSES, "ada@example.org")
    async with database.read(Scope()) as connection:
        stored = await connection.fetchval("SELECT string_agg(subject, ' ') FROM attempts")
    names = b" ".join([name async for name in cache.scan_iter("auth:*")])
    assert "example" not in stored
    assert b"example" not in names


async def test_a_cache_that_fails_lifts_no_limit(
    cache: Redis, no_cache: Redis, database: Database, clock: ManualClock, subject: str
) -> None:
    before = Limiter(cache, database, clock)
    after = Limiter(no_cache, database, clock)
    guesses = [await guess_wrong(before, subject) for _ in range(12)]
    guesses += [await guess_wrong(after, subject) for _ in range(40)]
    assert guesses.count("judged") == 20


async def test_a_cache_that_is_silent_counts_as_down(
    database: Database, clock: ManualClock, subject: str
) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    silent = Redis.from_url(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    limiter = Limiter(silent, database, clock)
    limit = Limit("guesses", 1, GUESSES.window)
    await limiter.count(limit, subject)
    with pytest.raises(TooManyAttempts):
        await limiter.count(limit, subject)
    await silent.aclose()
    server.close()
    await server.wait_closed()


async def test_without_cache_and_database_nothing_is_judged(
    no_cache: Redis, clock: ManualClock, subject: str
) -> None:
    nowhere = "postgresql://auth:secret@127.0.0.1:1/auth"
    database = await Database.open(
        nowhere,
        name="auth",
        size=2,
        clock=clock,
        sealer=Sealer(b"x" * 32),
        telemetry=silent_telemetry(),
    )
    with pytest.raises(Unavailable):
        await guess_wrong(Limiter(no_cache, database, clock), subject)
    await database.close()


async def test_what_no_window_reaches_is_removed(
    no_cache: Redis, database: Database, clock: ManualClock, subject: str
) -> None:
    await Limiter(no_cache, database, clock).count(GUESSES, subject)
    upkeep = Upkeep(database, clock, attempts_kept=GUESSES.window)

    async def kept() -> int:
        await upkeep.sweep()
        async with database.read(Scope()) as connection:
            count: int = await connection.fetchval("SELECT count(*) FROM attempts")
            return count

    assert await kept() >= 1
    clock.advance(GUESSES.window + timedelta(seconds=1))
    assert await kept() == 0
