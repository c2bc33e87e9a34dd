"""Credentials of requests: access tokens and API keys, checked with auth."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Protocol, TypeVar
from uuid import UUID

from starlette.datastructures import Headers

from common.errors import NotFound, Unauthenticated
from common.events.bus import Bus, Record, Subscription
from common.events.envelope import decode, message_of
from common.http.freshness import FreshCache, Noted
from common.identity.api_keys import is_well_formed
from common.identity.call import Principal
from common.identity.tokens import TokenVerifier
from mindweave.auth.v1.auth_pb2 import CheckSessionRequest, ExchangeApiKeyRequest
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceStub
from mindweave.auth.v1.events_pb2 import ApiKeyRevoked, UserSessionInvalid

PLATFORM_EVENTS = "platform.events"

_FRESH_SECONDS = 3.0
_STALE_SECONDS = 60.0
# The token of a key lasts 60 s, and those whom it is shown to need some of them.
_KEY_STALE_SECONDS = 55.0
_ASK_SECONDS = 2.0
# What has ended or was never made does not become valid.
_REFUSED_SECONDS = 60.0
# Credentials that nothing is known of and that auth is asked for at the same time: far fewer calls
# than may be open, so that those who are known are served beside any number of strangers.
_STRANGERS = 100

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Guesses(Protocol):
    """Credentials from one place that turned out to be none."""

    def check(self) -> None:
        """Raises ``RateLimited`` where there were so many that no more are looked up."""

    def count(self) -> None:
        """There was one more."""


class Credentials:
    """Tells who sends a request, from its header fields alone.

    A session is asked for at auth every 3 s at most, and stands for 60 s while auth is down; an API
    key is exchanged for a token of its own, which is used for 3 s, and for 55 s while auth is down.
    Both are forgotten when an event says that they ended. One that auth does not know is refused
    for a minute without asking again; one that is no key by its form, always.

    Args:
        verifier: of access tokens.
        auth: checks sessions and exchanges keys.
        now: seconds that only grow, for the age of answers.
    """

    def __init__(
        self,
        verifier: TokenVerifier,
        auth: AuthServiceStub,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._verifier, self._auth = verifier, auth
        self._sessions: FreshCache[UUID, UUID] = FreshCache(
            fresh=_FRESH_SECONDS, stale=_STALE_SECONDS, now=now
        )
        self._keys: FreshCache[bytes, Principal] = FreshCache(
            fresh=_FRESH_SECONDS, stale=_KEY_STALE_SECONDS, now=now
        )
        self._refused: Noted[Hashable] = Noted(seconds=_REFUSED_SECONDS, now=now)
        self._strangers = asyncio.Semaphore(_STRANGERS)

    async def principal(self, headers: Headers, guesses: Guesses) -> Principal:
        """The caller; ``guesses`` are those of the address that the request comes from.

        Raises:
            Unauthenticated: no credential, more than one, or one that is not valid now.
            RateLimited: nothing is known of it, and the address has guessed too often.
            Unavailable: auth cannot be asked, and no answer of before stands in.
        """
        credential, is_key = _offered(headers)
        if is_key:
            return await self._of_key(credential, guesses)
        return await self._of_token(credential, guesses)

    async def _of_token(self, token: str, guesses: Guesses) -> Principal:
        principal = await self._verifier.verify(token)
        user, session = principal.user_id, principal.session_id
        if principal.kind != "user" or user is None or session is None:
            raise Unauthenticated("This token is not an access token of a user.")

        async def check() -> UUID:
            request = CheckSessionRequest(session_id=str(session), user_id=str(user))
            await self._auth.CheckSession(request, timeout=_ASK_SECONDS)
            return user

        try:
            owner = await self._answer(
                self._sessions, session, check, guesses, refusal=(session, user)
            )
        except NotFound:
            raise Unauthenticated("The session has ended.", code="session_ended") from None
        if owner != user:
            raise Unauthenticated
        return principal

    async def _of_key(self, key: str, guesses: Guesses) -> Principal:
        if not is_well_formed(key):
            raise _unknown_key()

        async def exchange() -> Principal:
            request = ExchangeApiKeyRequest(key=key)
            answer = await self._auth.ExchangeApiKey(request, timeout=_ASK_SECONDS)
            return await self._verifier.verify(answer.token)

        try:
            digest = _digest(key)
            principal = await self._answer(self._keys, digest, exchange, guesses, refusal=digest)
        except NotFound:
            raise _unknown_key() from None
        # It may have been kept until past its end: then this says so.
        return await self._verifier.verify(principal.token)

    async def _answer(
        self,
        cache: FreshCache[K, V],
        key: K,
        ask: Callable[[], Awaitable[V]],
        guesses: Guesses,
        *,
        refusal: Hashable,
    ) -> V:
        """What auth says, unless it has refused the same; ``NotFound`` where it refuses."""
        if refusal in self._refused:
            raise NotFound
        try:
            if cache.knows(key):
                return await cache.get(key, ask)
            async with self._strangers:
                guesses.check()
                return await cache.get(key, ask)
        except NotFound:
            if refusal not in self._refused:
                self._refused.add(refusal)
                guesses.count()
            raise

    def forget(self, *, session_id: UUID | None = None, api_key_id: UUID | None = None) -> None:
        """Ask auth anew about a session or a key."""
        if session_id is not None:
            self._sessions.forget(session_id)
        if api_key_id is not None:
            self._keys.forget_values(lambda known: known.api_key_id == api_key_id)

    def listen(self, bus: Bus) -> Subscription:
        """Forgets what an event says has ended, while it runs."""
        return bus.tail([PLATFORM_EVENTS], self._heard)

    async def _heard(self, record: Record) -> None:
        envelope = decode(record.value)
        if envelope.type not in ("api_key.revoked", "user.session.invalid"):
            return
        ended = message_of(envelope)
        if isinstance(ended, ApiKeyRevoked):
            self.forget(api_key_id=UUID(ended.api_key_id))
        elif isinstance(ended, UserSessionInvalid):
            self.forget(session_id=UUID(ended.session_id))


def _offered(headers: Headers) -> tuple[str, bool]:
    """The one credential of the request, and whether it is an API key."""
    bearers, keys = headers.getlist("authorization"), headers.getlist("x-api-key")
    if not bearers and not keys:
        raise Unauthenticated
    if len(bearers) + len(keys) > 1:
        raise Unauthenticated("Send one credential: Authorization or X-API-Key.")
    if keys:
        return keys[0].strip(), True
    scheme, _, credential = bearers[0].partition(" ")
    credential = credential.strip()
    if scheme.lower() != "bearer" or not credential:
        raise Unauthenticated("The Authorization field must be: Bearer, a space, the credential.")
    return credential, _looks_like_key(credential)


def _looks_like_key(credential: str) -> bool:
    return credential.startswith(("mwu_", "mwp_"))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _unknown_key() -> Unauthenticated:
    return Unauthenticated("The API key is unknown, revoked or expired.")
