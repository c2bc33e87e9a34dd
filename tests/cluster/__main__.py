"""The chart on a real Kubernetes, from nothing to nothing; ends with one line of JSON."""

from __future__ import annotations

import json
import os
import time

from tests.cluster import changes, fallbacks, images, kubernetes, losses, scaling, tracing
from tests.cluster.kubernetes import install, nodes, wait_until_ready
from tests.cluster.load import demand_no_failure
from tests.cluster.machine import Machine, machine
from tests.cluster.running import demand, stage
from tests.e2e.edges import Edge, forbidden, told
from tests.run import REPORTS, passed

# Names of the same code, so that a release can follow another.
FIRST, NEXT, BAD = "e2e-1", "e2e-2", "e2e-bad"
# PostgreSQL, Kafka and the cache.
SERVERS = 3


def main() -> None:
    begun = time.monotonic()
    os.environ.setdefault("CI", "1")
    REPORTS.mkdir(parents=True, exist_ok=True)
    with machine() as made:
        found = judged(made)
    print(json.dumps(found | {"minutes": round((time.monotonic() - begun) / 60, 1)}))
    if found["edges_not_allowed"]:
        raise SystemExit("a service called one that the table of callers does not allow")


def judged(made: Machine) -> dict[str, int]:
    """What was seen: ``services``, ``tests``, ``failed_calls``, ``edges_not_allowed``."""
    with stage("images"):
        servers, built = images.build_servers(), images.build(FIRST)
        made.load([*servers, *built, *(images.named_anew(name, FIRST, NEXT) for name in built)])
    _, *others = nodes()
    kubernetes.make_namespace(made.folders(SERVERS))
    # Of each server there is one: it stays where no node is drained or lost.
    with losses.kept_from(others):
        tests, seen = installed_and_tested(built[0])
        with stage("parts that are away"):
            for outage in fallbacks.outages():
                rows = fallbacks.played(outage)
                print(f"   {outage.what}: {rows} rows", flush=True)
    with stage("a rolling update at 200 requests a second"):
        rolled = changes.rolled(NEXT)
        demand_no_failure(rolled, "in a rolling update")
    with stage("pods killed"):
        losses.pods_killed()
    with stage("a node is drained"):
        if others:
            demand_no_failure(losses.node_drained(others[0]), "while a node is drained")
        else:
            print("   not tried: it needs a second node", flush=True)
    with stage("more processes under load"):
        scaling.ask_for_metrics(made)
        scaling.scaled_up(NEXT)
    with stage("a bad migration"):
        changes.a_bad_migration_stops_the_rollout(NEXT, BAD, made)
    with stage("a release that does not start"):
        stopped = changes.a_release_that_does_not_start_stops_the_rollout()
        demand_no_failure(stopped, "while a release does not start")
    with stage("fewer processes after it"):
        print(f"   after {scaling.scaled_down():.0f} s", flush=True)
    with stage("a node is lost"):
        if others and made.loses:
            losses.placed_anew()
            _, seconds = losses.node_lost(others[0], made)
            print(f"   no call failed after {seconds:.0f} s", flush=True)
        else:
            print("   not tried: it needs a second node, and LOSE", flush=True)
    with stage("uninstall leaves nothing"):
        changes.uninstalled()
    return {
        "services": len(images.services()),
        "tests": tests,
        "failed_calls": rolled.failed.total(),
        "edges_not_allowed": len(forbidden(seen)),
    }


def installed_and_tested(image: str) -> tuple[int, set[Edge]]:
    """How many end-to-end tests passed on a fleet that has seen an upgrade, and who called whom."""
    with stage("the chart of before, then this one"), changes.previous_chart() as (revision, chart):
        install("--set", f"image.tag={FIRST}", chart=chart, upgrade=False)
        print(f"   {revision}: ready after {wait_until_ready():.0f} s", flush=True)
        tracing.start(image)
        install(*settings(FIRST))
        print(f"   this one: ready after {wait_until_ready():.0f} s", flush=True)
    with stage("the end-to-end tests, through the cluster's address"):
        address = {"MINDWEAVE_E2E_ADDRESS": f"http://{kubernetes.address()}"}
        tests = passed("e2e-cluster", "pytest", "-m", "e2e", "tests/e2e", **address)
        seen = tracing.seen()
        demand(seen, "calls between services are traced")
        print(f"   {len(seen)} edges: {told(seen)}", flush=True)
        tracing.stop()
    return tests, seen


def settings(tag: str) -> list[str]:
    """Options with which spans go to the receiver."""
    given = {"image.tag": tag, "settings.OTEL_EXPORTER_OTLP_ENDPOINT": tracing.ENDPOINT}
    return [part for name, value in given.items() for part in ("--set", f"{name}={value}")]


if __name__ == "__main__":
    main()
