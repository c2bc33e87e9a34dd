"""docs/observability.md tells of what there is: metrics, objectives, files."""

from __future__ import annotations

import re

import pytest

from tests.deploy.test_rules import promtool
from tests.deploy.written import ROOT, metrics, rules

pytestmark = pytest.mark.unit

PAGE = (ROOT / "docs/observability.md").read_text()
ENDS = ("_bucket", "_count", "_sum")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_metric_is_told_of_with_its_labels_and_no_other() -> None:
    told: dict[str, set[str]] = {}
    for names, labels, _ in rows("Metrics"):
        told |= {n: set(labels.split(", ")) - {""} for n in re.findall(r"`(\w+)`", names)}
    made: dict[str, set[str]] = {}
    for name, labels in metrics().items():
        (end,) = [e for e in ENDS if name.endswith(e)] or [""]
        made[name.removesuffix(end)] = labels - {"service", "job", "instance", "le"}
    assert told.keys() == made.keys()
    # A row of several metrics names the labels of all.
    assert [name for name in told if made[name] - told[name]] == []


def test_every_objective_is_told_of_with_its_promise() -> None:
    told = {row[0].strip("`"): float(row[3].rstrip(" %")) for row in rows("Objectives")}
    kept = {
        rule.labels["slo"]: float(re.sub(r"[^\d.]", "", rule.expr)) * 100
        for rule in rules()
        if rule.name == "mindweave:slo_objective:ratio"
    }
    assert told == pytest.approx(kept)


def test_files_that_are_named_are_there() -> None:
    for name in re.findall(r"`((?:deploy|tests)/[\w./-]+)`", PAGE):
        assert (ROOT / name).exists(), name


def test_the_configuration_for_this_machine_is_understood_by_prometheus() -> None:
    promtool("check", "config", str(ROOT / "deploy/prometheus/prometheus.yaml"))
