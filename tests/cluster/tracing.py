"""Where the fleet's spans go: a pod beside it that tells which service called which."""

from __future__ import annotations

import json

from tests.chart.rendering import ROOT
from tests.cluster.kubernetes import Object, is_ready, kubectl, pods
from tests.cluster.receiver import PORT
from tests.cluster.running import until
from tests.e2e.edges import Edge

NAME = "receiver"
ENDPOINT = f"http://{NAME}:{PORT}"
# What it imports that no image has.
MODULES = ("tests/common/otlp.py", "tests/e2e/edges.py", "tests/cluster/receiver.py")


def start(image: str) -> None:
    """Start it, with the Python of a service's image, and wait until it is ready."""
    kubectl("apply", "--filename", "-", given=json.dumps(_objects(image)))
    until("the receiver of spans is ready", lambda: any(is_ready(pod) for pod in pods(NAME)))


def seen() -> set[Edge]:
    """The edges so far."""
    lines = kubectl("logs", NAME).splitlines()
    return {(caller, callee) for caller, callee in (line.split() for line in lines)}


def _objects(image: str) -> Object:
    labels = {"app.kubernetes.io/name": NAME}
    files = {path.replace("/", "."): (ROOT / path).read_text() for path in MODULES}
    container = {
        "name": NAME,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/app/bin/python", "-m", "tests.cluster.receiver"],
        "env": [{"name": "PYTHONPATH", "value": "/etc/receiver"}],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
        "volumeMounts": [{"name": "modules", "mountPath": "/etc/receiver"}],
    }
    items = [{"key": path.replace("/", "."), "path": path} for path in MODULES]
    volume = {"name": "modules", "configMap": {"name": NAME, "items": items}}
    pod = {"containers": [container], "volumes": [volume], "terminationGracePeriodSeconds": 1}
    ports = [{"port": PORT}]
    return {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            _object("ConfigMap", labels, data=files),
            _object("Service", labels, spec={"selector": labels, "ports": ports}),
            _object("Pod", labels, spec=pod),
        ],
    }


def _object(kind: str, labels: dict[str, str], **rest: object) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": NAME, "labels": labels}, **rest}


def stop() -> None:
    """Take it away."""
    kubectl("delete", "pod,service,configmap", NAME, "--ignore-not-found", "--wait")
