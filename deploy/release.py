"""A release: the same version everywhere, its part of the changelog, a chart that names its images.

``python -m deploy.release prepare 1.2.3`` makes the working tree that version; the other commands
are what the workflow of a tag asks for (docs/releasing.md).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = "charts/mindweave"
DESCRIPTORS = "libs/mindweave/descriptors.binpb"
# What buf compares the protos with from now on.
RELEASED = "proto/released.binpb"
CHANGELOG = "CHANGELOG.md"
_UNRELEASED = "## [Unreleased]"
# Where a version stands, by a name: the file, and what is around it there.
_PLACES = {
    "pyproject.toml": ("pyproject.toml", r'^version = "(?P<version>[^"]+)"$'),
    "uv.lock": ("uv.lock", r'^name = "mindweave"\nversion = "(?P<version>[^"]+)"$'),
    "the chart's version": (f"{CHART}/Chart.yaml", r"^version: (?P<version>\S+)$"),
    "the chart's appVersion": (f"{CHART}/Chart.yaml", r"^appVersion: (?P<version>\S+)$"),
    "openapi.json": (
        "docs/api/openapi.json",
        r'^  "info": \{\n    "title": "MindWeave",\n    "version": "(?P<version>[^"]+)",$',
    ),
}
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Refused(Exception):
    """What was asked for would make no good release."""


def versions(root: Path) -> dict[str, str]:
    """Which version each place names.

    Raises:
        Refused: a place does not name exactly one.
    """
    return {name: _version_at(root, name)["version"] for name in _PLACES}


def version(root: Path) -> str:
    """The one that all places name.

    Raises:
        Refused: they do not agree.
    """
    found = versions(root)
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} {named}" for name, named in found.items())
        raise Refused(f"the versions differ: {told}")
    return found["pyproject.toml"]


def notes(root: Path, released: str) -> str:
    """What the changelog says of a version.

    Raises:
        Refused: it has no such version with a date, or nothing of it.
    """
    heading = rf"^## \[{re.escape(released)}\] - \d{{4}}-\d\d-\d\d\n(?P<body>.*?)(?=^## |\Z)"
    found = re.search(heading, (root / CHANGELOG).read_text(), re.MULTILINE | re.DOTALL)
    if found is None or not found["body"].strip():
        raise Refused(f"{CHANGELOG} does not say what {released} is")
    return found["body"].strip() + "\n"


def prepare(root: Path, wanted: str, today: date) -> None:
    """Make the working tree the release ``wanted``, for people to look at and to commit.

    Raises:
        Refused: the tree has changes, the version is not newer, or nothing is told of it.
    """
    if _VERSION.fullmatch(wanted) is None:
        raise Refused(f"{wanted!r} is no version such as 1.2.3")
    changed = _git(root, "status", "--porcelain")
    if changed:
        raise Refused(f"there are changes that are not committed:\n{changed}")
    present = version(root)
    if _order(wanted) <= max(map(_order, [present, *_tagged(root)])):
        raise Refused(f"{wanted} is not newer than what there is ({present}, or a tag)")
    text = (root / CHANGELOG).read_text()
    unreleased = re.search(rf"^{re.escape(_UNRELEASED)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if unreleased is None or not unreleased[1].strip():
        raise Refused(f"{CHANGELOG} says nothing under {_UNRELEASED}")
    for name in _PLACES:
        found = _version_at(root, name)
        start, end = found.span("version")
        (root / _PLACES[name][0]).write_text(found.string[:start] + wanted + found.string[end:])
    heading = f"{_UNRELEASED}\n\n## [{wanted}] - {today.isoformat()}\n"
    (root / CHANGELOG).write_text(text.replace(f"{_UNRELEASED}\n", heading, 1))
    shutil.copyfile(root / DESCRIPTORS, root / RELEASED)


def check(root: Path, tag: str) -> None:
    """See that a tag is what ``prepare`` made.

    Raises:
        Refused: it is not.
    """
    released = version(root)
    if tag != f"v{released}":
        raise Refused(f"the tag {tag} is not of the version {released}")
    notes(root, released)
    if (root / RELEASED).read_bytes() != (root / DESCRIPTORS).read_bytes():
        raise Refused(f"{RELEASED} is not what the protos of {released} make")


def pin(root: Path, registry: str, folder: Path) -> None:
    """Have the chart name its images by where they are and by their digests.

    Args:
        root: of the working tree.
        registry: where they are, without their names.
        folder: has a file ``NAME.digest`` for each service, by its name in Kubernetes.

    Raises:
        Refused: a service's digest is missing or is none.
    """
    file = root / CHART / "values.yaml"
    text = file.read_text()
    digests = {}
    for service in sorted(yaml.safe_load(text)["services"]):
        name = service.replace("_", "-")
        place = folder / f"{name}.digest"
        digests[name] = place.read_text().strip() if place.exists() else ""
        if _DIGEST.fullmatch(digests[name]) is None:
            raise Refused(f"{place} has no digest")
    for line, said in (
        ("  registry: mindweave", f"  registry: {registry}"),
        ("  digests: {}", f"  digests: {json.dumps(digests)}"),
    ):
        text, count = re.subn(rf"^{re.escape(line)}$", said, text, flags=re.MULTILINE)
        if count != 1:
            raise Refused(f"{file.name} has the line {line!r} {count} times")
    file.write_text(text)


def _version_at(root: Path, name: str) -> re.Match[str]:
    file, around = _PLACES[name]
    found = list(re.finditer(around, (root / file).read_text(), re.MULTILINE))
    if len(found) != 1:
        raise Refused(f"{name}: {len(found)} versions are to be found")
    return found[0]


def _order(named: str) -> tuple[int, ...]:
    return tuple(map(int, named.split(".")))


def _tagged(root: Path) -> list[str]:
    tags = [tag.removeprefix("v") for tag in _git(root, "tag", "--list", "v*").split()]
    return [tag for tag in tags if _VERSION.fullmatch(tag)]


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help="make this tree a version").add_argument("version")
    commands.add_parser("check", help="see that a tag is of this tree").add_argument("tag")
    commands.add_parser("notes", help="what the changelog says of a version").add_argument(
        "version"
    )
    pinning = commands.add_parser("pin", help="name the images of this release in the chart")
    pinning.add_argument("registry")
    pinning.add_argument("folder", type=Path)
    given = parser.parse_args()
    try:
        match given.command:
            case "prepare":
                prepare(ROOT, given.version, datetime.now(UTC).date())
            case "check":
                check(ROOT, given.tag)
            case "notes":
                print(notes(ROOT, given.version), end="")
            case "pin":
                pin(ROOT, given.registry, given.folder)
    except Refused as refused:
        sys.exit(str(refused))


if __name__ == "__main__":
    main()
