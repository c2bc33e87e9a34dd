"""A stranger meets every route and verb with the ids of another organization."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.e2e.tenant import Tenant, User, bearer, created, register, tenant

pytestmark = pytest.mark.e2e

VERBS = ("get", "post", "put", "patch", "delete")


@dataclass
class Victim:
    """What the stranger knows of somebody else's organization: every id there is."""

    tenant: Tenant
    member: User
    session: str
    project_key: str

    @property
    def ids(self) -> set[str]:
        who = self.tenant
        return {
            who.org_id,
            *who.projects,
            who.owner.id,
            self.member.id,
            self.session,
            who.key["id"],
            self.project_key,
        }

    def path(self, template: str) -> str:
        """The route with the victim's ids in it."""
        who = self.tenant
        own = {"/orgs": who.org_id, "/projects": who.projects[0]}
        own |= {"/auth/sessions": self.session, "/auth/api-keys": who.key["id"]}
        for prefix, found in own.items():
            if template.startswith(prefix):
                template = template.replace("{id}", found)
        return template.format(
            org_id=who.org_id,
            project_id=who.projects[0],
            user_id=self.member.id,
            key_id=self.project_key,
        )

    def bodies(self) -> dict[str, Any]:
        """A valid body of each operation that takes one, with the victim's ids where ids go."""
        org, project = self.tenant.org_id, self.tenant.projects[0]
        event = {
            "event_id": str(uuid4()),
            "timestamp": datetime.now(UTC).isoformat(),
            "event_type": "api_call",
            "model": "claude-haiku-4-5",
            "org_id": org,
            "project_id": project,
        }
        return {
            "PATCH /orgs/{id}": {"name": "Taken over"},
            "POST /orgs/{org_id}/members": {"user_id": str(uuid4()), "role": "owner"},
            "PATCH /orgs/{org_id}/members/{user_id}": {"role": "owner"},
            "POST /projects": {"org_id": org, "name": "Smuggled in"},
            "PATCH /projects/{id}": {"name": "Taken over"},
            "POST /projects/{project_id}/api-keys": {"name": "Smuggled in"},
            "POST /v1/events": {"events": [event]},
            "POST /v1/track": event,
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
    key = created(who.owner.client, path, {"name": "app"})
    session = who.owner.client.get("/auth/sessions").json()["sessions"][0]["id"]
    return Victim(who, member, session, key["id"])


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


def attempt(client: httpx.Client, victim: Victim, name: str, entry: dict[str, Any]):
    """The operation with the victim's ids in path, query and body."""
    verb, template = name.split(" ")
    named = {p["name"] for p in entry.get("parameters", []) if p.get("in") == "query"}
    known = {"org_id": victim.tenant.org_id, "project_id": victim.tenant.projects[0]}
    params = {k: v for k, v in known.items() if k in named}
    body = victim.bodies().get(name)
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
            answer = stranger.client.request(verb, path.format(id=uuid4()), json={})
            assert answer.status_code in (403, 422), (name, answer.status_code)


def test_lists_show_a_stranger_nothing_of_it(victim, stranger):
    for path in ("/orgs", "/projects", "/auth/sessions", "/auth/api-keys", "/auth/me"):
        answer = stranger.owner.client.get(path, params={})
        assert answer.status_code == 200
        assert not victim.ids & leaked(answer), path


def test_events_for_a_foreign_project_are_named_and_not_counted(victim, stranger):
    for field in ("org_id", "project_id"):
        event = dict(victim.bodies()["POST /v1/track"])
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
        event = dict(victim.bodies()["POST /v1/track"], project_id=who.projects[1])
        answer = narrow.post("/v1/events", json={"events": [event]})
        assert answer.status_code == 422
        assert answer.json()["rejected"][0]["code"] == "foreign_project"
        other = {"granularity": "all", "project_id": who.projects[1]}
        assert narrow.get("/analytics/usage", params=other).status_code == 404


def test_without_or_with_a_bad_credential_every_guarded_route_is_a_401(address):
    for name, _ in operations(address):
        verb, path = name.split(" ")
        for headers in ({}, {"Authorization": "Bearer nonsense"}, {"X-API-Key": "mwu_nonsense"}):
            url = address + path.format(
                id=uuid4(), org_id=uuid4(), project_id=uuid4(), user_id=uuid4(), key_id=uuid4()
            )
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
