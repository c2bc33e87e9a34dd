"""Who may talk to whom: the table of callers, and nothing else."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import yaml

from common.identity.callers import CALLEES, may_call
from tests.chart.rendering import CHART, NAMESPACE, Object, Rendered

pytestmark = pytest.mark.unit

COMPONENT = "app.kubernetes.io/component"
INSTALLED = {"auth", "account", "team", "project", "usage_tracker", "analytics", "gateway"}
PLAIN = ["trying out", "production", "a mesh", "canaries"]
FURTHER = ["a further service", "a further service in a mesh"]
MESHES = ["production", "a mesh", "canaries", "a further service in a mesh"]

Edges = set[tuple[str, str]]


def allowed(services: set[str]) -> Edges:
    """By the names of Kubernetes."""
    return {
        (caller.replace("_", "-"), callee.replace("_", "-"))
        for caller, callee in product(services, repeat=2)
        if may_call(caller, callee)
    }


def expected(name: str) -> Edges:
    return allowed(INSTALLED | {"governance"} if name in FURTHER else INSTALLED)


def of_calls(rules: list[Object]) -> list[Object]:
    return [r for r in rules if {"protocol": "TCP", "port": 9000} in r.get("ports", [])]


def components(peers: list[Object]) -> set[str]:
    assert all(peer.keys() == {"podSelector"} for peer in peers)
    return {peer["podSelector"]["matchLabels"][COMPONENT] for peer in peers}


def selected(policy: Object) -> str:
    return str(policy["spec"]["podSelector"]["matchLabels"].get(COMPONENT, ""))


def test_the_chart_has_the_table_of_the_code() -> None:
    table = yaml.safe_load((CHART / "files" / "callers.yaml").read_text())["callees"]
    assert {caller: set(callees) for caller, callees in table.items()} == CALLEES


@pytest.mark.parametrize("name", PLAIN + FURTHER)
def test_network_policies_let_in_and_out_whom_the_table_allows(chart: Any, name: str) -> None:
    let_in, let_out = set(), set()
    for policy in chart(name).of("NetworkPolicy").values():
        for rule in of_calls(policy["spec"].get("ingress", [])):
            let_in |= {(caller, selected(policy)) for caller in components(rule["from"])}
        for rule in of_calls(policy["spec"].get("egress", [])):
            let_out |= {(selected(policy), callee) for callee in components(rule["to"])}
    assert let_in == let_out == expected(name)


@pytest.mark.parametrize("name", MESHES)
def test_the_mesh_allows_whom_the_table_allows(chart: Any, name: str) -> None:
    edges = set()
    for policy in chart(name).of("AuthorizationPolicy").values():
        for rule in policy["spec"].get("rules", []):
            (to,) = rule["to"]
            if to["operation"]["ports"] == ["9000"]:
                callee = policy["spec"]["selector"]["matchLabels"][COMPONENT]
                (source,) = rule["from"]
                edges |= {(p.rpartition("/sa/")[2], callee) for p in source["source"]["principals"]}
                assert all(f"/ns/{NAMESPACE}/" in p for p in source["source"]["principals"])
    assert edges == expected(name)


@pytest.mark.parametrize("name", MESHES)
def test_a_proxy_knows_whom_its_service_may_call(chart: Any, name: str) -> None:
    servers = {"postgresql", "kafka", "cache", "broker"}
    edges = set()
    for sidecar in chart(name).of("Sidecar").values():
        caller = sidecar["spec"]["workloadSelector"]["labels"][COMPONENT]
        (egress,) = sidecar["spec"]["egress"]
        names = {host[2:].partition(".")[0] for host in egress["hosts"] if host[:2] == "./"}
        edges |= {(caller, callee) for callee in names - servers}
    assert edges == expected(name)


def test_who_is_in_the_mesh_is_the_account_of_the_pods(chart: Any) -> None:
    found: Rendered = chart("canaries")
    accounts = found.of("ServiceAccount").keys()
    for deployment in found.of("Deployment").values():
        pod = deployment["spec"]["template"]
        assert pod["spec"]["serviceAccountName"] == pod["metadata"]["labels"][COMPONENT]
        assert pod["spec"]["serviceAccountName"] in accounts


def test_without_a_rule_nothing_passes(any_chart: Rendered) -> None:
    nothing = any_chart.of("NetworkPolicy")["nothing"]["spec"]
    instance = {"app.kubernetes.io/instance": "mindweave"}
    assert nothing == {
        "podSelector": {"matchLabels": instance},
        "policyTypes": ["Ingress", "Egress"],
    }
    for _, labels in makers(any_chart):
        assert instance.items() <= labels.items()


def makers(found: Rendered) -> list[tuple[str, dict[str, str]]]:
    return [
        (o["metadata"]["name"], o["spec"]["template"]["metadata"]["labels"])
        for o in found.objects
        if o["kind"] in ("Deployment", "StatefulSet", "Job")
    ]


def test_every_way_out_is_named(any_chart: Rendered) -> None:
    for name, policy in any_chart.of("NetworkPolicy").items():
        for rule in policy["spec"].get("egress", []):
            assert rule["ports"], name
            assert rule.get("to") or name == "secrets"


def test_servers_let_in_only_those_that_use_them(chart: Any) -> None:
    policies = chart("trying out").of("NetworkPolicy")
    users = {}
    for server in ("postgresql", "kafka", "cache"):
        (rule,) = policies[server]["spec"]["ingress"]
        users[server] = {
            peer["podSelector"]["matchLabels"].get(COMPONENT, "migrate") for peer in rule["from"]
        }
    kebab = {name.replace("_", "-") for name in INSTALLED}
    assert users == {
        "postgresql": (kebab - {"gateway"}) | {"migrate"},
        "kafka": kebab,
        "cache": {"auth", "analytics"},
    }


def test_rest_comes_from_the_edge_alone(chart: Any) -> None:
    for name, source in {
        "trying out": {"podSelector": {"matchLabels": {COMPONENT: "edge"}}},
        "a mesh": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "istio-ingress"}}
        },
    }.items():
        facing = {}
        for policy in chart(name).of("NetworkPolicy").values():
            for rule in policy["spec"].get("ingress", []):
                if {"protocol": "TCP", "port": 8080} in rule["ports"] and "from" in rule:
                    (facing[selected(policy)],) = rule["from"]
        for peer in facing.values():
            peer.get("podSelector", {"matchLabels": {}})["matchLabels"].pop(
                "app.kubernetes.io/instance", None
            )
        assert facing == {"gateway": source, "usage-tracker": source}
