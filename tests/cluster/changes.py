"""What an operator does to a release while users are at work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.chart.rendering import ROOT, helm
from tests.cluster import kubernetes
from tests.cluster.images import derived
from tests.cluster.kubernetes import (
    NAMESPACE,
    RELEASE,
    deployments,
    identities,
    install,
    kubectl,
    pods,
    released,
    wait_until_ready,
)
from tests.cluster.load import under_load
from tests.cluster.machine import Machine
from tests.cluster.running import demand, fails, run, until
from tests.e2e.open_loop import Calls

# Requests a second where it is not the load that is looked at.
FEW = 20.0
SERVICES = "/app/lib/python3.11/site-packages/services"
BAD_MIGRATION = "ALTER TABLE this_table_is_not_there ADD COLUMN oops text;\n"


@contextmanager
def previous_chart() -> Iterator[tuple[str, Path]]:
    """The chart of the release before, or before its last change where none was released."""
    tags = run("git", "-C", str(ROOT), "tag", "--list", "v*", "--sort=-version:refname").split()
    last = ("log", "-1", "--format=%H", "--", "charts", "deploy/prometheus", "deploy/grafana")
    revision = tags[0] if tags else run("git", "-C", str(ROOT), *last).strip() + "~1"
    with TemporaryDirectory(prefix="mindweave-chart-") as name:
        archive = Path(name) / "chart.tar"
        command = ("archive", f"--output={archive}", revision, "charts", "deploy")
        run("git", "-C", str(ROOT), *command)
        run("tar", "--extract", "--file", str(archive), "--directory", name)
        yield revision, Path(name) / "charts" / "mindweave"


def rolled(tag: str, *options: str) -> Calls:
    """Another release under load: migrations, then each process of each Deployment anew."""
    before = identities(deployments())
    with under_load(kubernetes.address()) as calls:
        install("--set", f"image.tag={tag}", *options)
        kubectl("rollout", "restart", "deployment/edge")
        wait_until_ready()
        demand(not identities(deployments()) & before, "each process was replaced")
    return calls


def a_bad_migration_stops_the_rollout(good: str, bad: str, machine: Machine) -> None:
    """Team's next release cannot migrate: the upgrade ends, and nothing has changed."""
    number = len(list((ROOT / "services" / "team" / "migrations").glob("*.sql"))) + 1
    path = f"{SERVICES}/team/migrations/{number:04}_oops.sql"
    image = derived(f"mindweave/team:{bad}", f"mindweave/team:{good}", add={path: BAD_MIGRATION})
    machine.load([image])
    before = identities(deployments())
    said = fails(*_with("--set", f"services.team.tag={bad}"))
    demand("migrate-team" in said or "pre-upgrade" in said, said)
    demand(identities(deployments()) == before, "no process was replaced")
    demand(kubernetes.answers(), "the platform answers")
    logs = kubectl("logs", "job/migrate-team")
    demand("this_table_is_not_there" in logs, ("the Job says what was wrong", logs))
    back()
    demand(identities(deployments()) == before, "no process was replaced by the way back")


def a_release_that_does_not_start_stops_the_rollout() -> Calls:
    """A setting that team refuses: its new process ends at once, the old ones serve on."""
    before = identities(["team"])
    with under_load(kubernetes.address(), FEW) as calls:
        bad = "services.team.settings.MINDWEAVE_POOL_SIZE=none"
        run(*_with("--set-string", bad))
        until("the new process has failed", lambda: any(_failed(pod) for pod in pods("team")))
        demand(before <= identities(["team"]), "the old processes serve on")
        back()
        wait_until_ready()
        demand(before == identities(["team"]), "the old processes serve on")
    return calls


def back() -> None:
    """To the release before the one that failed."""
    released("rollback")


def _failed(pod: kubernetes.Object) -> bool:
    return any(status["restartCount"] for status in pod["status"].get("containerStatuses", []))


def _with(*options: str) -> list[str]:
    """The command that brings the release to what it is, and the options."""
    place = ("--namespace", NAMESPACE, "--reset-then-reuse-values")
    return [helm(), "upgrade", RELEASE, str(kubernetes.CHART), *place, *options]


def uninstalled() -> None:
    """Take the release away; nothing of it is left in its namespace.

    Raises:
        SystemExit: something is.
    """
    released("uninstall")
    until("all pods are gone", lambda: not kubernetes.objects("pods"))
    kinds = kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name").split()
    asked = ",".join(kind for kind in kinds if "event" not in kind and "metrics" not in kind)
    until("the rest is gone", lambda: not _left(asked), 60.0)


def _left(kinds: str) -> set[str]:
    names = set(kubectl("get", kinds, "--output=name").split())
    return names - {"configmap/kube-root-ca.crt", "serviceaccount/default"}
