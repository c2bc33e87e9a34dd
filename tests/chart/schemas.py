"""Schemas of objects: Kubernetes' from its OpenAPI document, Istio's from its definitions."""

from __future__ import annotations

import copy
import json
import os
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.chart.rendering import ROOT, Object

KUBERNETES = "v1.34.0-local-strict"
# Of operators whose definitions are not at hand: only their kind is known here.
OF_OPERATORS = {
    "ExternalSecret": "external-secrets.io/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "ScaledObject": "keda.sh/v1alpha1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "TriggerAuthentication": "keda.sh/v1alpha1",
}
_LOGIC = ("oneOf", "anyOf", "allOf", "not")
# What an API server says by a rule that no JSON schema has: a duration of some length.
_LASTS = "duration(self) >= duration('1ms')"
_DURATION = r"^(?=.*[1-9])([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"


def complaints(found: Object) -> list[str]:
    """What an object's schema has against it."""
    version, kind = found["apiVersion"], found["kind"]
    if OF_OPERATORS.get(kind) == version:
        return []
    validator = _of_istio(version, kind) if ".istio.io/" in version else _own(version, kind)
    return [f"{'/'.join(map(str, e.path))}: {e.message}" for e in validator.iter_errors(found)]


@cache
def _own(version: str, kind: str) -> Draft202012Validator:
    group, _, number = version.rpartition("/")
    name = "-".join(part for part in (kind.lower(), group.partition(".")[0], number) if part)
    schema = json.loads(_schemas().joinpath(f"{name}.json").read_text())
    return Draft202012Validator(schema, registry=_definitions())


def _schemas() -> Any:
    return files("kubernetes_validate") / "kubernetes-json-schema" / KUBERNETES


@cache
def _definitions() -> Registry[Any]:
    text = _schemas().joinpath("_definitions.json").read_text()
    return Resource.from_contents(json.loads(text)) @ Registry()


@cache
def _istio() -> dict[tuple[str, str], Object]:
    default = ROOT.parent / "shared" / "data" / "istio-crds.yaml"
    file = Path(os.environ.get("ISTIO_CRDS", default))
    if not file.is_file():
        pytest.fail(f"there are no definitions of Istio at {file}: set ISTIO_CRDS")
    found = {}
    for definition in yaml.load_all(file.read_text(), yaml.CSafeLoader):
        spec = definition["spec"]
        for version in spec["versions"]:
            name = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
            found[name] = version["schema"]["openAPIV3Schema"]
    return found


@cache
def _of_istio(version: str, kind: str) -> Draft202012Validator:
    schema = copy.deepcopy(_istio()[version, kind])
    _close(schema["properties"]["spec"])
    return Draft202012Validator(schema)


def _close(schema: Any) -> None:
    """Refuse what an API server drops, fields that no schema names, and no time at all."""
    if isinstance(schema, list):
        for part in schema:
            _close(part)
    if not isinstance(schema, dict):
        return
    if any(said["rule"] == _LASTS for said in schema.get("x-kubernetes-validations", ())):
        schema["pattern"] = _DURATION
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    for key, part in schema.items():
        # What stands there says more of fields that are named beside it.
        if key in _LOGIC:
            continue
        if key == "properties":
            for field in part.values():
                _close(field)
        else:
            _close(part)
