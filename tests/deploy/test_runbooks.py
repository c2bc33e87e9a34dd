"""Runbooks: each says the same four things, and names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fleet.cli import app
from tests.deploy.written import ROOT, dashboards, panels

pytestmark = pytest.mark.unit

PAGES = sorted((ROOT / "docs/runbooks").glob("*.md"))
COMMANDS = {
    "all",
    *(command.name or command.callback.__name__ for command in app.registered_commands),
}
GROUPS = {
    group.name: {c.name or c.callback.__name__ for c in group.typer_instance.registered_commands}
    for group in app.registered_groups
}
TITLES = {d["title"].removeprefix("MindWeave / "): name for name, d in dashboards().items()}


def pages_of_alerts() -> list[Path]:
    return [page for page in PAGES if page.name != "README.md"]


@pytest.mark.parametrize("page", pages_of_alerts(), ids=lambda page: page.stem)
def test_a_runbook_says_what_users_notice_how_to_look_what_to_do_and_when_it_is_over(
    page: Path,
) -> None:
    text = page.read_text()
    places = [
        text.index(f"**{part}") for part in ("For users.**", "Look.**", "Do.**", "Over when**")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runbook_names_commands_links_and_panels_that_there_are(page: Path) -> None:
    text = page.read_text()
    for command, then in re.findall(r"(?:^|`)mindweave ([a-z][a-z-]*)(?: ([a-z-]+))?", text, re.M):
        assert command in COMMANDS | GROUPS.keys(), command
        assert command not in GROUPS or then in GROUPS[command], then
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
    line = " ".join(text.split())
    for title, named in re.findall(r'\*([A-Z][\w ]+)\*((?:[^.*"]*"[^"]+")*)', line):
        if title not in TITLES:
            continue
        there = [panel.title for panel in panels() if panel.dashboard == TITLES[title]]
        for panel in re.findall(r'"([^"]+)"', named):
            assert panel.removesuffix(",") in {t.removesuffix(", p95") for t in there} | {*there}


def test_the_names_of_dashboards_in_runbooks_are_theirs() -> None:
    named = {
        title
        for page in pages_of_alerts()
        for title in re.findall(r"(?<!\*)\*([A-Z][\w ]+)\*(?!\*)", page.read_text())
    }
    assert named == named & TITLES.keys()
    assert {"Fleet", "Usage pipeline"} <= named
