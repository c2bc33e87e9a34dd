"""An organization with projects and a key, made through the public API."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import httpx

PASSWORD = "nine slow brass kettles"


@dataclass(frozen=True, slots=True)
class Tenant:
    """``token`` is its owner's access token, ``key`` one for events and reads."""

    org_id: str
    projects: list[str]
    token: str
    key: str


def make_tenant(address: str, projects: int) -> Tenant:
    """A new organization of a new user."""
    credentials = {"email": f"bench-{secrets.token_hex(4)}@example.com", "password": PASSWORD}
    with httpx.Client(base_url=address, timeout=30) as http:
        _created(http, "/auth/register", {**credentials, "display_name": "Bench"})
        token = http.post("/auth/login", json=credentials).raise_for_status().json()["access_token"]
        http.headers["Authorization"] = f"Bearer {token}"
        org = _created(http, "/orgs", {"name": "Bench"})["id"]
        ids = [
            _created(http, "/projects", {"org_id": org, "name": f"Bench {n}"})["id"]
            for n in range(projects)
        ]
        scopes = ["events:write", "analytics:read"]
        key = _created(http, "/auth/api-keys", {"name": "bench", "scopes": scopes})["key"]
    return Tenant(org, ids, token, key)


def _created(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = http.post(path, json=body).raise_for_status().json()
    return answer
