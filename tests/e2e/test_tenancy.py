"""A stranger meets every route and verb with the ids of another organization."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.e2e.tenant import Tenant, bearer, created, register, tenant

pytestmark = pytest.mark.e2e

VERBS = ("get", "post", "put", "patch", "delete")


@dataclass
class Victim:
    """What the stranger knows of somebody else's organization: every id there is.

    Attributes:
        rows: the id of a row of the victim's in each collection, by the path of the collection.
    """

    tenant: Tenant
    rows: dict[str, str]

    @property
    def ids(self) -> set[str]:
        who = self.tenant
        return {*self.rows.values(), *who.projects, who.owner.id}

    def path(self, template: str) -> str:
        """The route with the victim's ids in it."""
        parts = template.split("/")
        return "/".join(
            self.rows["/".join(parts[:place])] if part.startswith("{") else part
            for place, part in enumerate(parts)
        )

    def event(self) -> dict[str, Any]:
        """An event for the victim's project."""
        return {
            "event_id": str(uuid4()),
            "timestamp": datetime.now(UTC).isoformat(),
            "event_type": "api_call",
            "model": "claude-haiku-4-5",
            "org_id": self.tenant.org_id,
            "project_id": self.tenant.projects[0],
        }

    def body(self, name: str, entry: dict[str, Any]) -> Any:
        """A valid body, the document's example, with the victim's ids where ids go."""
        events = {"POST /v1/events": {"events": [self.event()]}, "POST /v1/track": self.event()}
        if name in events or "requestBody" not in entry:
            return events.get(name)
        example = entry["requestBody"]["content"]["application/json"]["example"]
        return example | {field: known for field, known in self.known.items() if field in example}

    @property
    def known(self) -> dict[str, str]:
        """Its ids by the name of the field or parameter that takes them."""
        return {
            "org_id": self.tenant.org_id,
            "project_id": self.tenant.projects[0],
            "user_id": self.rows["/orgs/{org_id}/members"],
        }


# Routes that concern the caller alone and name nobody else.
OWN = {
    "GET /auth/me",
    "PATCH /auth/me",
    "POST /auth/logout",
    "POST /auth/change-password",
    "GET /auth/sessions",
    "DELETE /auth/sessions",
    "GET /auth/api-keys",
    "POST /auth/api-keys",
    "GET /orgs",
    "POST /orgs",
    "GET /v1/metrics",
}


@pytest.fixture(scope="module")
def victim(address: str) -> Victim:
    who = tenant(address)
    member = register(address)
    added = {"user_id": member.id, "role": "member"}
    created(who.owner.client, f"/orgs/{who.org_id}/members", added)
    path = f"/projects/{who.projects[0]}/api-keys"
    rows = {
        "/orgs": who.org_id,
        "/orgs/{org_id}/members": member.id,
        "/projects": who.projects[0],
        "/projects/{project_id}/api-keys": created(who.owner.client, path, {"name": "app"})["id"],
        "/auth/sessions": who.owner.client.get("/auth/sessions").json()["sessions"][0]["id"],
        "/auth/api-keys": who.key["id"],
    }
    return Victim(who, rows)


@pytest.fixture(scope="module")
def stranger(address: str) -> Tenant:
    return tenant(address)


def operations(address: str) -> list[tuple[str, dict[str, Any]]]:
    """("GET /orgs/{id}", its OpenAPI entry) of every operation that needs a credential."""
    document = httpx.get(f"{address}/openapi.json").json()
    return [
        (f"{verb.upper()} {path}", entry)
        for path, entries in document["paths"].items()
        for verb, entry in entries.items()
        if verb in VERBS and entry.get("security") != []
    ]


def anywhere(template: str) -> str:
    """The route with ids that nothing has."""
    return re.sub(r"{\w+}", lambda _: str(uuid4()), template)


def attempt(client: httpx.Client, victim: Victim, name: str, entry: dict[str, Any]):
    """The operation with the victim's ids in path, query and body."""
    verb, template = name.split(" ")
    named = {p["name"] for p in entry.get("parameters", []) if p.get("in") == "query"}
    params = {k: v for k, v in victim.known.items() if k in named}
    body = victim.body(name, entry)
    return client.request(verb, victim.path(template), params=params, json=body)


def test_every_route_answers_a_stranger_with_403_or_404(address, victim, stranger):
    answers = {}
    for credential in (stranger.owner.client, stranger.client):
        for name, entry in operations(address):
            if name in OWN:
                continue
            answer = attempt(credential, victim, name, entry)
            answers[name] = answer.status_code
            assert answer.status_code in (403, 404), (name, answer.status_code, answer.text)
            assert not victim.ids & leaked(answer), name
    assert len(answers) >= 14


def test_a_key_may_not_use_auth(address, stranger):
    for name, _ in operations(address):
        verb, path = name.split(" ")
        if path.startswith("/auth"):
            answer = stranger.client.request(verb, anywhere(path), json={})
            assert answer.status_code in (403, 422), (name, answer.status_code)


def test_lists_show_a_stranger_nothing_of_it(address, victim, stranger):
    lists = [name for name, entry in operations(address) if is_list(name, entry)]
    assert {"GET /orgs", "GET /projects", "GET /auth/sessions", "GET /auth/api-keys"} <= {*lists}
    for name in [*lists, "GET /auth/me"]:
        answer = stranger.owner.client.get(name.removeprefix("GET "))
        assert answer.status_code == 200, (name, answer.text)
        assert not victim.ids & leaked(answer), name


def is_list(name: str, entry: dict[str, Any]) -> bool:
    """Whether it answers with pages of what the caller has, wherever that is."""
    parameters = {p.get("name") for p in entry["parameters"]}
    return name.startswith("GET") and "{" not in name and "page_token" in parameters


def test_events_for_a_foreign_project_are_named_and_not_counted(victim, stranger):
    for field in ("org_id", "project_id"):
        event = victim.event()
        event.pop("org_id" if field == "project_id" else "project_id")
        good = {k: v for k, v in event.items() if k != field} | {"event_id": str(uuid4())}
        answer = stranger.client.post("/v1/events", json={"events": [event]})
        assert answer.status_code == 404, answer.text
        assert [r["field"] for r in answer.json()["rejected"]] == [field]
        answer = stranger.client.post("/v1/events", json={"events": [good, event]})
        assert answer.status_code == 202, answer.text
        assert [(r["index"], r["field"]) for r in answer.json()["rejected"]] == [(1, field)]
    totals = victim.tenant.client.get("/analytics/usage", params={"granularity": "all"}).json()
    assert totals["totals"]["events"] == 0


def test_the_key_of_a_project_reaches_no_other_project(address, victim):
    who = victim.tenant
    path = f"/projects/{who.projects[0]}/api-keys"
    scopes = ["events:write", "analytics:read", "project:read"]
    key = created(who.owner.client, path, {"name": "narrow", "scopes": scopes})["key"]
    with bearer(address, key) as narrow:
        assert narrow.get(f"/projects/{who.projects[0]}").status_code == 200
        assert narrow.get(f"/projects/{who.projects[1]}").status_code == 404
        listed = narrow.get("/projects").json()["projects"]
        assert [p["id"] for p in listed] == [who.projects[0]]
        event = victim.event() | {"project_id": who.projects[1]}
        answer = narrow.post("/v1/events", json={"events": [event]})
        assert answer.status_code == 422
        assert answer.json()["rejected"][0]["code"] == "foreign_project"
        other = {"granularity": "all", "project_id": who.projects[1]}
        assert narrow.get("/analytics/usage", params=other).status_code == 404


def test_without_or_with_a_bad_credential_every_guarded_route_is_a_401(address):
    for name, _ in operations(address):
        verb, path = name.split(" ")
        for headers in ({}, {"Authorization": "Bearer nonsense"}, {"X-API-Key": "mwu_nonsense"}):
            url = address + anywhere(path)
            answer = httpx.request(verb, url, headers=headers, content=b"{")
            assert answer.status_code == 401, (name, headers, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"


def leaked(answer: httpx.Response) -> set[str]:
    """Every string in the answer's body, the path that the caller wrote left out."""
    if not answer.content:
        return set()
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name != "instance":
                    walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)
        elif isinstance(value, str):
            found.add(value)

    walk(json.loads(answer.content))
    return found
