"""Keys that sign, through their whole life, and two processes that start at once."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from jwt import get_unverified_header

from common.clock import ManualClock, SystemClock
from common.database import Database, Scope
from common.errors import Unauthenticated
from common.identity.call import Principal
from common.identity.sealing import SealBroken, Sealer
from common.identity.tokens import Keys, TokenVerifier
from common.settings import Settings
from fleet.signing import rotate_signing_key
from services.auth.actions.signing_keys import KeyRing
from services.auth.domain.signing_keys import LEAD, OVERLAP, ROTATE_AFTER
from services.auth.store.signing_keys import SigningKeyStore

pytestmark = pytest.mark.store

ISSUER = "https://mindweave.test"
TTL = timedelta(minutes=15)


@pytest.fixture(autouse=True)
async def without_keys(database: Database) -> None:
    async with database.change(Scope(), call=None) as change:
        await change.connection.execute("DELETE FROM signing_keys")


def a_ring(database: Database, clock: ManualClock) -> KeyRing:
    return KeyRing(database, database.sealer, clock)


def a_verifier(ring: KeyRing, clock: ManualClock) -> TokenVerifier:
    async def published() -> Keys:
        return {key.kid: key.public for key in await ring.published()}

    return TokenVerifier(published, ISSUER, clock)


async def sign(ring: KeyRing, until: datetime) -> str:
    principal = Principal("user", user_id=uuid4(), session_id=uuid4())
    return await ring.sign(principal, issuer=ISSUER, until=until)


async def kids(ring: KeyRing) -> list[str]:
    return [key.kid for key in await ring.published()]


async def test_two_processes_that_start_at_once_agree_on_one_key(
    database: Database, clock: ManualClock
) -> None:
    rings = [a_ring(database, clock) for _ in range(4)]
    tokens = await asyncio.gather(*(sign(ring, clock.now() + TTL) for ring in rings))
    assert len({tuple(await kids(ring)) for ring in rings}) == 1
    for token in tokens:
        await a_verifier(rings[0], clock).verify(token)


async def test_a_key_survives_a_restart(database: Database, clock: ManualClock) -> None:
    token = await sign(a_ring(database, clock), clock.now() + TTL)
    await a_verifier(a_ring(database, clock), clock).verify(token)


async def test_a_key_is_published_before_it_signs_and_after(
    database: Database, clock: ManualClock
) -> None:
    ring, other = a_ring(database, clock), a_ring(database, clock)
    await ring.refresh()
    await other.refresh()
    (first,) = await kids(ring)

    clock.advance(ROTATE_AFTER - LEAD)
    old_token = await sign(ring, clock.now() + TTL)
    await asyncio.gather(ring.refresh(), other.refresh())
    assert await kids(ring) == await kids(other)
    assert (await kids(ring))[0] == first
    assert len(await kids(ring)) == 2
    await a_verifier(ring, clock).verify(old_token)

    clock.advance(LEAD - timedelta(seconds=1))
    last_token = await sign(ring, clock.now() + TTL)
    clock.advance(timedelta(seconds=1))
    new_token = await sign(ring, clock.now() + TTL)
    verifier = a_verifier(other, clock)
    await verifier.verify(last_token)
    await verifier.verify(new_token)

    clock.advance(OVERLAP)
    await asyncio.gather(ring.refresh(), other.refresh())
    assert first not in await kids(ring)
    assert await kids(ring) == await kids(other)
    async with database.read(Scope()) as connection:
        assert await connection.fetchval("SELECT count(*) FROM signing_keys") == 1


async def test_until_when_the_newest_key_signs_is_shown(
    database: Database, clock: ManualClock
) -> None:
    def due() -> float | None:
        registry = database.telemetry.metrics.registry
        return registry.get_sample_value("mindweave_signing_key_due_seconds", {"service": "auth"})

    ring, first = a_ring(database, clock), clock.now()
    await ring.refresh()
    assert due() == (first + ROTATE_AFTER).timestamp()
    clock.advance(ROTATE_AFTER - LEAD)
    await ring.refresh()
    assert due() == (first + 2 * ROTATE_AFTER).timestamp()


async def test_a_token_under_a_key_of_nobody_is_refused(
    database: Database, clock: ManualClock
) -> None:
    token = await sign(a_ring(database, clock), clock.now() + TTL)
    async with database.change(Scope(), call=None) as change:
        await change.connection.execute("DELETE FROM signing_keys")
    with pytest.raises(Unauthenticated):
        await a_verifier(a_ring(database, clock), clock).verify(token)


async def test_the_private_half_is_stored_sealed(database: Database, clock: ManualClock) -> None:
    ring = a_ring(database, clock)
    await ring.refresh()
    async with database.read(Scope()) as connection:
        (key,) = await SigningKeyStore(connection, database.sealer).list_all()
        sealed = await connection.fetchval("SELECT sealed FROM signing_keys")
        assert key.private.private_bytes_raw() not in sealed
        with pytest.raises(SealBroken):
            await SigningKeyStore(connection, Sealer(b"x" * 32)).list_all()


async def test_a_key_before_its_time_changes_nothing_for_those_who_hold_tokens(
    database: Database, clock: ManualClock
) -> None:
    ring = a_ring(database, clock)
    token = await sign(ring, clock.now() + TTL)
    made = await ring.rotate(at_once=False)
    assert made.kid in await kids(ring)
    before = await sign(ring, clock.now() + TTL)
    assert get_unverified_header(before)["kid"] == get_unverified_header(token)["kid"] != made.kid
    clock.advance(LEAD)
    await ring.refresh()
    assert get_unverified_header(await sign(ring, clock.now() + TTL))["kid"] == made.kid


async def test_after_a_theft_nothing_counts_that_was_signed_before(
    database: Database, clock: ManualClock
) -> None:
    ring, other = a_ring(database, clock), a_ring(database, clock)
    stolen = await sign(other, clock.now() + TTL)
    made = await ring.rotate(at_once=True)
    await other.refresh()
    for each in (ring, other):
        assert await kids(each) == [made.kid]
        await a_verifier(each, clock).verify(await sign(each, clock.now() + TTL))
        with pytest.raises(Unauthenticated):
            await a_verifier(each, clock).verify(stolen)


async def test_the_command_makes_the_next_key(
    database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = KeyRing(database, database.sealer, SystemClock())
    (first,) = await kids(ring)
    monkeypatch.setenv("MINDWEAVE_SECRET", settings.secret)
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("REDIS_URL", settings.redis_url)
    told: list[str] = []
    for at_once in (False, True):
        rotate = partial(rotate_signing_key, tmp_path, at_once=at_once, tell=told.append)
        await asyncio.to_thread(rotate)
    await ring.refresh()
    found = await kids(ring)
    assert len(told) == 2
    assert first not in found
    assert [line.split()[0] for line in told][-1:] == found
