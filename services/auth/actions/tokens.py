"""Tokens that auth signs: of users' sessions, of API keys, of services."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from common.clock import Clock
from common.errors import Unauthenticated
from common.identity.call import Principal
from common.identity.callers import SERVICES
from services.auth.actions.signing_keys import KeyRing
from services.auth.domain.api_keys import ApiKey
from services.auth.domain.sessions import Session

SERVICE_TOKEN_FOR = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Issued:
    """A signed token and when it ends; ``expires_in`` is in seconds."""

    token: str = field(repr=False)
    expires_at: datetime
    expires_in: int


class TokenIssuer:
    """Signs tokens in the platform's name.

    Args:
        keys: signs.
        issuer: the claim ``iss``.
        access_ttl: how long an access token lasts, unless its session ends before.
        service_secret: what the service of a name shows to be given its token.
        clock: tells the time.
    """

    def __init__(
        self,
        keys: KeyRing,
        *,
        issuer: str,
        access_ttl: timedelta,
        service_secret: Callable[[str], str],
        clock: Clock,
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._access_ttl = access_ttl
        self._service_secret = service_secret
        self._clock = clock

    async def for_session(self, session: Session) -> Issued:
        """An access token."""
        principal = Principal("user", user_id=session.user_id, session_id=session.id)
        return await self._issue(
            principal, min(self._clock.now() + self._access_ttl, session.expires_at)
        )

    async def for_key(self, key: ApiKey, until: datetime) -> Issued:
        """The internal token that stands for an API key."""
        return await self._issue(key.principal(), until)

    async def for_service(self, service: str, secret: str) -> Issued:
        """A service's own token.

        Raises:
            Unauthenticated: there is no such service, or that is not its secret.
        """
        known = hmac.compare_digest(self._service_secret(service).encode(), secret.encode())
        if not known or service not in SERVICES:
            raise Unauthenticated("The service or its secret is wrong.")
        return await self._issue(
            Principal("service", service=service), self._clock.now() + SERVICE_TOKEN_FOR
        )

    async def _issue(self, principal: Principal, until: datetime) -> Issued:
        # Tokens count whole seconds.
        now, ends = self._clock.now().replace(microsecond=0), until.replace(microsecond=0)
        token = await self._keys.sign(principal, issuer=self._issuer, until=ends)
        return Issued(token, ends, max(int((ends - now).total_seconds()), 0))
