"""The processes that the chart starts, how they are told where all is, and how they grow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.background import BOTH
from common.settings import load_settings
from fleet.named import placed
from fleet.services import SERVICES, owners
from tests.chart.rendering import CHART, ROOT, Object, Rendered, environment, rendered

pytestmark = pytest.mark.unit

WORKER = "usage-tracker-work"
OURS = {*(name.replace("_", "-") for name in SERVICES), WORKER}


def container(found: Rendered, name: str) -> Object:
    (one,) = found.of("Deployment")[name]["spec"]["template"]["spec"]["containers"]
    return dict(one)


def test_every_service_runs_with_both_roles(chart: Any) -> None:
    found = chart("trying out")
    assert found.of("Deployment").keys() == OURS | {"edge"}
    roles: dict[str, frozenset[Any]] = {}
    for name in OURS:
        (one,) = placed(container(found, name)["args"])
        roles[one.service.name] = roles.get(one.service.name, frozenset()) | one.roles
    assert roles == dict.fromkeys(SERVICES, BOTH)


def test_a_process_is_configured_by_what_it_is_given(
    any_chart: Rendered, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = any_chart.of("ConfigMap")["mindweave"]["data"]
    for name, pod in any_chart.pods:
        if name not in OURS:
            continue
        with monkeypatch.context() as process:
            for variable, value in shared.items():
                process.setenv(variable, value)
            for variable, said in environment(pod).items():
                secret = f"{variable.lower()}://a-secret-that-is-long-enough-for-this"
                refers = "secretKeyRef" in said.get("valueFrom", {})
                process.setenv(variable, said.get("value", secret if refers else name))
            settings = load_settings()
        for service in ("auth", "team"):
            if any_chart.of("PeerAuthentication"):
                assert settings.addresses == {}
            else:
                target = settings.addresses[service].partition(":")[0]
                assert target in any_chart.of("Service")
        assert settings.kafka_brokers or settings.redis_url
        # REST, then what works in the background, then gRPC.
        grace = settings.drain_delay + settings.drain_timeout + 10 + settings.drain_timeout
        assert pod["terminationGracePeriodSeconds"] > grace + 2


def test_a_process_knows_its_own_database_alone_and_no_administrator(chart: Any) -> None:
    for name in ("trying out", "production"):
        for process, pod in chart(name).pods:
            if process not in OURS:
                continue
            databases = [n for n in environment(pod) if n.startswith("DATABASE")]
            assert databases == ([] if process == "gateway" else ["DATABASE_URL"])
            for variable in databases:
                assert "@" not in environment(pod)[variable]["value"]


def test_services_whose_tables_grow_have_their_own_server(chart: Any) -> None:
    pods = dict(chart("production").pods)
    where = {name: environment(pods[name])["DATABASE_URL"]["value"] for name in OURS - {"gateway"}}
    grown = {name for name, url in where.items() if "timescale-rw" in url}
    assert grown == {"usage-tracker", WORKER, "analytics"}
    assert all(url.endswith("?sslmode=require") for url in where.values())


def test_probes_ask_the_address_of_metrics(any_chart: Rendered) -> None:
    for name in OURS:
        found = container(any_chart, name)
        ports = {port["name"]: port["containerPort"] for port in found["ports"]}
        assert (ports["grpc"], ports["metrics"]) == (9000, 9090)
        assert ports.get("http") == (8080 if name in ("gateway", "usage-tracker") else None)
        for probe, path in {
            "startupProbe": "/health/live",
            "livenessProbe": "/health/live",
            "readinessProbe": "/health/ready",
        }.items():
            assert found[probe]["httpGet"] == {"path": path, "port": "metrics"}
        assert found["lifecycle"]["preStop"]


def test_processes_follow_the_load_as_the_product_says(chart: Any) -> None:
    found = chart("trying out")
    assert found.of("HorizontalPodAutoscaler").keys() == OURS
    for name, scaler in found.of("HorizontalPodAutoscaler").items():
        spec = scaler["spec"]
        assert spec["scaleTargetRef"]["name"] == name
        assert "replicas" not in found.of("Deployment")[name]["spec"]
        assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 10)
        targets = {
            m["resource"]["name"]: m["resource"]["target"]["averageUtilization"]
            for m in spec["metrics"]
        }
        assert targets == {"cpu": 70, "memory": 80}
        up, down = spec["behavior"]["scaleUp"], spec["behavior"]["scaleDown"]
        assert up["policies"] == [{"type": "Percent", "value": 100, "periodSeconds": 60}]
        assert down["policies"] == [{"type": "Percent", "value": 10, "periodSeconds": 60}]
        assert (up["stabilizationWindowSeconds"], down["stabilizationWindowSeconds"]) == (0, 300)


def test_workers_follow_what_waits_where_the_cluster_can(chart: Any) -> None:
    found = chart("trying out with KEDA")
    assert found.of("HorizontalPodAutoscaler").keys() == OURS - {WORKER}
    (trigger, *others) = found.of("ScaledObject")[WORKER]["spec"]["triggers"]
    assert [(t["type"], t["metadata"]["value"]) for t in others] == [
        ("cpu", "70"),
        ("memory", "80"),
    ]
    assert trigger["metadata"]["topic"] == "usage.events"
    assert trigger["metadata"]["consumerGroup"] == "usage_tracker.usage.events"
    assert "authenticationRef" not in trigger
    secured = chart("production with KEDA")
    (trigger, *_) = secured.of("ScaledObject")[WORKER]["spec"]["triggers"]
    assert trigger["metadata"]["sasl"] == "scram_sha512"
    assert trigger["authenticationRef"]["name"] in secured.of("TriggerAuthentication")


def test_one_pod_at_most_is_taken_away(any_chart: Rendered) -> None:
    deployments = any_chart.of("Deployment")
    budgets = any_chart.of("PodDisruptionBudget")
    assert budgets.keys() == deployments.keys()
    for name, budget in budgets.items():
        assert budget["spec"]["maxUnavailable"] == 1
        labels = deployments[name]["spec"]["template"]["metadata"]["labels"]
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_a_further_service_is_an_entry(chart: Any) -> None:
    before = {(o["kind"], o["metadata"]["name"]) for o in chart("trying out").objects}
    after = {(o["kind"], o["metadata"]["name"]) for o in chart("a further service").objects}
    assert after - before == {
        ("Deployment", "governance"),
        ("HorizontalPodAutoscaler", "governance"),
        ("Job", "migrate-governance-install"),
        ("NetworkPolicy", "governance"),
        ("PodDisruptionBudget", "governance"),
        ("Service", "governance"),
        ("Service", "governance-pods"),
        ("ServiceAccount", "governance"),
    }
    assert before <= after


def test_services_find_the_pods_that_serve(any_chart: Rendered) -> None:
    pods = [d["spec"]["template"] for d in any_chart.of("Deployment").values()]
    for name, service in any_chart.of("Service").items():
        selector = service["spec"]["selector"].items()
        found = [p for p in pods if selector <= p["metadata"]["labels"].items()]
        assert found or name in {*any_chart.of("StatefulSet")}
        for pod in found:
            (one,) = pod["spec"]["containers"]
            ports = {port["name"] for port in one["ports"]}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports, name
        names = {p["metadata"]["labels"]["app.kubernetes.io/name"] for p in found}
        assert WORKER not in names or name == f"{WORKER}-pods"


def test_databases_are_migrated_beside_an_install_and_before_an_upgrade(chart: Any) -> None:
    databases = {owner.name.replace("_", "-") for owner in owners()}
    installed = chart("trying out").of("Job")
    assert installed.keys() == {f"migrate-{n}-install" for n in databases} | {"secrets-install"}
    assert not any("annotations" in job["metadata"] for job in installed.values())
    upgraded = chart("an upgrade").of("Job")
    assert upgraded.keys() == {f"migrate-{name}" for name in databases}
    for job in upgraded.values():
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"
        (one,) = job["spec"]["template"]["spec"]["containers"]
        assert one["args"] == ["migrate"]


def test_a_canary_is_migrated_to_before_it_runs(chart: Any) -> None:
    jobs = {name: pod["containers"][0]["image"] for name, pod in chart("canaries").pods}
    assert jobs["migrate-team-install"] == jobs["team-canary"] == "mindweave/team:0.2.0"
    present = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert jobs["team"] == f"mindweave/team:{present}"


def test_servers_for_trying_out_are_not_in_production(chart: Any) -> None:
    assert chart("trying out").of("StatefulSet").keys() == {"postgresql", "kafka", "cache"}
    streams = chart("redis streams behind an ingress")
    assert streams.of("StatefulSet").keys() == {"postgresql", "broker", "cache"}
    assert chart("production").of("StatefulSet") == {}


def test_metrics_are_scraped_and_what_shows_them_is_provisioned(chart: Any, tmp_path: Path) -> None:
    found = chart("production")
    selector = found.of("ServiceMonitor")["mindweave"]["spec"]["selector"]["matchLabels"]
    scraped = {
        name
        for name, service in found.of("Service").items()
        if selector.items() <= service["metadata"]["labels"].items()
    }
    assert scraped == {f"{name}-pods" for name in OURS}
    (endpoint,) = found.of("ServiceMonitor")["mindweave"]["spec"]["endpoints"]
    assert endpoint["honorLabels"] is True
    assert {f"dashboard-{file.stem}" for file in (ROOT / "deploy/grafana").glob("*.json")} == {
        name for name in found.of("ConfigMap") if name.startswith("dashboard-")
    }
    rules = {file.stem for file in (ROOT / "deploy/prometheus/rules").glob("*.yaml")}
    assert found.of("PrometheusRule").keys() == {f"mindweave-{name}" for name in rules}
    copy = shutil.copytree(CHART, tmp_path / "mindweave")
    for folder, file, text in (
        ("dashboards", "fleet_overview.json", json.dumps({"title": "{{ fleet }}"})),
        ("rules", "slo.yaml", "groups: [{name: slo, rules: []}]"),
    ):
        (copy / "files" / folder).mkdir(exist_ok=True)
        (copy / "files" / folder / file).write_text(text)
    shown = rendered({"monitoring": {"enabled": True}}, chart=copy)
    board = shown.of("ConfigMap")["dashboard-fleet-overview"]
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(board["data"]["fleet_overview.json"]) == {"title": "{{ fleet }}"}
    rules = shown.of("PrometheusRule")["mindweave-slo"]["spec"]
    assert rules == {"groups": [{"name": "slo", "rules": []}]}
