"""Tokens: what is signed, what is refused, and whose keys are trusted."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.clock import ManualClock
from common.errors import Unauthenticated, Unavailable
from common.identity.call import ANONYMOUS, Principal
from common.identity.tokens import (
    AUDIENCE,
    TYPE,
    Keys,
    TokenVerifier,
    public_jwk,
    published_keys,
    sign_token,
)
from mindweave.auth.v1.auth_pb2 import GetJwksResponse, JsonWebKey
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceStub

pytestmark = pytest.mark.unit

ISSUER = "https://mindweave.test"
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TTL = timedelta(minutes=10)
USER = Principal("user", user_id=uuid4(), session_id=uuid4())


class Auth:
    """Publishes keys, and may be down."""

    def __init__(self) -> None:
        self.keys: dict[str, Ed25519PrivateKey] = {"first": Ed25519PrivateKey.generate()}
        self.fetched = 0
        self.down = False

    async def published(self) -> Keys:
        self.fetched += 1
        await asyncio.sleep(0)
        if self.down:
            raise Unavailable
        return {kid: key.public_key() for kid, key in self.keys.items()}

    def sign(self, principal: Principal, now: datetime, kid: str = "first") -> str:
        return sign_token(self.keys[kid], kid, principal, issuer=ISSUER, now=now, ttl=TTL)


@pytest.fixture
def auth() -> Auth:
    return Auth()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def verifier(auth: Auth, clock: ManualClock) -> TokenVerifier:
    return TokenVerifier(auth.published, ISSUER, clock)


def claims(**changes: Any) -> dict[str, Any]:
    now = int(START.timestamp())
    whole = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": str(USER.user_id),
        "kind": "user",
        "sid": str(USER.session_id),
        "iat": now,
        "nbf": now,
        "exp": now + 600,
    }
    return {name: value for name, value in (whole | changes).items() if value is not None}


def signed(auth: Auth, headers: dict[str, Any] | None = None, **changes: Any) -> str:
    given = {"kid": "first", "typ": TYPE} | (headers or {})
    return jwt.encode(claims(**changes), auth.keys["first"], "EdDSA", headers=given)


def unsigned(header: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims()).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


@pytest.mark.parametrize(
    "principal",
    [
        USER,
        Principal(
            "user_key",
            user_id=uuid4(),
            api_key_id=uuid4(),
            scopes=frozenset({"org:read", "events:write"}),
        ),
        Principal(
            "project_key",
            api_key_id=uuid4(),
            org_id=uuid4(),
            project_id=uuid4(),
            scopes=frozenset({"events:write"}),
        ),
        Principal("project_key", api_key_id=uuid4(), org_id=uuid4(), project_id=uuid4()),
        Principal("service", service="usage_tracker"),
    ],
    ids=lambda principal: principal.kind,
)
async def test_a_token_tells_all_of_whom_it_was_signed_for(
    auth: Auth, verifier: TokenVerifier, principal: Principal
) -> None:
    token = auth.sign(principal, START)
    told = await verifier.verify(token)
    assert told.token == token
    assert told.subject == principal.subject
    for field in ("kind", "user_id", "session_id", "api_key_id", "org_id", "project_id", "scopes"):
        assert getattr(told, field) == getattr(principal, field)
    assert told.service == principal.service


@pytest.mark.parametrize(
    "principal",
    [
        ANONYMOUS,
        Principal("user", user_id=uuid4()),
        Principal("user_key", user_id=uuid4()),
        Principal("project_key", api_key_id=uuid4(), org_id=uuid4()),
        Principal("service"),
    ],
    ids=lambda principal: principal.kind,
)
def test_nobody_is_signed_for_who_could_not_be_verified(auth: Auth, principal: Principal) -> None:
    with pytest.raises(ValueError, match=principal.kind):
        auth.sign(principal, START)


def public_key_as_secret(auth: Auth) -> str:
    raw = auth.keys["first"].public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return jwt.encode(claims(), raw, "HS256", headers={"kid": "first", "typ": TYPE})


def forged(auth: Auth) -> str:
    header, _, signature = signed(auth).split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims(sub=str(uuid4()))).encode())
    return f"{header}.{body.decode().rstrip('=')}.{signature}"


def signed_by_another(auth: Auth) -> str:
    key = Ed25519PrivateKey.generate()
    return jwt.encode(claims(), key, "EdDSA", headers={"kid": "first", "typ": TYPE})


def carrying_its_own_key(auth: Auth) -> str:
    key = Ed25519PrivateKey.generate()
    jwk = public_jwk("own", key.public_key())
    headers = {"kid": "own", "typ": TYPE, "jwk": jwk, "jku": "https://evil.test/jwks"}
    return jwt.encode(claims(), key, "EdDSA", headers=headers)


BAD: dict[str, Callable[[Auth], str]] = {
    "nothing": lambda _: "",
    "not a token": lambda _: "abc",
    "three parts of nothing": lambda _: "..",
    "text outside of ASCII": lambda _: "ä.ö.ü",
    "algorithm none": lambda _: unsigned({"alg": "none", "kid": "first", "typ": TYPE}),
    "algorithm EdDSA without signature": lambda _: unsigned(
        {"alg": "EdDSA", "kid": "first", "typ": TYPE}
    ),
    "HS256 with the public key": public_key_as_secret,
    "changed after it was signed": forged,
    "signed by another key under our id": signed_by_another,
    "a key of its own in the header": carrying_its_own_key,
    "no key id": lambda auth: signed(auth, {"kid": ""}),
    "a key id that is no string": lambda _: unsigned({"alg": "EdDSA", "kid": 7, "typ": TYPE}),
    "another type": lambda auth: signed(auth, {"typ": "JWT"}),
    "an extension that is critical": lambda auth: signed(auth, {"crit": ["x"], "x": 1}),
    "another issuer": lambda auth: signed(auth, iss="https://evil.test"),
    "no issuer": lambda auth: signed(auth, iss=None),
    "another audience": lambda auth: signed(auth, aud="other"),
    "no audience": lambda auth: signed(auth, aud=None),
    "expired": lambda auth: signed(auth, exp=int(START.timestamp())),
    "no end": lambda auth: signed(auth, exp=None),
    "an end that is no number": lambda auth: signed(auth, exp="tomorrow"),
    "an end beyond all time": lambda auth: signed(auth, exp=1e300),
    "not begun": lambda auth: signed(auth, nbf=int(START.timestamp()) + 60),
    "no beginning": lambda auth: signed(auth, nbf=None),
    "a beginning that is no number": lambda auth: signed(auth, nbf=True),
    "no kind": lambda auth: signed(auth, kind=None),
    "an unknown kind": lambda auth: signed(auth, kind="emperor"),
    "nobody": lambda auth: signed(auth, kind="anonymous"),
    "a subject that is no uuid": lambda auth: signed(auth, sub="root"),
    "a user without a session": lambda auth: signed(auth, sid=None),
    "a session that is no uuid": lambda auth: signed(auth, sid=7),
    "a key without an id": lambda auth: signed(auth, kind="user_key", scp=["org:read"]),
    "scopes that are no list": lambda auth: signed(
        auth, kind="user_key", akid=str(uuid4()), scp="org:read"
    ),
    "a service without a name": lambda auth: signed(auth, kind="service"),
    "larger than any token": lambda auth: signed(auth, padding="x" * 9000),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD.keys())
async def test_a_token_that_is_wrong_is_refused(
    auth: Auth, verifier: TokenVerifier, make: Callable[[Auth], str]
) -> None:
    with pytest.raises(Unauthenticated):
        await verifier.verify(make(auth))


async def test_a_token_is_refused_from_the_moment_it_expires_though_it_was_verified_before(
    auth: Auth, clock: ManualClock, verifier: TokenVerifier
) -> None:
    token = auth.sign(USER, START)
    clock.advance(TTL - timedelta(seconds=1))
    await verifier.verify(token)
    clock.advance(timedelta(seconds=1))
    with pytest.raises(Unauthenticated) as refused:
        await verifier.verify(token)
    assert refused.value.code == "expired_credential"


async def test_a_token_of_a_clock_a_little_ahead_is_accepted(
    auth: Auth, verifier: TokenVerifier
) -> None:
    await verifier.verify(auth.sign(USER, START + timedelta(seconds=4)))


async def test_keys_are_fetched_once_for_many_tokens(auth: Auth, verifier: TokenVerifier) -> None:
    tokens = [auth.sign(USER, START) for _ in range(20)]
    await asyncio.gather(*(verifier.verify(token) for token in tokens))
    await asyncio.gather(*(verifier.verify(token) for token in tokens))
    assert auth.fetched == 1


async def test_a_token_under_a_new_key_is_accepted_without_a_restart(
    auth: Auth, clock: ManualClock, verifier: TokenVerifier
) -> None:
    await verifier.verify(auth.sign(USER, START))
    auth.keys["second"] = Ed25519PrivateKey.generate()
    clock.advance(timedelta(seconds=2))
    await verifier.verify(auth.sign(USER, START, "second"))
    assert auth.fetched == 2


async def test_unknown_key_ids_do_not_make_everyone_ask_auth(
    auth: Auth, clock: ManualClock, verifier: TokenVerifier
) -> None:
    await verifier.verify(auth.sign(USER, START))
    clock.advance(timedelta(seconds=2))
    for kid in ("a", "b", "c"):
        with pytest.raises(Unauthenticated):
            await verifier.verify(signed(auth, {"kid": kid}))
    assert auth.fetched == 2


async def test_known_keys_serve_on_while_auth_is_down(
    auth: Auth, clock: ManualClock, verifier: TokenVerifier
) -> None:
    await verifier.verify(auth.sign(USER, START))
    auth.down = True
    clock.advance(timedelta(hours=3))
    for _ in range(3):
        await verifier.verify(auth.sign(USER, clock.now()))
        await asyncio.sleep(0.01)
    assert auth.fetched == 2


async def test_without_any_key_it_says_that_it_cannot_judge(
    auth: Auth, clock: ManualClock, verifier: TokenVerifier
) -> None:
    auth.down = True
    token = auth.sign(USER, START)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await verifier.verify(token)
    assert auth.fetched == 1
    auth.down = False
    clock.advance(timedelta(seconds=1))
    assert (await verifier.verify(token)).user_id == USER.user_id


async def test_a_token_under_an_unknown_key_is_not_judged_while_auth_is_down(
    auth: Auth, clock: ManualClock, verifier: TokenVerifier
) -> None:
    await verifier.verify(auth.sign(USER, START))
    auth.keys["second"] = Ed25519PrivateKey.generate()
    auth.down = True
    clock.advance(timedelta(seconds=2))
    with pytest.raises(Unavailable):
        await verifier.verify(auth.sign(USER, START, "second"))


async def test_tokens_under_a_key_that_was_withdrawn_end_within_minutes(
    auth: Auth, clock: ManualClock, verifier: TokenVerifier
) -> None:
    token = auth.sign(USER, START)
    await verifier.verify(token)
    auth.keys = {"second": Ed25519PrivateKey.generate()}
    clock.advance(timedelta(minutes=5))
    await verifier.verify(token)
    await asyncio.sleep(0.01)
    with pytest.raises(Unauthenticated):
        await verifier.verify(token)


async def test_what_is_remembered_of_tokens_is_bounded(
    auth: Auth, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.identity.tokens._KNOWN_TOKENS", 2)
    first, *others = [auth.sign(USER, START) for _ in range(3)]
    for token in (first, *others):
        await verifier.verify(token)
    assert verifier.known(first) is None
    assert all(verifier.known(token) for token in others)


async def test_a_clock_set_back_does_not_keep_keys_for_ever(
    auth: Auth, clock: ManualClock, verifier: TokenVerifier
) -> None:
    token = auth.sign(USER, START - timedelta(hours=1))
    clock.advance(timedelta(minutes=-55))
    await verifier.verify(token)
    clock.advance(timedelta(minutes=-4))
    await verifier.verify(token)
    await asyncio.sleep(0.01)
    assert auth.fetched == 2


async def test_published_keys_of_another_kind_are_left_out(auth: Auth) -> None:
    ours = public_jwk("first", auth.keys["first"].public_key())
    foreign = {"kty": "RSA", "kid": "rsa", "alg": "RS256"}

    async def get_jwks(_: object) -> GetJwksResponse:
        return GetJwksResponse(keys=[JsonWebKey(**ours), JsonWebKey(**foreign)])

    keys = await published_keys(cast(AuthServiceStub, SimpleNamespace(GetJwks=get_jwks)))()
    assert list(keys) == ["first"]
    assert public_jwk("first", keys["first"]) == ours


def test_a_uuid_in_a_token_is_read_back_as_one(auth: Auth) -> None:
    said = jwt.decode(auth.sign(USER, START), options={"verify_signature": False})
    assert UUID(said["sub"]) == USER.user_id
    assert "scp" not in said
