"""The Istio option: what is encrypted, judged, asked again, given up and split."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from common.identity.tokens import AUDIENCE
from common.rpc.metadata import ACTING_FOR, CALLER, IP, PRINCIPAL, USER_AGENT
from common.settings import Settings
from fleet.layout.envoy import REQUEST_SECONDS
from tests.chart.rendering import CHART, ROOT, Object, Rendered, load, rendered

pytestmark = pytest.mark.unit

MESHES = ["production", "a mesh", "canaries"]


@pytest.fixture(params=MESHES)
def mesh(request: pytest.FixtureRequest, chart: Any) -> Rendered:
    found: Rendered = chart(request.param)
    return found


def routes(found: Rendered) -> list[Object]:
    """Of the public address, in order."""
    return list(found.of("VirtualService")["mindweave"]["spec"]["http"])


def taken(found: Rendered, method: str, path: str, **headers: str) -> Object:
    """The first route that matches, as Envoy takes it."""
    for route in routes(found):
        (match,) = route["match"]
        uri, verb = match["uri"], match.get("method", {})
        at = uri["exact"] == path if "exact" in uri else path.startswith(uri["prefix"])
        by = method in verb.get("regex", verb.get("exact", method)).split("|")
        asked = all(
            headers.get(name) == wanted["exact"]
            for name, wanted in match.get("headers", {}).items()
        )
        if at and by and asked:
            return route
    raise LookupError(path)


def weights(route: Object) -> dict[tuple[str, str], int]:
    return {
        (
            to["destination"]["host"].partition(".")[0],
            to["destination"].get("subset", ""),
        ): to.get("weight", 100)
        for to in route["route"]
    }


def test_there_is_no_plain_text(mesh: Rendered) -> None:
    (peer,) = mesh.of("PeerAuthentication").values()
    assert peer["spec"] == {"mtls": {"mode": "STRICT"}}
    for rule in mesh.of("DestinationRule").values():
        assert rule["spec"]["trafficPolicy"]["tls"] == {"mode": "ISTIO_MUTUAL"}


def test_nobody_may_do_what_nobody_allows(mesh: Rendered) -> None:
    policies = mesh.of("AuthorizationPolicy")
    assert policies["nothing"]["spec"] == {}
    for name, policy in policies.items():
        spec = policy["spec"]
        assert name == "nothing" or (spec["action"] == "ALLOW" and spec["selector"])
        for rule in spec.get("rules", []):
            assert all(source["source"]["principals"] for source in rule["from"])
            assert all(to["operation"]["ports"] for to in rule["to"])


def test_clients_come_by_the_ingress_to_those_that_answer_rest(mesh: Rendered) -> None:
    facing = {
        name
        for name, policy in mesh.of("AuthorizationPolicy").items()
        for rule in policy["spec"].get("rules", [])
        if rule["to"][0]["operation"]["ports"] == ["8080"]
    }
    assert facing == {"gateway-rest", "usage-tracker-rest"}
    assert "edge" not in mesh.of("Deployment")


def test_tokens_are_judged_where_services_alone_set_the_header(mesh: Rendered) -> None:
    headers = {}
    for name, judged in mesh.of("RequestAuthentication").items():
        found = set()
        for rule in judged["spec"]["jwtRules"]:
            assert rule["audiences"] == [AUDIENCE]
            assert rule["forwardOriginalToken"] is True
            assert rule["jwksUri"] == "https://api.example.com/.well-known/jwks.json"
            (header,) = rule["fromHeaders"]
            assert header.get("prefix", "") == ("Bearer " if header["name"] == PRINCIPAL else "")
            found.add(header["name"])
        headers[name] = found
    behind = {"auth", "account", "team", "project", "analytics"}
    facing = {"gateway", "usage-tracker"}
    expected = {name: {CALLER, PRINCIPAL} for name in behind} | {name: {CALLER} for name in facing}
    assert headers == expected


def test_the_issuer_is_that_of_the_settings(mesh: Rendered) -> None:
    said = mesh.of("ConfigMap")["mindweave"]["data"]["MINDWEAVE_ISSUER"]
    rules = [
        rule for r in mesh.of("RequestAuthentication").values() for rule in r["spec"]["jwtRules"]
    ]
    assert {rule["issuer"] for rule in rules} == {said}
    assert "issuer" in Settings.model_fields


def test_nothing_is_judged_at_the_ingress() -> None:
    files = (ROOT / "deploy" / "istio").glob("*.yaml")
    kinds = [o.get("kind") for file in files for o in load(file.read_text())]
    assert "Gateway" in kinds
    assert "RequestAuthentication" not in kinds


def test_what_the_docs_type_installs_definitions_first_and_leaves_no_file_out() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text()
    for file in (ROOT / "deploy/istio").glob("*.yaml"):
        assert f"-f deploy/istio/{file.name}" in page
    assert page.index("istio/base") < page.index("-f deploy/istio/mesh.yaml")


def test_the_ingress_answers_by_itself_and_bounds_requests_as_the_edge_does() -> None:
    (answers,) = load((ROOT / "deploy/istio/answers.yaml").read_text())
    (gateway, _) = load((ROOT / "deploy/istio/gateway.yaml").read_text())
    assert answers["metadata"]["namespace"] == gateway["metadata"]["namespace"]
    assert answers["spec"]["workloadSelector"]["labels"] == gateway["spec"]["selector"]
    (patch,) = answers["spec"]["configPatches"]
    said = patch["patch"]["value"]["typed_config"]
    (listener,) = json.loads((CHART / "files/edge.json").read_text())["static_resources"][
        "listeners"
    ]
    (manager,) = listener["filter_chains"][0]["filters"]
    edge = manager["typed_config"]
    assert {
        "local_reply_config",
        "max_request_headers_kb",
        "request_headers_timeout",
    } <= said.keys()
    ours, theirs = (found.pop("local_reply_config")["mappers"] for found in (said, edge))
    assert said.items() <= edge.items()
    # A name that is not ours is refused there, which a user is told as the edge tells of a path.
    *same, refused = ours
    assert same == theirs
    assert refused["filter"]["status_code_filter"]["comparison"]["value"]["default_value"] == 403
    assert refused["status_code"] == 404


@pytest.mark.parametrize(
    ("method", "path", "service", "attempts"),
    [
        ("GET", "/orgs", "gateway", 2),
        ("HEAD", "/orgs", "gateway", 2),
        ("POST", "/orgs", "gateway", 0),
        ("DELETE", "/auth/sessions", "gateway", 0),
        ("GET", "/v1/events", "gateway", 2),
        ("HEAD", "/v1/events", "gateway", 2),
        ("POST", "/v1/events", "usage-tracker", 0),
        ("OPTIONS", "/v1/events", "usage-tracker", 0),
        ("POST", "/v1/track", "usage-tracker", 0),
        ("GET", "/v1/health", "usage-tracker", 2),
        ("GET", "/v1/events/more", "gateway", 2),
        ("POST", "/v1/prices", "gateway", 0),
    ],
)
def test_a_path_goes_to_its_service_and_reads_alone_are_asked_again(
    mesh: Rendered, method: str, path: str, service: str, attempts: int
) -> None:
    route = taken(mesh, method, path)
    assert {name for name, _ in weights(route)} == {service}
    assert route["retries"]["attempts"] == attempts
    assert float(route["timeout"].rstrip("s")) > REQUEST_SECONDS


def test_clients_say_nothing_that_services_say(mesh: Rendered) -> None:
    for route in routes(mesh):
        assert set(route["headers"]["request"]["remove"]) == {CALLER, IP, USER_AGENT, ACTING_FOR}


def between(found: Rendered) -> Iterator[tuple[str, Object]]:
    for name, service in found.of("VirtualService").items():
        if service["spec"]["gateways"] == ["mesh"]:
            for route in service["spec"]["http"]:
                yield name, route


def test_calls_between_services_are_never_asked_again(mesh: Rendered) -> None:
    health = set()
    for name, route in between(mesh):
        assert route["retries"] == {"attempts": 0}
        if route["name"] == "health":
            health.add(name)
            assert "timeout" not in route
            assert route["match"][0]["uri"]["prefix"] == "/grpc.health.v1.Health/"
        else:
            assert (
                float(route["timeout"].rstrip("s")) >= Settings.model_fields["rpc_timeout"].default
            )
    assert health == {"auth", "account", "team", "project", "usage-tracker", "analytics", "gateway"}


def test_what_does_not_answer_is_left_and_half_of_them_stay(mesh: Rendered) -> None:
    for rule in mesh.of("DestinationRule").values():
        policy = rule["spec"]["trafficPolicy"]
        assert policy["outlierDetection"]["maxEjectionPercent"] == 50
        assert policy["connectionPool"]["http"]["http2MaxRequests"] > 0


def test_a_canary_gets_its_share_and_those_that_ask_for_it(chart: Any) -> None:
    found = chart("canaries")
    split = {("gateway", "stable"): 90, ("gateway", "canary"): 10}
    for method in ("GET", "POST"):
        assert weights(taken(found, method, "/orgs")) == split
        asked = taken(found, method, "/orgs", **{"x-canary": "always"})
        assert weights(asked) == {("gateway", "canary"): 100}
        assert asked["retries"] == taken(found, method, "/orgs")["retries"]
    assert weights(taken(found, "POST", "/v1/events")) == {("usage-tracker", "stable"): 100}
    calls = [weights(route) for name, route in between(found) if name == "team"]
    assert calls == [{("team", "stable"): 90, ("team", "canary"): 10}] * 2


def test_a_canary_begins_without_a_share() -> None:
    given = {"mesh": {"enabled": True, "host": "api.example.com"}}
    found = rendered(given | {"services": {"team": {"canary": {"tag": "0.2.0", "weight": 0}}}})
    calls = [weights(route) for name, route in between(found) if name == "team"]
    assert calls == [{("team", "stable"): 100, ("team", "canary"): 0}] * 2


def test_subsets_are_the_pods_of_a_release(chart: Any) -> None:
    found = chart("canaries")
    pods = [d["spec"]["template"]["metadata"]["labels"] for d in found.of("Deployment").values()]
    subsets = found.of("DestinationRule")["gateway"]["spec"]["subsets"]
    names = {}
    for subset in subsets:
        names[subset["name"]] = {
            labels["app.kubernetes.io/name"]
            for labels in pods
            if subset["labels"].items() <= labels.items()
            and labels["app.kubernetes.io/component"] == "gateway"
        }
    assert names == {"stable": {"gateway"}, "canary": {"gateway-canary"}}
    assert "gateway-canary" not in found.of("HorizontalPodAutoscaler")
    assert found.of("Deployment")["gateway-canary"]["spec"]["replicas"] == 2


def test_a_canary_comes_and_goes_without_a_route_to_what_a_proxy_does_not_know(chart: Any) -> None:
    before, during = chart("a mesh"), chart("canaries")
    for name, rule in before.of("DestinationRule").items():
        assert rule["spec"]["subsets"] == during.of("DestinationRule")[name]["spec"]["subsets"]
    found = [*routes(before), *(route for _, route in between(before))]
    assert {subset for route in found for _, subset in weights(route)} == {"stable"}
