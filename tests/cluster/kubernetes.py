"""The Kubernetes that KUBECONFIG names, by kubectl and helm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.chart.rendering import CHART, helm
from tests.cluster.running import run, until

NAMESPACE = "mindweave"
RELEASE = "mindweave"
VALUES = Path(__file__).with_name("values.yaml")
Object = dict[str, Any]


def make_namespace(volumes: Sequence[Path]) -> None:
    """Make ours, and volumes in these folders of the nodes for the servers' data."""
    run("kubectl", "create", "namespace", NAMESPACE)
    made = [_volume(f"{NAMESPACE}-{number}", path) for number, path in enumerate(volumes)]
    if made:
        listed = {"apiVersion": "v1", "kind": "List", "items": made}
        kubectl("apply", "--filename", "-", given=json.dumps(listed))


def _volume(name: str, path: Path) -> Object:
    spec = {
        "capacity": {"storage": "8Gi"},
        "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": str(path), "type": "Directory"},
    }
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": spec,
    }


def kubectl(*args: str, given: str | None = None) -> str:
    """What kubectl prints, asked in our namespace."""
    return run("kubectl", "--namespace", NAMESPACE, *args, given=given)


def objects(kind: str, selector: str = "") -> list[Object]:
    """All objects of a kind, or those with labels as ``a=b,c=d``."""
    chosen = ("--selector", selector) if selector else ()
    return list(json.loads(kubectl("get", kind, *chosen, "--output", "json"))["items"])


def pods(name: str) -> list[Object]:
    """The pods of a Deployment or StatefulSet that are not about to end."""
    found = objects("pods", f"app.kubernetes.io/name={name}")
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(said["type"] == "Ready" and said["status"] == "True" for said in conditions)


def nodes() -> list[str]:
    """Names of those that are ready, the one that was made first at first."""
    found = [node for node in objects("nodes") if is_ready(node)]
    found.sort(key=lambda node: str(node["metadata"]["creationTimestamp"]))
    return [str(node["metadata"]["name"]) for node in found]


def all_ready() -> bool:
    """Whether each Deployment and StatefulSet has all its pods, of its newest kind, ready."""
    return all(
        found["status"].get("observedGeneration", 0) >= found["metadata"]["generation"]
        and _counts(found["status"]) == {found["spec"]["replicas"]}
        for kind in ("deployments", "statefulsets")
        for found in objects(kind)
    )


def _counts(status: Object) -> set[int]:
    names = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    return {int(status.get(name, 0)) for name in names}


def wait_until_ready() -> float:
    """The seconds until all is ready, what is being ended has ended, and the address answers."""
    return until("all is ready", lambda: all_ready() and not _ending()) + until(
        "the address answers", answers
    )


def _ending() -> list[Object]:
    return [pod for pod in objects("pods") if "deletionTimestamp" in pod["metadata"]]


def answers() -> bool:
    """Whether the public address says that it is ready."""
    try:
        return httpx.get(f"http://{address()}/health/ready", timeout=5).is_success
    except httpx.TransportError:
        return False


def address() -> str:
    """host:port of the edge, at the first node."""
    (service,) = (found for found in objects("services") if found["metadata"]["name"] == "edge")
    node = next(node for node in objects("nodes") if node["metadata"]["name"] == nodes()[0])
    (host,) = (a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP")
    return f"{host}:{service['spec']['ports'][0]['nodePort']}"


def install(*options: str, chart: Path = CHART, upgrade: bool = True) -> None:
    """Install the release, or bring it to what the chart and the options say."""
    verb = "upgrade" if upgrade else "install"
    place = ("--namespace", NAMESPACE, "--values", str(VALUES))
    run(helm(), verb, RELEASE, str(chart), *place, *options)


def released(*command: str) -> str:
    """What helm says of the release, such as ``rollback``."""
    verb, *options = command
    return run(helm(), verb, RELEASE, "--namespace", NAMESPACE, *options)


def images(name: str) -> set[str]:
    """Those that the ready pods of a Deployment run."""
    return {str(p["spec"]["containers"][0]["image"]) for p in pods(name) if is_ready(p)}


def identities(names: Sequence[str]) -> set[str]:
    """Of the pods that run now; a pod that is made anew has another one."""
    return {str(pod["metadata"]["uid"]) for name in names for pod in pods(name)}


def deployments() -> list[str]:
    """Names of those of the release."""
    return [str(found["metadata"]["name"]) for found in objects("deployments")]
