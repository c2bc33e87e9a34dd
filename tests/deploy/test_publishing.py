"""What a release's scripts push, and what they leave: with programs that only say what is asked."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.deploy.written import ROOT

pytestmark = pytest.mark.unit

WORKFLOW = ROOT / ".github/workflows/release.yaml"
# The registry has what stands in remote.json, else it answers with refusal.txt.
PROGRAM = """#!/bin/bash
echo "${0##*/} $*" >> calls.txt
case "${0##*/} $*" in
  "skopeo inspect --raw oci:"*) cat made.json ;;
  "skopeo inspect --raw docker:"*)
    if [[ -e remote.json ]]; then cat remote.json; else cat refusal.txt >&2; exit 1; fi ;;
  "cosign verify "*) [[ -e signed ]] ;;
  "helm push "*) echo "Digest: sha256:pushed" ;;
  "docker create "*) echo container ;;
esac
"""
ARCHIVE = b"an archive"


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class Publishing:
    """The step that pushes, of one job, in a folder of its own."""

    job: str
    folder: Path

    @property
    def made(self) -> bytes:
        """The manifest of what was built."""
        return f'{{"layers": [{{"digest": "{digest(ARCHIVE)}"}}]}}'.encode()

    def run(self) -> dict[str, str] | None:
        """Its outputs; None where it fails."""
        steps = yaml.safe_load(WORKFLOW.read_text())["jobs"][self.job]["steps"]
        (script,) = (step["run"] for step in steps if step.get("id") == "push")
        done = subprocess.run(
            ["/bin/bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=self.folder,
            check=False,
            env={
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "IMAGES": "registry.example.com/mindweave",
                "REGISTRY": "registry.example.com/mindweave",
                "SERVICE": "usage_tracker",
                "VERSION": "1.2.3",
                "GITHUB_OUTPUT": str(self.folder / "output.txt"),
                "GITHUB_SERVER_URL": "https://forge.example.com",
                "GITHUB_WORKFLOW_REF": "a/b/.github/workflows/release.yaml@refs/tags/v1.2.3",
            },
        )
        if done.returncode:
            return None
        lines = (self.folder / "output.txt").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def calls(self, *starts: str) -> list[str]:
        found = (self.folder / "calls.txt").read_text().splitlines()
        return [call for call in found if call.startswith(starts)]

    def pushed(self) -> int:
        return len(self.calls("skopeo copy", "helm push"))


@pytest.fixture(params=["images", "chart"])
def publishing(request: pytest.FixtureRequest, tmp_path: Path) -> Publishing:
    (tmp_path / "bin").mkdir()
    for name in ("skopeo", "cosign", "helm", "docker"):
        (tmp_path / "bin" / name).write_text(PROGRAM)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist/mindweave-1.2.3.tgz").write_bytes(ARCHIVE)
    found = Publishing(request.param, tmp_path)
    (tmp_path / "made.json").write_bytes(found.made)
    (tmp_path / "refusal.txt").write_text("reading manifest 1.2.3: manifest unknown")
    return found


def test_what_is_not_there_is_pushed(publishing: Publishing) -> None:
    said = publishing.run()
    assert said is not None
    assert publishing.pushed() == 1
    assert said["made"] == "true"
    of_push = {"images": digest(publishing.made), "chart": "sha256:pushed"}
    assert said["digest"] == of_push[publishing.job]


def test_the_same_is_not_pushed_again(publishing: Publishing) -> None:
    (publishing.folder / "remote.json").write_bytes(publishing.made)
    said = publishing.run()
    assert said is not None
    assert publishing.pushed() == 0
    assert (said["made"], said["digest"]) == ("true", digest(publishing.made))


def test_what_a_run_of_this_tag_has_signed_stays_and_is_taken(publishing: Publishing) -> None:
    (publishing.folder / "remote.json").write_bytes(b"{}")
    (publishing.folder / "signed").touch()
    said = publishing.run()
    assert said is not None
    assert publishing.pushed() == 0
    assert (said["made"], said["digest"]) == ("false", digest(b"{}"))
    (asked,) = publishing.calls("cosign verify")
    who = "https://forge.example.com/a/b/.github/workflows/release.yaml@refs/tags/v1.2.3"
    assert f"--certificate-identity {who} " in asked
    assert asked.endswith(f"@{digest(b'{}')}")
    # What goes with it into the release is its own.
    (fetched,) = publishing.calls("docker cp", "helm pull")
    assert fetched in (
        "docker cp container:/app/sbom.cdx.json dist/usage-tracker.cdx.json",
        "helm pull oci://registry.example.com/mindweave/charts/mindweave"
        " --version 1.2.3 --destination dist",
    )


def test_what_somebody_else_has_put_there_ends_the_release(publishing: Publishing) -> None:
    (publishing.folder / "remote.json").write_bytes(b"{}")
    assert publishing.run() is None
    assert publishing.pushed() == 0


def test_nothing_is_pushed_where_the_registry_does_not_say_what_it_has(
    publishing: Publishing,
) -> None:
    (publishing.folder / "refusal.txt").write_text("pinging the registry: connection refused")
    assert publishing.run() is None
    assert publishing.pushed() == 0
