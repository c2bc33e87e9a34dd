"""The chart, rendered by the real helm."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "mindweave"
NAMESPACE = "mindweave"
KEDA = "keda.sh/v1alpha1"
# What is in every cluster.
OWN_KINDS = ("v1", "apps/v1", "batch/v1", "autoscaling/v2", "policy/v1", "networking.k8s.io/v1")

Object = dict[str, Any]


def helm() -> str:
    """Its path: that of HELM, what `make` has fetched, or the machine's own."""
    found = os.environ.get("HELM") or shutil.which("helm", path=ROOT / ".tools" / "bin")
    found = found or shutil.which("helm")
    assert found, "there is no helm: make .tools/bin/helm"
    return found


def load(text: str) -> list[Object]:
    return [found for found in yaml.load_all(text, yaml.CSafeLoader) if found]


def template(
    values: Mapping[str, Any] | None = None,
    *,
    files: tuple[Path, ...] = (),
    options: tuple[str, ...] = (),
    chart: Path = CHART,
) -> subprocess.CompletedProcess[str]:
    """What helm makes of the chart with these values, which go before those of the files."""
    command = [helm(), "template", "mindweave", str(chart), "--namespace", NAMESPACE, *options]
    for file in files:
        command += ["--values", str(file)]
    return subprocess.run(
        [*command, "--values", "-"],
        input=yaml.safe_dump(dict(values or {})),
        capture_output=True,
        text=True,
        check=False,
    )


def rendered(*args: Any, **given: Any) -> Rendered:
    done = template(*args, **given)
    assert done.returncode == 0, done.stderr
    return Rendered(done.stdout)


@dataclass(frozen=True)
class Rendered:
    """The objects of one rendering."""

    text: str

    @cached_property
    def objects(self) -> list[Object]:
        return load(self.text)

    def of(self, kind: str) -> dict[str, Object]:
        """Those of a kind, by name."""
        return {o["metadata"]["name"]: o for o in self.objects if o["kind"] == kind}

    @property
    def pods(self) -> Iterator[tuple[str, Object]]:
        """The pods of all that makes some: their maker's name, and their specification."""
        for found in self.objects:
            if found["kind"] in ("Deployment", "StatefulSet", "Job"):
                yield found["metadata"]["name"], found["spec"]["template"]["spec"]


def environment(pod: Object) -> dict[str, Object]:
    """The variables of a pod's only container, by name."""
    (container,) = pod["containers"]
    return {said["name"]: said for said in container.get("env", [])}
