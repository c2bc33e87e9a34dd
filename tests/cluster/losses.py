"""Pods and nodes that go away, in order and at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.cluster import kubernetes
from tests.cluster.kubernetes import kubectl, pods, wait_until_ready
from tests.cluster.load import under_load
from tests.cluster.machine import Machine
from tests.cluster.running import demand, until
from tests.e2e.open_loop import Calls

# A pod of each is killed.
KILLED = ("gateway", "usage-tracker", "usage-tracker-work", "analytics", "team")
# Without a failed call, for as long the platform has recovered.
QUIET_SECONDS = 10.0


@contextmanager
def kept_from(others: Sequence[str]) -> Iterator[None]:
    """Let nothing be placed on these nodes while the block runs."""
    try:
        for node in others:
            kubectl("cordon", node)
        yield
    finally:
        for node in others:
            kubectl("uncordon", node)


def pods_killed() -> Calls:
    """One of two pods each, at once and without a farewell; the others take over."""
    with under_load(kubernetes.address()) as calls:
        for name in KILLED:
            victim = str(pods(name)[0]["metadata"]["name"])
            kubectl("delete", "pod", victim, "--grace-period=0", "--force", "--wait=false")
        until("it has recovered", lambda: _quiet(calls))
        wait_until_ready()
    return calls


def node_drained(node: str) -> Calls:
    """All of a node's pods leave in order, as the disruption budgets let them; then it is back."""
    with under_load(kubernetes.address()) as calls, kept_from([node]):
        kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force")
        wait_until_ready()
        demand(not _on(node), "nothing was left there")
    return calls


def placed_anew() -> None:
    """Each pod of the services is made anew, where there is most room now."""
    kubectl("rollout", "restart", "deployment")
    wait_until_ready()


def node_lost(node: str, machine: Machine) -> tuple[Calls, float]:
    """A node is gone with all that runs there.

    Returns:
        the calls, and the seconds until none failed any more.
    """
    demand(_on(node), f"there is something to lose on {node}")
    with under_load(kubernetes.address()) as calls:
        begun = time.monotonic()
        machine.lose(node)
        until("it has recovered", lambda: calls.failed and _quiet(calls))
        seconds = time.monotonic() - begun - QUIET_SECONDS
    # Nobody else says that its pods are gone.
    kubectl("delete", "node", node)
    return calls, seconds


def _on(node: str) -> list[str]:
    """Names of the release's pods on a node."""
    found = kubernetes.objects("pods", f"app.kubernetes.io/instance={kubernetes.RELEASE}")
    return [str(p["metadata"]["name"]) for p in found if p["spec"].get("nodeName") == node]


def _quiet(calls: Calls) -> bool:
    before = calls.failed.total()
    time.sleep(QUIET_SECONDS)
    return calls.failed.total() == before
