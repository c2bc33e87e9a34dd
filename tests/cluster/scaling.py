"""The autoscaler of Kubernetes, on load and after it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cluster import kubernetes
from tests.cluster.images import build_metrics_server
from tests.cluster.kubernetes import NAMESPACE, install, objects, wait_until_ready
from tests.cluster.load import under_load
from tests.cluster.machine import Machine
from tests.cluster.running import run, until
from tests.e2e.open_loop import Calls

GROUP = "metrics.k8s.io/v1beta1"
SERVER = Path(__file__).with_name("metrics-server.yaml")
SCALED = "gateway"
MOST = 3
# The chart takes a tenth of the processes away each minute, five minutes after the load.
DOWN_PATIENCE = 900.0


def ask_for_metrics(machine: Machine) -> None:
    """Metrics of pods, by a metrics-server of our own where the cluster has none."""
    if GROUP not in run("kubectl", "api-versions").split():
        machine.load([build_metrics_server()])
        run("kubectl", "apply", "--filename", str(SERVER))
    until("metrics are there", _has_metrics)


def _has_metrics() -> bool:
    asked = ("kubectl", "get", "--raw", f"/apis/{GROUP}/namespaces/{NAMESPACE}/pods")
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.returncode == 0 and SCALED in done.stdout


def scaled_up(tag: str) -> Calls:
    """Gateway alone is scaled: more of it come while there is load."""
    options = ("autoscaling.enabled=true", f"autoscaling.maxReplicas={MOST}")
    chosen = ("defaults.scaled=false", f"services.{SCALED}.scaled=true", f"image.tag={tag}")
    install(*(part for value in (*options, *chosen) for part in ("--set", value)))
    wait_until_ready()
    with under_load(kubernetes.address()) as calls:
        until("there are more", lambda: replicas() == MOST)
        wait_until_ready()
    return calls


def replicas() -> int:
    """How many the autoscaler wants now."""
    (found,) = objects("horizontalpodautoscalers")
    return int(found["status"].get("desiredReplicas", 0))


def scaled_down() -> float:
    """The seconds until there are as few as before."""
    return until("there are fewer", lambda: replicas() == 2, DOWN_PATIENCE)
