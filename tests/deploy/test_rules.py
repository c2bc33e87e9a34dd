"""Rules of Prometheus: they fire when they should, ask for what there is, lead to a runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from common.background import Role
from fleet.services import SERVICES
from tests.deploy.programs import program
from tests.deploy.written import (
    ROOT,
    RULES,
    TESTS,
    Rule,
    alerts,
    metrics,
    rules,
    unknown_in,
    written_out,
)

pytestmark = pytest.mark.unit

FIRING = re.compile(r'alertname="(\w+)"')
SEVERITY = re.compile(r'severity="(\w+)"')


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        [program("promtool"), *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expected_by_tests() -> set[tuple[str, str]]:
    """Alerts, with their severity, that some test expects to fire."""
    found = set()
    for path in TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for asked in test.get("promql_expr_test", []):
                for sample in asked["exp_samples"]:
                    names = FIRING.findall(sample["labels"])
                    found |= {(n, SEVERITY.search(sample["labels"])[1]) for n in names}
    return found


def test_every_rule_is_understood_by_prometheus() -> None:
    assert promtool("check", "rules", *map(str, RULES)).count("SUCCESS") == len(RULES)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_no_others(path: Path) -> None:
    promtool("test", "rules", str(path))


def test_every_alert_is_expected_by_a_test_in_the_file_of_its_name() -> None:
    assert [path.name for path in TESTS] == [path.name for path in RULES]
    assert {(alert.name, alert.labels["severity"]) for alert in alerts()} == expected_by_tests()


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: f"{rule.name} {rule.labels}")
def test_a_rule_asks_for_metrics_and_labels_that_there_are(rule: Rule) -> None:
    assert unknown_in(rule.expr) == set()


def test_an_unknown_metric_or_label_would_be_found() -> None:
    assert "mindweave_ready" in metrics()
    assert unknown_in("sum by (service) (rate(mindweave_nothing_total[5m]))") >= {
        "mindweave_nothing_total"
    }
    assert unknown_in('mindweave_ready{colour="red"}') == {"colour"}
    assert unknown_in("sum by (le) (mindweave_ready)") == {"le"}
    assert unknown_in("mindweave:nothing:rate5m") == {"mindweave:nothing:rate5m"}
    assert unknown_in("mindweave_windows_age_seconds") == {"mindweave_windows_age_seconds"}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_an_alert_says_how_urgent_it_is_and_what_has_happened(alert: Rule) -> None:
    assert alert.labels["severity"] in ("page", "ticket")
    assert alert.annotations.keys() == {"summary", "description", "runbook_url"}
    told = " ".join(alert.annotations.values())
    for label in re.findall(r"\$labels\.(\w+)", told):
        assert re.search(rf"\b{label}\b", written_out(alert.expr)), label


def test_every_service_is_missed_wherever_it_is_not() -> None:
    (down,) = (alert for alert in alerts() if alert.name == "ServiceDown")
    missed = re.findall(r'or absent\(mindweave_ready\{service="(\w+)", role="(\w+)"\}\)', down.expr)
    assert missed == [(service, role.value) for service in SERVICES for role in Role]


def test_every_alert_has_its_runbook_and_every_runbook_its_alert() -> None:
    named = {alert.name: alert.annotations["runbook_url"] for alert in alerts()}
    for name, url in named.items():
        kebab = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()
        assert url == f"docs/runbooks/{kebab}.md"
        assert (ROOT / url).read_text().startswith(f"# {name}\n")
    pages = {f"docs/runbooks/{p.name}" for p in (ROOT / "docs/runbooks").glob("*.md")}
    assert pages - {"docs/runbooks/README.md"} == set(named.values())
