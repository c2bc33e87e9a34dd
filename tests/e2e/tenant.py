"""Users, organizations, projects and keys, made through the public API alone."""

from __future__ import annotations

import secrets
import time
import weakref
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx

from tests.common.plain import PLAIN

PASSWORD = "thirteen quiet lighthouses"


def bearer(address: str, credential: str) -> httpx.Client:
    """A client that shows a key or an access token; its connections end with it."""
    transport = httpx.HTTPTransport(verify=PLAIN)
    client = httpx.Client(
        base_url=address,
        headers={"Authorization": f"Bearer {credential}"},
        timeout=30,
        transport=transport,
    )
    weakref.finalize(client, transport.close)
    return client


def created(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """POST and expect 201."""
    answer = client.post(path, json=body)
    assert answer.status_code == 201, f"POST {path}: {answer.status_code} {answer.text}"
    return answer.json()


@dataclass
class User:
    """A registered user with an open session."""

    address: str
    id: str
    email: str
    tokens: dict[str, Any]
    client: httpx.Client = field(repr=False)


def register(address: str) -> User:
    """A new user, logged in."""
    email = f"user-{secrets.token_hex(8)}@example.com"
    with httpx.Client(base_url=address, timeout=30, verify=PLAIN) as http:
        body = {"email": email, "password": PASSWORD, "display_name": "Somebody"}
        user = created(http, "/auth/register", body)
        answer = http.post("/auth/login", json={"email": email, "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    tokens = answer.json()
    return User(address, user["id"], email, tokens, bearer(address, tokens["access_token"]))


@dataclass
class Tenant:
    """An organization with its owner, projects, and a key of the owner for events and costs."""

    owner: User
    org_id: str
    projects: list[str]
    key: dict[str, Any]
    client: httpx.Client = field(repr=False)


def tenant(address: str, projects: int = 2) -> Tenant:
    """A new organization of a new user; ``client`` shows the key."""
    owner = register(address)
    org = created(owner.client, "/orgs", {"name": f"Org {secrets.token_hex(4)}"})
    ids = [
        created(owner.client, "/projects", {"org_id": org["id"], "name": f"Project {n}"})["id"]
        for n in range(projects)
    ]
    scopes = ["events:write", "analytics:read"]
    key = created(owner.client, "/auth/api-keys", {"name": "test", "scopes": scopes})
    return Tenant(owner, org["id"], ids, key, bearer(address, key["key"]))


def session_of(client: httpx.Client, project_id: str, patience: float = 60.0) -> str:
    """The id of a session of one event, once it is shown."""
    event = {
        "event_id": str(uuid4()),
        "timestamp": datetime.now(UTC).isoformat(),
        "event_type": "session",
        "session_id": str(uuid4()),
        "project_id": project_id,
    }
    answer = client.post("/v1/events", json={"events": [event]})
    assert answer.status_code == 202, answer.text
    ends = time.monotonic() + patience
    while time.monotonic() < ends:
        shown = client.get("/v1/sessions", params={"project_id": project_id})
        assert shown.status_code == 200, shown.text
        for session in shown.json()["sessions"]:
            if session["session_id"] == event["session_id"]:
                return str(session["id"])
        time.sleep(0.05)
    raise TimeoutError("the session is not shown")
