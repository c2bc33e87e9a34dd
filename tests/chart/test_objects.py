"""What holds for every object that the chart makes, whatever the values."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from common.identity.callers import SERVICES
from common.settings import PREFIX, Limits, Resilience, Settings
from fleet.environment import variable
from tests.chart.conftest import DEPLOY, MESH
from tests.chart.rendering import CHART, ROOT, Rendered, environment, load, template
from tests.chart.schemas import complaints

pytestmark = pytest.mark.unit

# A user with a password, in a URL.
CREDENTIAL = re.compile(r"://[^/\s\"']*:[^/\s\"'${]+@")
SECRET_SETTINGS = {"secret", "kafka_password", "kafka_username", "redis_url", "cache_url"}


def test_every_object_fits_its_schema(any_chart: Rendered) -> None:
    found = {
        f"{o['kind']} {o['metadata']['name']}": told
        for o in any_chart.objects
        if (told := complaints(o))
    }
    assert found == {}


@pytest.mark.parametrize("file", sorted((ROOT / "deploy" / "istio").glob("*.yaml")), ids=str)
def test_what_is_deployed_for_the_whole_mesh_fits_its_schema(file: Any) -> None:
    objects = [found for found in load(file.read_text()) if "kind" in found]
    assert {o["metadata"]["name"]: told for o in objects if (told := complaints(o))} == {}


def test_a_wrong_object_is_complained_of(chart: Any) -> None:
    service = chart("a mesh").of("Service")["team"]
    route = chart("a mesh").of("VirtualService")["team"]
    assert complaints(service) == complaints(route) == []
    service = service | {"spec": service["spec"] | {"port": 1}}
    assert "port" in str(complaints(service))
    unknown = route | {"spec": route["spec"] | {"timeouts": "1s"}}
    assert "timeouts" in str(complaints(unknown))
    endless = [route["spec"]["http"][1] | {"timeout": "0s"}]
    assert "0s" in str(complaints(route | {"spec": route["spec"] | {"http": endless}}))


def test_no_two_objects_have_one_name(any_chart: Rendered) -> None:
    names = [(o["kind"], o["metadata"]["name"]) for o in any_chart.objects]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for _, name in names)


def test_the_same_values_make_the_same_text(chart: Any) -> None:
    assert template({}).stdout == chart("trying out").text


def test_no_object_holds_a_secret(any_chart: Rendered) -> None:
    assert any_chart.of("Secret") == {}
    assert not CREDENTIAL.search(any_chart.text)
    secrets = {variable(name) for name in SECRET_SETTINGS}
    for configured in any_chart.of("ConfigMap").values():
        assert not secrets & configured["data"].keys()
    for _, pod in any_chart.pods:
        for name, said in environment(pod).items():
            if name in secrets or name.endswith("PASSWORD") or "OWNER_URL" in name:
                assert said["valueFrom"]["secretKeyRef"]["name"]


def test_every_setting_exists(any_chart: Rendered) -> None:
    known = {variable(name) for name in Settings.model_fields}
    for name, kind in (("LIMITS", Limits), ("RESILIENCE", Resilience)):
        known |= {f"{PREFIX}{name}__{part.upper()}" for part in kind.model_fields}
    known |= {f"DATABASE_{kind}URL_{s.upper()}" for s in SERVICES for kind in ("", "OWNER_")}
    ours = (PREFIX, "DATABASE_", "REDIS_", "KAFKA_BROKERS")
    used = set(any_chart.of("ConfigMap")["mindweave"]["data"])
    for _, pod in any_chart.pods:
        used |= {name for name in environment(pod) if name.startswith(ours)}
    assert used <= known


def test_every_container_may_do_the_least(any_chart: Rendered) -> None:
    for name, pod in any_chart.pods:
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert name == "secrets-install" or pod["automountServiceAccountToken"] is False, name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"requests", "limits"} <= container["resources"].keys()


def test_what_is_mounted_is_there(any_chart: Rendered) -> None:
    for found in any_chart.objects:
        if found["kind"] not in ("Deployment", "StatefulSet", "Job"):
            continue
        spec = found["spec"]
        pod = spec["template"]["spec"]
        there = {volume["name"] for volume in pod.get("volumes", [])}
        there |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= there


BAD: list[tuple[dict[str, Any], str]] = [
    ({"broker": {"kind": "rabbitmq"}}, "broker.kind"),
    ({"database": {"address": "postgresql://user@host/db"}}, "database.address"),
    ({"edge": {"replicas": 0}}, "edge.replicas"),
    ({"autoscaling": {"cpu": 700}}, "autoscaling.cpu"),
    ({"autoscaling": {"minReplicas": 11}}, "autoscaling.minReplicas"),
    ({"image": {"regisrty": "x"}}, "regisrty"),
    ({"services": {"team": {"replica": 1}}}, "replica"),
    ({"services": {"teams": {}}}, "services.teams"),
    ({"services": {"team": {"canary": {"tag": "2", "weight": 10}}}}, "services.team.canary"),
    ({"settings": {"MINDWEAVE_POOLSIZE": "8"}}, "MINDWEAVE_POOLSIZE"),
    ({"settings": {"MINDWEAVE_SECRET": "x"}}, "MINDWEAVE_SECRET"),
    ({"settings": {"MINDWEAVE_POOL_SIZE": 8}}, "MINDWEAVE_POOL_SIZE"),
    ({"secrets": {"external": {"enabled": True}}}, "secrets.generate"),
    (
        {"secrets": {"generate": False, "external": {"enabled": True}}},
        "secrets.external.storeName",
    ),
    ({"cache": {"address": "cache:6379"}}, "secrets.generate"),
    (
        {"secrets": {"generate": False}, "cache": {"address": "cache:6379"}},
        "networkPolicy.egress.cache",
    ),
    ({"settings": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318"}}, "egress.telemetry"),
    ({"mesh": {"enabled": True}}, "mesh.host"),
    ({"edge": {"ingress": {"enabled": True}}}, "edge.ingress.host"),
    ({"edge": {"ingress": {"enabled": True, "host": "a"}}}, "edge.trustedHops"),
]


@pytest.mark.parametrize(("values", "field"), BAD, ids=[field for _, field in BAD])
def test_bad_values_are_refused_by_name(values: dict[str, Any], field: str) -> None:
    done = template(values)
    assert done.returncode != 0
    told = done.stderr.replace("/", ".")
    assert field in told


def test_values_of_the_environments_name_what_the_chart_has() -> None:
    known = yaml.safe_load((CHART / "values.yaml").read_text())
    for file in DEPLOY.glob("*.yaml"):
        assert yaml.safe_load(file.read_text()).keys() <= known.keys()
    assert MESH.keys() <= known.keys()
