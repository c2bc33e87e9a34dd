"""Dashboards: whole, alike, and asking for what there is."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.deploy.written import Panel, dashboards, panels, unknown_in

pytestmark = pytest.mark.unit

PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}


def shown(panel: Panel) -> str:
    return f"{panel.dashboard}: {panel.title}"


@pytest.mark.parametrize("panel", panels(), ids=shown)
def test_a_panel_has_a_title_a_description_a_unit_and_the_chosen_source(panel: Panel) -> None:
    assert panel.title
    assert panel.shown["description"].endswith(".")
    assert panel.shown["fieldConfig"]["defaults"]["unit"]
    assert panel.shown["datasource"] == PROMETHEUS
    assert panel.expressions
    for target in panel.shown["targets"]:
        assert target["datasource"] == PROMETHEUS
        assert target["legendFormat"]


@pytest.mark.parametrize("panel", panels(), ids=shown)
def test_a_panel_asks_for_metrics_and_labels_that_there_are(panel: Panel) -> None:
    for expression in panel.expressions:
        assert unknown_in(expression) == set()
        assert "rate(" not in expression or "[" in expression


def test_dashboards_have_names_and_ids_of_their_own() -> None:
    for name, dashboard in dashboards().items():
        assert dashboard["uid"] == f"mindweave-{name}"
        assert dashboard["editable"] is False
        (source, *_) = dashboard["templating"]["list"]
        assert (source["name"], source["type"], source["query"]) == (
            "datasource",
            "datasource",
            "prometheus",
        )
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert sorted(ids) == list(range(1, len(ids) + 1))
        titles = Counter(p.title for p in panels() if p.dashboard == name)
        assert [title for title, count in titles.items() if count > 1] == []


def test_panels_do_not_lie_upon_each_other() -> None:
    for name, dashboard in dashboards().items():
        taken: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert not cells & taken, f"{name}: {panel['title']}"
            assert max(x for x, _ in cells) < 24
            taken |= cells
