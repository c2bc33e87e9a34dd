"""A service's own token, which says to others which service is calling."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from datetime import UTC, datetime, timedelta

from common.clock import Clock
from common.renewal import AHEAD, not_needed_yet
from mindweave.auth.v1.auth_pb2 import IssueServiceTokenRequest
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceStub

Issue = Callable[[], Awaitable[tuple[str, datetime]]]

_BETWEEN_TRIES = timedelta(seconds=1)


def issued_by(auth: AuthServiceStub, service: str, secret: str) -> Issue:
    """Asks auth for the token of ``service``, which shows its secret."""

    async def issue() -> tuple[str, datetime]:
        request = IssueServiceTokenRequest(service=service, secret=secret)
        answer = await auth.IssueServiceToken(request)
        return answer.token, answer.expires_at.ToDatetime(tzinfo=UTC)

    return issue


class ServiceTokens:
    """Keeps a service's token fresh.

    A new one is asked for when a third of its time is left; while auth cannot give one, the
    present token serves until it ends.

    Args:
        issue: gives a token and when it ends: ``issued_by`` auth, or auth's own signing.
        clock: tells when.
    """

    def __init__(self, issue: Issue, clock: Clock) -> None:
        self._issue = issue
        self._clock = clock
        self._token = ""
        self._fresh_until = self._expires = datetime.min.replace(tzinfo=UTC)
        self._tried: datetime | None = None
        self._asking: asyncio.Task[None] | None = None

    def fresh(self) -> str | None:
        """The token to show, where nothing has to be asked for it."""
        return self._token if self._clock.now() < self._fresh_until else None

    async def get(self) -> str:
        """The token to show.

        Raises:
            MindWeaveError: there is none, and auth cannot give one; mostly ``Unavailable``.
        """
        now = self._clock.now()
        if now < self._fresh_until:
            return self._token
        if now < self._expires:
            self._renew(now)
            return self._token
        # The call under way may end early; what it asks for is everyone's.
        await asyncio.shield(self._ask(now))
        return self._token

    def forget(self, token: str) -> None:
        """Ask anew the next time: a callee did not accept ``token``."""
        if token == self._token:
            self._fresh_until = self._expires = datetime.min.replace(tzinfo=UTC)

    def _renew(self, now: datetime) -> None:
        if self._tried is None or not timedelta() <= now - self._tried < _BETWEEN_TRIES:
            self._ask(now).add_done_callback(not_needed_yet)

    def _ask(self, now: datetime) -> asyncio.Task[None]:
        if self._asking is None or self._asking.done():
            self._tried = now
            self._asking = asyncio.create_task(self._store(now), context=Context())
        return self._asking

    async def _store(self, now: datetime) -> None:
        self._token, self._expires = await self._issue()
        self._fresh_until = now + (self._expires - now) * AHEAD
