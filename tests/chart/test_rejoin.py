"""Restored databases are joined to the broker by a Job, from images that hold a service each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from fleet.cli import app
from fleet.services import owners
from tests.chart.conftest import DEPLOY
from tests.chart.rendering import ROOT, environment, load, rendered, template

pytestmark = pytest.mark.unit

REJOINS = {"rejoin": {"enabled": True}}
UPGRADE = ("--is-upgrade",)


def kebab(name: str) -> str:
    return name.replace("_", "-")


def test_it_runs_after_the_migrations_and_only_where_it_is_asked_for(chart: Any) -> None:
    jobs = chart("an upgrade that rejoins").of("Job")
    notes = jobs["rejoin"]["metadata"]["annotations"]
    assert notes["helm.sh/hook"] == "pre-upgrade"
    weights = {
        name: int(job["metadata"]["annotations"].get("helm.sh/hook-weight", 0))
        for name, job in jobs.items()
    }
    assert weights.pop("rejoin") > max(weights.values())
    assert weights.keys() == {f"migrate-{kebab(owner.name)}" for owner in owners()}
    assert "rejoin" not in chart("an upgrade").of("Job")


def test_it_knows_what_both_ends_of_the_windows_know_and_no_administrator(chart: Any) -> None:
    found = chart("an upgrade that rejoins")
    pod = found.of("Job")["rejoin"]["spec"]["template"]["spec"]
    worker = found.of("Deployment")["usage-tracker-work"]["spec"]["template"]["spec"]
    analytics = found.of("Deployment")["analytics"]["spec"]["template"]["spec"]
    known = environment(pod)
    assert known.pop("PYTHONPATH")["value"] == "/joined"
    assert known == environment(worker)
    assert known["DATABASE_URL"] == environment(analytics)["DATABASE_URL"]
    assert "admin" not in str(known)
    (container,), (one,) = pod["containers"], worker["containers"]
    assert container["image"] == one["image"]
    assert container["envFrom"] == one["envFrom"]


def test_databases_with_secrets_of_their_own_are_reached_by_them() -> None:
    said = {"databaseSecrets": {"runtime": {"name": "theirs", "key": "url"}}}
    for services in ({"analytics": said}, {"usage_tracker": said, "analytics": said}):
        values = REJOINS | {"services": services}
        found = rendered(values, options=UPGRADE).of("Job")["rejoin"]
        known = environment(found["spec"]["template"]["spec"])
        named = {name for name in known if name.startswith("DATABASE_URL_")}
        assert named == {f"DATABASE_URL_{code.upper()}" for code in services}
        assert ("DATABASE_URL" in known) is (len(services) == 1)


@pytest.mark.parametrize(
    ("values", "options", "complaint"),
    [
        ({}, (), "is for an upgrade"),
        ({"services": {"analytics": {"databaseAddress": "b:5432"}}}, UPGRADE, "different servers"),
        ({"broker": {"kind": "redis-streams"}}, UPGRADE, "rejoin.enabled: needs Kafka"),
        ({"services": {"analytics": {"tag": "0.0.9"}}}, UPGRADE, "the same tag"),
        ({"services": {"usage_tracker": {"tag": "0.0.9"}}}, UPGRADE, "the same tag"),
    ],
)
def test_what_it_cannot_do_is_refused(
    values: dict[str, Any], options: tuple[str, ...], complaint: str
) -> None:
    done = template(REJOINS | values, options=options)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_a_tag_that_is_said_of_one_of_them_may_be_that_of_all() -> None:
    values = {"image": {"tag": "0.0.9"}, "services": {"analytics": {"tag": "0.0.9"}}}
    assert "rejoin" in rendered(REJOINS | values, options=UPGRADE).of("Job")


def test_no_service_sends_it_calls_and_the_policy_of_workers_lets_it_out(chart: Any) -> None:
    found = chart("an upgrade that rejoins")
    labels = found.of("Job")["rejoin"]["spec"]["template"]["metadata"]["labels"].items()
    for service in found.of("Service").values():
        assert not service["spec"]["selector"].items() <= labels
    policy = found.of("NetworkPolicy")["usage-tracker"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels


def test_the_images_together_hold_what_the_command_imports(chart: Any, tmp_path: Path) -> None:
    pod = chart("an upgrade that rejoins").of("Job")["rejoin"]["spec"]["template"]["spec"]
    joined = tmp_path / "joined"
    named = {container["name"]: container for container in pod["initContainers"]}
    assert named.keys() == {kebab(owner.name) for owner in owners()}
    for owner in owners():
        image = tmp_path / owner.name
        shutil.copytree(ROOT / "services" / owner.name, image / "services" / owner.name)
        shutil.copy(ROOT / "services" / "__init__.py", image / "services")
        _, option, program = named[kebab(owner.name)]["command"]
        python(image, option, program.replace("/joined", str(joined)))
    told = python(
        joined,
        "-c",
        "import services, fleet.backup.rejoining as _; from fleet.services import owners;"
        " print(services.__path__[0], *(owner.name for owner in owners()))",
    )
    assert told.split() == [str(joined / "services"), *(owner.name for owner in owners())]


def test_its_arguments_are_understood() -> None:
    values = {"rejoin": {"enabled": True, "acceptLoss": True}}
    job = rendered(values, options=UPGRADE).of("Job")["rejoin"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    name, *words = container["args"]
    command = typer.main.get_command(app).commands[name]
    given = command.make_context(name, words).params
    assert given["accept_loss"] is True
    assert given["folder"] is None


def test_the_cluster_that_is_recovered_differs_in_where_it_begins_and_archives_alone() -> None:
    before, after = (
        next(
            found["spec"]
            for found in load((DEPLOY / file).read_text())
            if found["kind"] == "Cluster" and found["metadata"]["name"] == "timescale"
        )
        for file in ("operators/postgresql.yaml", "backups/recovery.yaml")
    )
    assert {name for name in after if after[name] != before.get(name)} == {
        *("bootstrap", "externalClusters", "plugins"),
    }
    (source,) = after["externalClusters"]
    (archive,) = after["plugins"]
    assert after["bootstrap"]["recovery"]["source"] == source["name"]
    read, written = source["plugin"]["parameters"], archive["parameters"]
    assert read["barmanObjectName"] == written["barmanObjectName"]
    assert read["serverName"] != written["serverName"]


def python(path: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
        cwd=path,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
