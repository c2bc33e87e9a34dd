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
    return make_tenants(address, 1, projects)[0]


def make_tenants(address: str, organizations: int, projects: int) -> list[Tenant]:
    """New organizations of one new user, whose one key is for all of them."""
    credentials = {"email": f"bench-{secrets.token_hex(4)}@example.com", "password": PASSWORD}
    with httpx.Client(base_url=address, timeout=30) as http:
        _created(http, "/auth/register", {**credentials, "display_name": "Bench"})
        token = http.post("/auth/login", json=credentials).raise_for_status().json()["access_token"]
        http.headers["Authorization"] = f"Bearer {token}"
        made = []
        for number in range(organizations):
            org = _created(http, "/orgs", {"name": f"Bench {number}"})["id"]
            bodies = ({"org_id": org, "name": f"Bench {n}"} for n in range(projects))
            made.append((org, [_created(http, "/projects", body)["id"] for body in bodies]))
        scopes = ["events:write", "analytics:read"]
        key = _created(http, "/auth/api-keys", {"name": "bench", "scopes": scopes})["key"]
    return [Tenant(org, ids, token, key) for org, ids in made]


def _created(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = http.post(path, json=body).raise_for_status().json()
    return answer
