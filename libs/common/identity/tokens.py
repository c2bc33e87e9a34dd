"""Signed tokens: made by auth, verified by everyone from the published keys alone."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from datetime import UTC, datetime, timedelta
from typing import Any, cast, get_args
from uuid import UUID, uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.clock import Clock
from common.errors import MindWeaveError, Unauthenticated, Unavailable
from common.identity.call import Principal, PrincipalKind
from mindweave.auth.v1.auth_pb2 import GetJwksRequest
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceStub

AUDIENCE = "mindweave"
ALGORITHM = "EdDSA"
# RFC 9068's type, so that no other kind of JWT passes for one of these.
TYPE = "at+jwt"

Keys = Mapping[str, Ed25519PublicKey]
FetchKeys = Callable[[], Awaitable[Keys]]

_SKEW = timedelta(seconds=5)
_KEYS_STAND = timedelta(minutes=5)
_BETWEEN_FETCHES = timedelta(seconds=1)
_KNOWN_TOKENS = 10_000
_MOST_CHARACTERS = 8192
# RFC 7515's compact form, without padding.
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# No token of ours lasts so long; what claims to is none.
_LONGEST = timedelta(days=1)


def public_jwk(kid: str, key: Ed25519PublicKey) -> dict[str, str]:
    """The key as auth publishes it (RFC 7517, RFC 8037)."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    x = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    return {"kty": "OKP", "crv": "Ed25519", "alg": ALGORITHM, "use": "sig", "kid": kid, "x": x}


def published_keys(auth: AuthServiceStub) -> FetchKeys:
    """Fetches the keys that auth publishes; keys of another kind than ours are left out."""

    async def fetch() -> Keys:
        found = {}
        for jwk in (await auth.GetJwks(GetJwksRequest())).keys:
            if (jwk.kty, jwk.crv) == ("OKP", "Ed25519") and jwk.kid:
                raw = base64.urlsafe_b64decode(jwk.x + "=" * (-len(jwk.x) % 4))
                found[jwk.kid] = Ed25519PublicKey.from_public_bytes(raw)
        return found

    return fetch


def sign_token(
    key: Ed25519PrivateKey,
    kid: str,
    principal: Principal,
    *,
    issuer: str,
    now: datetime,
    ttl: timedelta,
) -> str:
    """A token that says who ``principal`` is until ``ttl`` has passed.

    Raises:
        ValueError: the principal lacks what its kind lives on, so that none would accept it.
    """
    if principal.kind == "anonymous" or not _whole(principal):
        raise ValueError(f"a principal of kind {principal.kind} lacks what names it")
    claims: dict[str, Any] = {
        "iss": issuer,
        "aud": AUDIENCE,
        "sub": _subject(principal),
        "kind": principal.kind,
        "iat": int(now.timestamp()),
        "nbf": int(now.timestamp()),
        "exp": int((now + ttl).timestamp()),
        "jti": uuid4().hex,
        "sid": principal.session_id,
        "akid": principal.api_key_id,
        "org": principal.org_id,
        "prj": principal.project_id,
        "scp": sorted(principal.scopes) if principal.api_key_id else None,
        "svc": principal.service,
    }
    said = {
        name: str(value) if isinstance(value, UUID) else value
        for name, value in claims.items()
        if value is not None
    }
    return jwt.encode(said, key, ALGORITHM, headers={"kid": kid, "typ": TYPE})


class TokenVerifier:
    """Tells who a token names.

    Keys come from ``fetch_keys`` alone, whatever a token says of itself. They are kept: while auth
    cannot be reached, tokens under known keys are still verified.
    """

    def __init__(self, fetch_keys: FetchKeys, issuer: str, clock: Clock) -> None:
        self._fetch_keys = fetch_keys
        self._issuer = issuer
        self._clock = clock
        self._keys: Keys = {}
        self._fetched: datetime | None = None
        self._tried: datetime | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._known: OrderedDict[str, tuple[Principal, datetime, str]] = OrderedDict()

    def known(self, token: str) -> Principal | None:
        """The principal of a token that was verified before; None for another one.

        Raises:
            Unauthenticated: it has expired since.
        """
        known = self._known.get(token)
        if known is None:
            return None
        now = self._clock.now()
        self._refresh_when_old(now)
        principal, expires, _ = known
        if expires <= now:
            del self._known[token]
            raise _expired()
        self._known.move_to_end(token)
        return principal

    async def verify(self, token: str) -> Principal:
        """The principal that the token names.

        Raises:
            Unauthenticated: the token is not one of ours, or not valid now.
            Unavailable: its key is not known and auth cannot be asked.
        """
        principal = self.known(token)
        if principal is not None:
            return principal
        now = self._clock.now()
        kid = _key_id(token)
        principal, expires = self._judge(token, await self._key(kid, now), now)
        self._known[token] = (principal, expires, kid)
        while len(self._known) > _KNOWN_TOKENS:
            self._known.popitem(last=False)
        return principal

    def _judge(
        self, token: str, key: Ed25519PublicKey, now: datetime
    ) -> tuple[Principal, datetime]:
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=self._issuer,
                options={
                    "require": ["exp", "nbf", "iss", "aud", "sub"],
                    # Judged below, by the clock that was handed in.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except (jwt.InvalidTokenError, ValueError) as error:
            raise _refused() from error
        expires, begins = claims["exp"], claims["nbf"]
        if not (_is_number(expires) and _is_number(begins)):
            raise _refused()
        if expires <= now.timestamp():
            raise _expired()
        if expires > (now + _LONGEST).timestamp():
            raise _refused()
        if begins > (now + _SKEW).timestamp():
            raise _refused()
        return _principal(claims, token), datetime.fromtimestamp(expires, UTC)

    async def _key(self, kid: str, now: datetime) -> Ed25519PublicKey:
        self._refresh_when_old(now)
        if kid not in self._keys:
            fetching = self._fetch_again(now)
            if fetching is not None:
                await asyncio.shield(fetching)
        key = self._keys.get(kid)
        if key is not None:
            return key
        if self._fetched is None or self._fetched != self._tried:
            raise Unavailable("Credentials cannot be checked now.", retry_after=1)
        raise _refused()

    def _refresh_when_old(self, now: datetime) -> None:
        """Known keys go on to be used while newer ones are fetched, or cannot be."""
        if self._fetched is not None and not self._fetched <= now < self._fetched + _KEYS_STAND:
            self._fetch_again(now)

    def _fetch_again(self, now: datetime) -> asyncio.Task[None] | None:
        """The fetch under way, or a new one; None where the last one is too short ago."""
        if self._fetching is None or self._fetching.done():
            if self._tried is not None and timedelta() <= now - self._tried < _BETWEEN_FETCHES:
                return None
            self._tried = now
            # Nothing of the call that happens to need it (its deadline, its user) goes with it.
            self._fetching = asyncio.create_task(self._fetch(now), context=Context())
        return self._fetching

    async def _fetch(self, now: datetime) -> None:
        try:
            keys = await self._fetch_keys()
        except (MindWeaveError, OSError):
            return
        self._keys, self._fetched = dict(keys), now
        for token in [t for t, (_, _, kid) in self._known.items() if kid not in keys]:
            del self._known[token]


def _key_id(token: str) -> str:
    """The id of the key that a token says it is signed with; everything else it says is fixed."""
    if len(token) > _MOST_CHARACTERS or not _COMPACT.fullmatch(token):
        raise _refused()
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.InvalidTokenError, ValueError, binascii.Error) as error:
        raise _refused() from error
    kid = header.get("kid")
    if header.get("alg") != ALGORITHM or header.get("typ") != TYPE:
        raise _refused()
    if not isinstance(kid, str) or not kid:
        raise _refused()
    return kid


def _subject(principal: Principal) -> str:
    if principal.kind == "service":
        return str(principal.service)
    return str(principal.api_key_id if principal.kind == "project_key" else principal.user_id)


def _principal(claims: Mapping[str, Any], token: str) -> Principal:
    kind = claims.get("kind")
    if kind not in get_args(PrincipalKind) or kind == "anonymous":
        raise _refused()
    try:
        principal = Principal(
            kind=cast(PrincipalKind, kind),
            user_id=UUID(claims["sub"]) if kind in ("user", "user_key") else None,
            session_id=_uuid(claims, "sid"),
            api_key_id=_uuid(claims, "akid"),
            org_id=_uuid(claims, "org"),
            project_id=_uuid(claims, "prj"),
            scopes=_scopes(claims.get("scp", [])),
            service=str(claims["svc"]) if kind == "service" else None,
            token=token,
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _refused() from error
    if not _whole(principal):
        raise _refused()
    return principal


def _whole(principal: Principal) -> bool:
    """Whether everything that its kind lives on is there."""
    needed: dict[str, tuple[object, ...]] = {
        "user": (principal.user_id, principal.session_id),
        "user_key": (principal.user_id, principal.api_key_id),
        "project_key": (principal.api_key_id, principal.org_id, principal.project_id),
        "service": (principal.service,),
    }
    return all(needed[principal.kind])


def _uuid(claims: Mapping[str, Any], name: str) -> UUID | None:
    return UUID(claims[name]) if name in claims else None


def _scopes(said: Any) -> frozenset[str]:
    if not isinstance(said, list) or not all(isinstance(scope, str) for scope in said):
        raise ValueError("scp is no list of strings")
    return frozenset(said)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refused() -> Unauthenticated:
    return Unauthenticated("The credential is not valid.", code="invalid_credential")


def _expired() -> Unauthenticated:
    return Unauthenticated("The credential has expired.", code="expired_credential")
