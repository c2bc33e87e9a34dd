"""What a caller knows who has a tenant of its own: real ids for routes, queries and bodies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx

from tests.e2e.tenant import PASSWORD, Tenant, User, bearer, created, register, session_of

SCOPES = ["events:write", "analytics:read", "metrics:read", "project:read"]
# What ends the session that it is called with, or changes its user's password.
ENDS_SESSION = {
    "POST /auth/logout",
    "POST /auth/change-password",
    "DELETE /auth/sessions",
    "DELETE /auth/sessions/{id}",
}


@dataclass
class Rows:
    """Rows of one tenant that an operation may do anything to.

    Attributes:
        user: whose session calls.
        path: the id of a row by its collection, such as ``/orgs``.
        fields: values by the name of the field or parameter that takes them.
    """

    user: User
    path: dict[str, str]
    fields: dict[str, Any] = field(default_factory=dict)

    def ids_in(self, template: str) -> dict[str, str]:
        """The path parameters of a route."""
        parts = template.split("/")
        return {
            part[1:-1]: self.path["/".join(parts[:place])]
            for place, part in enumerate(parts)
            if part.startswith("{")
        }


class Playground:
    """Makes rows for each operation, so that none meets what another one destroyed."""

    def __init__(self, tenant: Tenant, member: User) -> None:
        self._tenant, self._member = tenant, member
        self._session = session_of(tenant.client, tenant.projects[0])

    def rows_of_key(self) -> Rows:
        """Rows that the key of a project can change nothing of but by sending events."""
        found = self.rows("")
        found.path["/projects"] = found.fields["project_id"] = self._tenant.projects[0]
        return found

    def rows(self, label: str) -> Rows:
        """Rows for ``label``, such as "DELETE /orgs/{id}": made anew where it changes any."""
        ends = label in ENDS_SESSION
        user = register(self._tenant.owner.address) if ends else self._tenant.owner
        client = user.client
        org = self._tenant.org_id
        if ends or label.startswith(("DELETE", "PATCH")) or label.endswith("/members"):
            org = created(client, "/orgs", {"name": "Playground"})["id"]
        project = created(client, "/projects", {"org_id": org, "name": "Swing"})["id"]
        added = {"user_id": self._member.id, "role": "member"}
        if label != "POST /orgs/{org_id}/members":
            client.post(f"/orgs/{org}/members", json=added)
        keys = f"/projects/{project}/api-keys"
        return Rows(
            user,
            {
                "/orgs": org,
                "/orgs/{org_id}/members": self._member.id,
                "/projects": project,
                "/projects/{project_id}/api-keys": created(client, keys, {"name": "k"})["id"],
                "/auth/sessions": client.get("/auth/sessions").json()["sessions"][0]["id"],
                "/auth/api-keys": created(
                    client, "/auth/api-keys", {"name": "k", "scopes": ["events:write"]}
                )["id"],
                "/v1/sessions": self._session,
            },
            {"org_id": org, "project_id": project, "user_id": self._member.id}
            | _secrets(label, user),
        )

    def key(self) -> httpx.Client:
        """A client with the key of a project."""
        path = f"/projects/{self._tenant.projects[0]}/api-keys"
        key = created(self._tenant.owner.client, path, {"name": "narrow", "scopes": SCOPES})
        return bearer(self._tenant.owner.address, key["key"])


def _secrets(label: str, user: User) -> dict[str, Any]:
    if label == "POST /auth/login":
        return {"email": user.email, "password": PASSWORD}
    if label == "POST /auth/refresh":
        return {"refresh_token": user.tokens["refresh_token"]}
    if label == "POST /auth/change-password":
        return {"current_password": PASSWORD, "password": PASSWORD}
    if label.endswith("api-keys"):
        return {"scopes": ["events:write"], "expires_at": "2100-01-01T00:00:00Z"}
    return {}


def filled(body: Any, known: dict[str, Any]) -> Any:
    """The body with known values in the fields that take them, and events of now."""
    if isinstance(body, list):
        return [filled(item, known) for item in body]
    if not isinstance(body, dict):
        return body
    made = {name: known.get(name, filled(value, known)) for name, value in body.items()}
    if "event_type" in made:
        made |= {"timestamp": datetime.now(UTC).isoformat(), "event_id": str(uuid4())}
        made |= {name: known[name] for name in ("org_id", "project_id")}
    return made


def every(document: dict[str, Any]) -> Iterator[str]:
    """Every operation of an OpenAPI document, as "GET /orgs/{id}"."""
    for path, entries in document["paths"].items():
        for verb in entries:
            if verb in ("get", "post", "put", "patch", "delete"):
                yield f"{verb.upper()} {path}"
