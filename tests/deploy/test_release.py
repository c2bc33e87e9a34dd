"""A release in a repository of its own: what it changes, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from datetime import date
from pathlib import Path

import pytest

from deploy import release
from deploy.release import Refused
from fleet.services import SERVICES
from tests.chart.rendering import ROOT, rendered

pytestmark = pytest.mark.unit

TODAY = date(2027, 3, 4)
TOLD = "### Fixed\n\n- Nothing costs twice.\n"
CHANGELOG = f"# Changelog\n\n## [Unreleased]\n\n{TOLD}\n## [1.2.3] - 2026-01-02\n\n- The first.\n"
FILES = (
    *("pyproject.toml", "uv.lock", "docs/api/openapi.json", "charts/mindweave/Chart.yaml"),
    *("charts/mindweave/values.yaml", release.DESCRIPTORS, release.RELEASED),
)


def git(root: Path, *arguments: str) -> str:
    person = ("-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgSign=false")
    command = ["git", *person, *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "a change")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """At version 1.2.3, whose protos are not those of the release before."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    present = release.version(ROOT)
    for name in FILES[:4]:
        file = tmp_path / name
        file.write_text(
            re.sub(rf'((?:v|V)ersion"?(?: = |: )"?){present}\b', r"\g<1>1.2.3", file.read_text())
        )
    (tmp_path / release.RELEASED).write_bytes(b"older")
    (tmp_path / release.CHANGELOG).write_text(CHANGELOG)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def test_all_places_name_the_same_version() -> None:
    assert set(release.versions(ROOT).values()) == {release.version(ROOT)}


def test_a_release_is_one_version_with_its_changes_and_its_protos(repository: Path) -> None:
    assert release.version(repository) == "1.2.3"
    release.prepare(repository, "1.10.0", TODAY)

    assert set(release.versions(repository).values()) == {"1.10.0"}
    openapi = json.loads((repository / "docs/api/openapi.json").read_text())
    assert openapi["info"]["version"] == "1.10.0"
    assert release.notes(repository, "1.10.0") == TOLD
    text = (repository / release.CHANGELOG).read_text()
    assert "## [Unreleased]\n\n## [1.10.0] - 2027-03-04\n\n### Fixed" in text
    assert text.endswith("## [1.2.3] - 2026-01-02\n\n- The first.\n")
    changed = git(repository, "diff", "--numstat").splitlines()
    assert {line.split("\t")[2]: line.split("\t")[:2] for line in changed} == {
        "CHANGELOG.md": ["2", "0"],
        "charts/mindweave/Chart.yaml": ["2", "2"],
        "docs/api/openapi.json": ["1", "1"],
        "proto/released.binpb": ["-", "-"],
        "pyproject.toml": ["1", "1"],
        "uv.lock": ["1", "1"],
    }
    release.check(repository, "v1.10.0")


@pytest.mark.parametrize(
    "wanted", ["1.2.3", "1.2.2", "0.9.9", "1.1.10", "v2.0.0", "2.0", "2.0.0rc1"]
)
def test_what_is_no_newer_version_is_refused(repository: Path, wanted: str) -> None:
    refused(repository, wanted, "is not newer|is no version")


def test_a_version_that_is_tagged_already_is_refused(repository: Path) -> None:
    git(repository, "tag", "v2.0.0")
    refused(repository, "1.9.0", "is not newer")
    release.prepare(repository, "2.0.1", TODAY)


@pytest.mark.parametrize("name", ["uv.lock", "new.txt"])
def test_a_tree_with_changes_is_refused(repository: Path, name: str) -> None:
    with (repository / name).open("a") as file:
        file.write("\n")
    refused(repository, "2.0.0", "not committed")


def test_a_release_of_which_nothing_is_told_is_refused(repository: Path) -> None:
    (repository / release.CHANGELOG).write_text(CHANGELOG.replace(TOLD, ""))
    commit(repository)
    refused(repository, "2.0.0", "says nothing")


def test_versions_that_differ_are_refused(repository: Path) -> None:
    file = repository / "charts/mindweave/Chart.yaml"
    file.write_text(file.read_text().replace("appVersion: 1.2.3", "appVersion: 1.2.2"))
    commit(repository)
    refused(repository, "2.0.0", "differ")


def refused(repository: Path, wanted: str, why: str) -> None:
    """The release is, and nothing was changed."""
    before = git(repository, "status", "--porcelain"), git(repository, "diff")
    with pytest.raises(Refused, match=why):
        release.prepare(repository, wanted, TODAY)
    assert (git(repository, "status", "--porcelain"), git(repository, "diff")) == before


@pytest.mark.parametrize(
    ("tag", "file", "text", "why"),
    [
        ("v2.0.1", release.CHANGELOG, None, "is not of the version"),
        ("2.0.0", release.CHANGELOG, None, "is not of the version"),
        ("v2.0.0", release.CHANGELOG, CHANGELOG, "does not say"),
        ("v2.0.0", release.DESCRIPTORS, "later", "is not what the protos"),
    ],
)
def test_a_tag_of_something_else_is_refused(
    repository: Path, tag: str, file: str, text: str | None, why: str
) -> None:
    release.prepare(repository, "2.0.0", TODAY)
    if text is not None:
        (repository / file).write_text(text)
    with pytest.raises(Refused, match=why):
        release.check(repository, tag)


def test_a_released_chart_names_its_images_by_digest_and_no_others(tmp_path: Path) -> None:
    digests = {name.replace("_", "-"): f"sha256:{n:064x}" for n, name in enumerate(SERVICES)}
    shutil.copytree(ROOT / release.CHART, tmp_path / release.CHART)
    for name, digest in digests.items():
        (tmp_path / f"{name}.digest").write_text(f"{digest}\n")
    release.pin(tmp_path, "registry.example.com/mindweave", tmp_path)

    values = {"services": {"team": {"tag": "9.9.9"}}}
    found = rendered(values, chart=tmp_path / release.CHART)
    images = {name: pod["containers"][0]["image"] for name, pod in found.pods}
    at, present = "registry.example.com/mindweave", release.version(ROOT)
    assert images["team"] == images["migrate-team-install"] == f"{at}/team:9.9.9"
    for name in digests.keys() - {"team"}:
        assert images[name] == f"{at}/{name}:{present}@{digests[name]}"


def test_a_chart_without_the_digest_of_an_image_is_refused(tmp_path: Path) -> None:
    shutil.copytree(ROOT / release.CHART, tmp_path / release.CHART)
    with pytest.raises(Refused, match="has no digest"):
        release.pin(tmp_path, "registry.example.com/mindweave", tmp_path)
