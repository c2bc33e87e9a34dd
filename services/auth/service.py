"""Composition root of auth."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from common.events.consumer import EventConsumer
from common.periodic import Periodic
from common.service import Parts, Runtime, Service
from common.settings import Settings, service_secret
from services.auth.actions.api_keys import ApiKeyActions
from services.auth.actions.limits import Limiter
from services.auth.actions.passwords import Passwords
from services.auth.actions.sessions import SessionActions
from services.auth.actions.signing_keys import KeyRing
from services.auth.actions.tokens import TokenIssuer
from services.auth.actions.upkeep import Upkeep
from services.auth.actions.users import UserActions, UserLimits
from services.auth.consumer import handlers
from services.auth.domain.limits import Limit
from services.auth.rpc import AuthServicer

LOOK_AT_KEYS_EVERY = timedelta(minutes=1)
SWEEP_EVERY = timedelta(minutes=10)


async def build(runtime: Runtime) -> Parts:
    settings, clock = runtime.settings, runtime.clock
    database = await runtime.database()
    passwords = Passwords()
    limiter = Limiter(runtime.cache, database, clock)
    ring = KeyRing(database, runtime.sealer, clock)
    tokens = TokenIssuer(
        ring,
        issuer=settings.issuer,
        access_ttl=timedelta(seconds=settings.access_token_ttl),
        service_secret=lambda name: service_secret(settings, name),
        clock=clock,
    )
    users = UserActions(database, passwords, limiter, _user_limits(settings), clock)
    sessions = SessionActions(
        database,
        passwords,
        limiter,
        tokens,
        failed_logins=_guesses(settings, "failed_logins"),
        ttl=timedelta(seconds=settings.refresh_token_ttl),
        clock=clock,
    )
    keys = ApiKeyActions(database, tokens, clock)
    upkeep = Upkeep(
        database,
        clock,
        attempts_kept=timedelta(seconds=max(settings.limits.failed_logins_seconds, 60)),
    )
    return Parts(
        servicers=[
            ("mindweave.auth.v1.AuthService", AuthServicer(users, sessions, keys, tokens, ring))
        ],
        serving=[Periodic("signing keys", ring.refresh, every=LOOK_AT_KEYS_EVERY)],
        tasks=[
            Periodic("upkeep", upkeep.sweep, every=SWEEP_EVERY),
            EventConsumer(bus=runtime.bus, db=database, handlers=handlers(keys)),
        ],
    )


def _user_limits(settings: Settings) -> UserLimits:
    return UserLimits(
        registrations=Limit(
            "registrations", settings.limits.registrations_per_minute, timedelta(minutes=1)
        ),
        password_changes=_guesses(settings, "password_changes"),
    )


def _guesses(settings: Settings, name: str) -> Limit:
    return Limit(
        name,
        settings.limits.failed_logins,
        timedelta(seconds=settings.limits.failed_logins_seconds),
    )


SERVICE = Service("auth", build, Path(__file__).parent / "migrations")
