"""What stands in deploy: rules, dashboards and their queries; and which metrics the code has."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = sorted((ROOT / "deploy/prometheus/rules").glob("*.yaml"))
TESTS = sorted((ROOT / "deploy/prometheus/tests").glob("*.yaml"))
DASHBOARDS = sorted((ROOT / "deploy/grafana").glob("*.json"))

_MAKERS = {"counter", "gauge", "histogram"}
# What a histogram is shown as.
_OF_HISTOGRAM = {"_bucket": {"le"}, "_count": set(), "_sum": set()}
# Prometheus' own, and what its client tells of a process.
_OTHERS = {
    "up": set[str](),
    "ALERTS": {"alertname", "alertstate", "severity"},
    "process_start_time_seconds": set[str](),
    "process_cpu_seconds_total": set[str](),
    "process_resident_memory_bytes": set[str](),
    "process_open_fds": set[str](),
    "process_max_fds": set[str](),
}
_TARGET = {"job", "instance"}
_NAME = re.compile(r"(?<![\w:$\"'])(?:mindweave[_:][\w:]+|process_\w+|up|ALERTS)(?![\w:(])")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")
_LABELS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


@dataclass(frozen=True)
class Rule:
    """A rule of a file; ``name`` is its alert's or its record's."""

    file: str
    name: str
    alert: bool
    expr: str
    labels: dict[str, str]
    annotations: dict[str, str]


@dataclass(frozen=True)
class Panel:
    """A panel with its queries in PromQL."""

    dashboard: str
    title: str
    expressions: tuple[str, ...]
    shown: dict[str, Any]


@cache
def metrics() -> dict[str, set[str]]:
    """The labels of each series that the code makes, by its name as Prometheus shows it."""
    found: dict[str, set[str]] = {}
    for folder in ("libs/common", "libs/fleet", "services"):
        for path in (ROOT / folder).rglob("*.py"):
            for kind, name, labels in _made(ast.parse(path.read_text())):
                shown = {name: labels}
                if kind == "histogram":
                    shown = {name + end: labels | more for end, more in _OF_HISTOGRAM.items()}
                found |= {each: {"service", *_TARGET, *some} for each, some in shown.items()}
    return found


def _made(tree: ast.Module) -> Iterator[tuple[str, str, set[str]]]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr in _MAKERS and node.args and isinstance(node.args[0], ast.Constant):
            named = [k.value for k in node.keywords if k.arg == "labels"]
            labels = node.args[2] if len(node.args) > 2 else (named or [None])[0]
            told = ast.literal_eval(labels) if labels is not None else ()
            yield node.func.attr, str(node.args[0].value), set(told)


@cache
def rules() -> list[Rule]:
    """Every rule, in the order of the files."""
    found = []
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                found.append(
                    Rule(
                        path.stem,
                        rule.get("alert") or rule["record"],
                        "alert" in rule,
                        rule["expr"],
                        rule.get("labels", {}),
                        rule.get("annotations", {}),
                    )
                )
    return found


@cache
def alerts() -> list[Rule]:
    return [rule for rule in rules() if rule.alert]


@cache
def dashboards() -> dict[str, dict[str, Any]]:
    """By the name of the file."""
    return {path.stem: json.loads(path.read_text()) for path in DASHBOARDS}


@cache
def panels() -> list[Panel]:
    """Every panel of every dashboard, without the rows' titles."""
    return [
        Panel(name, panel["title"], tuple(t["expr"] for t in panel["targets"]), panel)
        for name, dashboard in dashboards().items()
        for panel in dashboard["panels"]
        if panel["type"] != "row"
    ]


def series_in(expression: str) -> set[str]:
    """The names of the series that are asked for."""
    return set(_NAME.findall(_LABELS.sub("", expression)))


def unknown_in(expression: str) -> set[str]:
    """Series and labels in a query that nobody makes."""
    recorded = {r.name for r in rules() if not r.alert}
    known = metrics() | _OTHERS
    asked = series_in(expression)
    labels = set(_MATCHER.findall(expression))
    for grouped in _LABELS.findall(expression):
        labels |= {name.strip() for name in grouped.split(",") if name.strip()}
    allowed = _TARGET.union(*(known[name] for name in asked if name in known))
    if asked & recorded:
        # Of what is recorded, the labels are those of what it is recorded from.
        beneath = series_in(written_out(expression))
        allowed |= {"slo"}.union(*(metrics()[name] for name in beneath if name in metrics()))
    return (asked - known.keys() - recorded) | (labels - allowed)


def written_out(expression: str) -> str:
    """The query, and behind it those by which what it asks for is recorded."""
    found, left = [expression], [expression]
    while left:
        asked = series_in(left.pop())
        new = [r.expr for r in rules() if not r.alert and r.name in asked and r.expr not in found]
        found += new
        left += new
    return "\n".join(found)
