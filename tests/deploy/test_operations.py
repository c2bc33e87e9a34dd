"""docs/operations.md: each command there exists, and each task names the tests that ran it."""

from __future__ import annotations

import re
import shlex

import pytest
import typer
import yaml

from fleet.cli import app
from tests.deploy.written import ROOT

pytestmark = pytest.mark.unit

PAGE = (ROOT / "docs/operations.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
CHART = yaml.safe_load((ROOT / "charts/mindweave/values.yaml").read_text())
BLOCKS = re.findall(r"^ *```\n(.*?)^ *```$", PAGE, re.DOTALL | re.MULTILINE)
LINES = [line.strip().split("  ")[0] for block in BLOCKS for line in block.splitlines()]
HELM = {"install", "upgrade", "rollback"}
OTHERS = {"mkdir", "mv", "kubectl"}
# A name, and how to tell that a cluster has played it.
CLUSTER = "`make e2e-cluster`"


def lines(program: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in LINES if line.split()[0] == program]


def headings() -> list[str]:
    return re.findall(r"^## (.+)$", PAGE, re.MULTILINE)


def tasks() -> list[list[str]]:
    rows = [line for line in PAGE.splitlines() if line.startswith("| [")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_there_is_no_command_of_a_program_that_nobody_looks_at() -> None:
    assert {line.split()[0] for line in LINES} == {"mindweave", "make", "helm", *OTHERS}


@pytest.mark.parametrize("words", lines("mindweave"), ids=" ".join)
def test_a_command_of_the_program_is_understood_as_it_stands(words: list[str]) -> None:
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    found = command.commands[words[0]]
    assert found.make_context(words[0], words[1:], resilient_parsing=False)


@pytest.mark.parametrize("words", lines("make"), ids=" ".join)
def test_a_target_and_its_variables_are_in_the_makefile(words: list[str]) -> None:
    assert re.search(rf"^{words[0]}:.*## ", MAKEFILE, re.MULTILINE)
    for variable in words[1:]:
        assert f"$({variable.partition('=')[0]})" in MAKEFILE


@pytest.mark.parametrize("words", lines("helm"), ids=" ".join)
def test_a_change_of_the_release_names_values_that_there_are(words: list[str]) -> None:
    assert words[0] in HELM
    for path in (word for word in words if "/" in word):
        assert (ROOT / path).exists(), path
    for key in re.findall(r"--set ([\w.]+)=", " ".join(words)):
        value = CHART
        for part in key.split("."):
            value = value[part]


def test_every_task_is_explained_and_every_explanation_is_a_task() -> None:
    linked = [re.match(r"\[.+\]\(#(.+)\)$", task[0]) for task in tasks()]
    anchors = [found[1] for found in linked if found]
    known = {heading.lower().replace(" ", "-"): heading for heading in headings()}
    assert set(anchors) <= known.keys()
    assert known.keys() - set(anchors) <= {"disaster-recovery"}


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task[0])
def test_a_task_names_tests_that_exist_or_says_that_there_is_none(task: list[str]) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", task[-1])
    for file, name in named:
        source = (ROOT / file).read_text()
        assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), (file, name)
    if not named and CLUSTER not in task[-1]:
        assert task[-1].startswith("no test")
        heading = re.search(r"#([\w-]+)\)", task[0])[1].replace("-", " ")
        section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
        (text,) = [part for part in section if part.lower().startswith(f"{heading}\n")]
        assert "No test runs this" in text


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)", PAGE))
def test_a_page_that_is_linked_is_there(link: str) -> None:
    assert (ROOT / "docs" / link).exists()
