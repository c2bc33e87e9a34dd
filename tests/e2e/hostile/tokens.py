"""Credentials that are not valid, and why not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.e2e.tenant import PASSWORD, User, created, register

Fields = list[tuple[str, str]]
SCOPES = ["events:write", "analytics:read"]


def encoded(value: bytes | Mapping[str, Any]) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def bearing(credential: str) -> Fields:
    return [("Authorization", f"Bearer {credential}")]


@dataclass(frozen=True)
class Genuine:
    """An access token that is valid, taken apart."""

    token: str

    @property
    def header(self) -> dict[str, Any]:
        found: dict[str, Any] = jwt.get_unverified_header(self.token)
        return found

    @property
    def claims(self) -> dict[str, Any]:
        found: dict[str, Any] = jwt.decode(self.token, options={"verify_signature": False})
        return found

    def with_hmac(self, key: bytes) -> str:
        """The same claims, signed by HMAC with what everybody can read."""
        head = encoded(self.header | {"alg": "HS256"})
        signed = f"{head}.{encoded(self.claims)}"
        return f"{signed}.{encoded(hmac.digest(key, signed.encode(), hashlib.sha256))}"

    def signed(self, key: Ed25519PrivateKey, claims: Mapping[str, Any] = {}, **header: Any) -> str:
        """The same token with other claims and header fields; None leaves one out."""
        said = {n: v for n, v in (self.claims | claims).items() if v is not None}
        fields = {n: v for n, v in (self.header | header).items() if n != "alg" and v is not None}
        return jwt.encode(said, key, "EdDSA", headers=fields)


def made_up(address: str, user: User) -> dict[str, Fields]:
    """Bad credentials that anybody can make who has a session, by what is wrong with them."""
    genuine = Genuine(user.tokens["access_token"])
    head, claims, signature = genuine.token.split(".")
    jwk = httpx.get(f"{address}/.well-known/jwks.json", timeout=30).json()["keys"][0]
    public = base64.urlsafe_b64decode(jwk["x"] + "=")
    theirs = Ed25519PrivateKey.generate()
    none = encoded(genuine.header | {"alg": "none"})
    promoted = encoded(genuine.claims | {"sub": str(uuid4())})
    tokens = {
        "no algorithm": f"{none}.{claims}.",
        "no algorithm, with a signature": f"{none}.{claims}.{signature}",
        "no algorithm, in other letters": f"{encoded(genuine.header | {'alg': 'nOnE'})}.{claims}.",
        "HMAC with the public key": genuine.with_hmac(public),
        "HMAC with the public key as published": genuine.with_hmac(jwk["x"].encode()),
        "HMAC with nothing": genuine.with_hmac(b""),
        "another environment's key": genuine.signed(theirs),
        "an unknown key": genuine.signed(theirs, kid="unknown"),
        "a key that is a path": genuine.signed(theirs, kid="../../etc/passwd"),
        "a key that it brings itself": genuine.signed(theirs, kid=None, jwk=jwk),
        "a key at an address": genuine.signed(theirs, kid=None, jku=f"{address}/keys"),
        "other claims": f"{head}.{promoted}.{signature}",
        "no signature": f"{head}.{claims}.",
        "half a signature": f"{head}.{claims}.{signature[:40]}",
        "no claims": f"{head}..{signature}",
        "two parts": f"{head}.{claims}",
        "five parts": f"{genuine.token}.a.b",
        "a header that is no JSON": f"{encoded(b'{')}.{claims}.{signature}",
        "a header that is a list": f"{encoded(b'[]')}.{claims}.{signature}",
        "padding": f"{genuine.token}==",
        "a refresh token": user.tokens["refresh_token"],
        "very long": genuine.token + "a" * 20_000,
        "nonsense": "nonsense",
        "a uuid": str(uuid4()),
        "past ASCII": "t\xf6ken",
        "a token and a word": f"{genuine.token} {secrets.token_hex(8)}",
    }
    return {name: bearing(token) for name, token in tokens.items()} | _placed(genuine.token)


def _placed(token: str) -> dict[str, Fields]:
    """A valid token where none is read from, or more than one."""
    return {
        "twice": bearing(token) * 2,
        "beside a key": [*bearing(token), ("X-API-Key", f"mwu_{secrets.token_hex(20)}")],
        "beside the same as a key": [*bearing(token), ("X-API-Key", token)],
        "as a key": [("X-API-Key", token)],
        "a scheme alone": [("Authorization", "Bearer")],
        "without a scheme": [("Authorization", token)],
        "with another scheme": [("Authorization", f"Basic {token}")],
        "with a comma": [("Authorization", f"Bearer {token}, Bearer {token}")],
        "in another field": [("X-Access-Token", token)],
        "in a cookie": [("Cookie", f"access_token={token}; Authorization=Bearer {token}")],
        "of a proxy": [("Proxy-Authorization", f"Bearer {token}")],
    }


def bad_keys(user: User) -> dict[str, Fields]:
    """API keys that are almost right."""
    key = created(user.client, "/auth/api-keys", {"name": "k", "scopes": SCOPES})
    revoked = created(user.client, "/auth/api-keys", {"name": "r", "scopes": SCOPES})
    assert user.client.delete(f"/auth/api-keys/{revoked['id']}").status_code == 204
    good: str = key["key"]
    last = "0" if good[-1] != "0" else "1"
    keys = {
        "a changed checksum": good[:-1] + last,
        "a changed letter": good[:10] + ("a" if good[10] != "a" else "b") + good[11:],
        "the mark of another kind": "mwp_" + good[4:],
        "the mark of a refresh token": "mwr_" + good[4:],
        "a mark in capitals": good[:4].upper() + good[4:],
        "a letter less": good[:-1],
        "a letter more": f"{good}a",
        "its prefix alone": key["prefix"],
        "its id": key["id"],
        "revoked": revoked["key"],
        "never made": f"mwu_{secrets.token_hex(19)}",
        "very long": good + "a" * 20_000,
        "past ASCII": good[:-1] + "\xf6",
        "empty": "",
        "a refresh token as a key": user.tokens["refresh_token"],
    }
    both = {f"key, {name}": [("X-API-Key", value)] for name, value in keys.items()}
    both |= {f"bearer, {name}": bearing(value) for name, value in keys.items() if value}
    both["key, twice"] = [("X-API-Key", good)] * 2
    return both


def ended_session(address: str) -> Fields:
    """The token of a session whose user has logged out."""
    user = register(address)
    assert user.client.post("/auth/logout").status_code == 204
    return bearing(user.tokens["access_token"])


def session_ended_elsewhere(user: User) -> Fields:
    """The token of a session that its user ended from another one."""
    body = {"email": user.email, "password": PASSWORD}
    with httpx.Client(base_url=user.address, timeout=30) as http:
        token = http.post("/auth/login", json=body).json()["access_token"]
        fields = bearing(token)
        assert http.get("/auth/me", headers=fields).status_code == 200
    sid = Genuine(token).claims["sid"]
    assert user.client.delete(f"/auth/sessions/{sid}").status_code == 204
    return fields


def forged(key: Ed25519PrivateKey, user: User, other: User) -> dict[str, Fields]:
    """Tokens under the platform's own key that are not for the edge, by what is wrong."""
    genuine, now = Genuine(user.tokens["access_token"]), int(time.time())
    org = str(uuid4())
    tokens = {
        "another issuer": genuine.signed(key, {"iss": "https://elsewhere.example"}),
        "no issuer": genuine.signed(key, {"iss": None}),
        "another audience": genuine.signed(key, {"aud": "elsewhere"}),
        "no audience": genuine.signed(key, {"aud": None}),
        "another type": genuine.signed(key, typ="JWT"),
        "no type": genuine.signed(key, typ=None),
        "another key's id": genuine.signed(key, kid="another"),
        "no key's id": genuine.signed(key, kid=None),
        "expired": genuine.signed(key, {"exp": now - 1}),
        "no end": genuine.signed(key, {"exp": None}),
        "an end in ten years": genuine.signed(key, {"exp": now + 10 * 365 * 86400}),
        "an end that is no time": genuine.signed(key, {"exp": "tomorrow"}),
        "not yet valid": genuine.signed(key, {"nbf": now + 3600}),
        "no beginning": genuine.signed(key, {"nbf": None}),
        "a service": genuine.signed(
            key, {"kind": "service", "svc": "gateway", "sub": "gateway", "sid": None}
        ),
        "a key's token": genuine.signed(
            key, {"kind": "user_key", "akid": str(uuid4()), "scp": SCOPES, "sid": None}
        ),
        "a project's token": genuine.signed(
            key,
            {"kind": "project_key", "akid": org, "org": org, "prj": org, "scp": SCOPES},
        ),
        "nobody": genuine.signed(key, {"kind": "anonymous"}),
        "an unknown kind": genuine.signed(key, {"kind": "root"}),
        "no session": genuine.signed(key, {"sid": None}),
        "an unknown session": genuine.signed(key, {"sid": str(uuid4())}),
        "another user's session": genuine.signed(key, {"sub": other.id}),
        "a subject that is no id": genuine.signed(key, {"sub": "' OR 1=1 --"}),
        "something critical": genuine.signed(key, crit=["exp"], exp=0),
    }
    return {name: bearing(token) for name, token in tokens.items()}
