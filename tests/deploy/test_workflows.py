"""What actionlint does not ask of the forge's workflows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.written import ROOT

pytestmark = pytest.mark.unit

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yaml"))
PINNED = re.compile(r"uses: (\./\S+|[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+)")
# They check nothing out.
OTHERS = {
    "actions/attest",
    "actions/download-artifact",
    "actions/upload-artifact",
    "docker/login-action",
    "sigstore/cosign-installer",
}


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            yield f"{path.stem}: {name}", job


@pytest.mark.parametrize("path", sorted(GITHUB.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_action_is_one_commit_that_says_its_version(path: Path) -> None:
    lines = [line.strip().removeprefix("- ") for line in path.read_text().splitlines()]
    used = [line for line in lines if line.startswith("uses:")]
    assert used
    assert [line for line in used if PINNED.fullmatch(line) is None] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_no_rights_but_those_that_a_job_names(path: Path) -> None:
    said = yaml.safe_load(path.read_text())
    assert said["permissions"] == {}
    assert "${{ github.ref" in said["concurrency"]["group"]
    assert said["defaults"] == {"run": {"shell": "bash"}}
    assert all("permissions" in job for job in said["jobs"].values())


def test_only_a_release_may_change_anything() -> None:
    may = {
        name: {right for right, how in job["permissions"].items() if how == "write"}
        for name, job in jobs()
    }
    publishing = {"packages", "id-token", "attestations"}
    assert {name: rights for name, rights in may.items() if rights} == {
        "release: images": publishing,
        "release: chart": publishing,
        "release: release": {"contents"},
    }


def test_nothing_of_the_tree_runs_where_something_may_be_changed() -> None:
    for name, job in jobs():
        if "write" not in job["permissions"].values():
            continue
        used = {step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step}
        # Without the tree there is nothing of it to run; what was built of it is not run, either.
        assert used <= OTHERS, name
        ran = " ".join(step.get("run", "") for step in job["steps"])
        assert not re.search(r"\b(make|python3?|docker (run|start|build|load))\b", ran), name


@pytest.mark.parametrize("name", [name for name, _ in jobs()])
def test_a_job_ends_in_time_and_keeps_no_credentials(name: str) -> None:
    job = dict(jobs())[name]
    # One that calls a workflow has that one's limits.
    assert ("timeout-minutes" in job) != ("uses" in job)
    for step in job.get("steps", ()):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        # What a person names reaches a shell as a variable, never as a part of the script.
        assert "${{" not in step.get("run", "")


def test_a_job_that_is_run_again_replaces_what_it_had_left() -> None:
    left = [
        (name, step["with"])
        for name, job in jobs()
        for step in job.get("steps", ())
        if step.get("uses", "").startswith("actions/upload-artifact@")
    ]
    assert left
    assert [(name, given["name"]) for name, given in left if not given.get("overwrite")] == []
