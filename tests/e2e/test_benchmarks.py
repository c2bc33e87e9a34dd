"""The benchmarks run, and events are neither lost nor doubled in them; how fast is not asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


def last_line(module: str, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", module, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_ingest_is_measured_beside_a_filled_store_and_every_event_is_there_once():
    found = last_line(
        "bench.ingest",
        *("--layout", "all:redis-streams", "--no-table", "--stored", "20000", "--buffers", "24"),
        *("--seconds", "1", "--probe-seconds", "1", "--batch", "500", "--connections", "4"),
    )
    assert found.keys() == {
        *("layout", "broker", "accepted_per_s", "visible_per_s", "ack_full_ms_p95", "ack_ms_p95"),
        *("ack_ms_p95_beside_questions", "ack_ms_p95_of_100"),
        *("visible_ms_p99", "cpu_us_per_event", "lost", "doubled", "repeats", "stored"),
        *("bytes_per_identity", "restart_s"),
    }
    assert (found["lost"], found["doubled"], found["stored"]) == (0, 0, 20000)
    assert found["repeats"] > 0
    assert found["accepted_per_s"] > 0
    assert found["bytes_per_identity"] > 0


def test_every_stage_of_an_event_is_measured():
    found = last_line("bench.stages", "--events", "2000", "--batch", "500")
    assert {"decode JSON", "judge, digest", "pack records", "price", "deltas"} <= found.keys()
    assert {"rows of identities", "rows of events", "pack deltas"} <= found.keys()


def test_a_flood_is_refused_beyond_its_share_and_a_quiet_tenant_never_is():
    found = last_line("bench.overload", "--seconds", "2", "--buffers", "24")
    assert found["refusals"] > 0
    assert (found["quiet_refusals"], found["lost"], found["doubled"]) == (0, 0, 0)


def test_cost_is_measured_against_partitions_organizations_and_stored_events():
    found = last_line(
        "bench.growth",
        *("--seconds", "1", "--connections", "4", "--partitions", "2", "--organizations", "3"),
        *("--stored", "20000"),
    )
    loads = {"partitions": 2, "organizations": 3, "stored": 20000}
    for name, load in loads.items():
        (cost,) = found[name]
        assert cost["load"] == load
        assert min(cost.values()) > 0
    (sizes,) = found["bytes_per_stored_event"].values()
    assert sizes.keys() == {"raw row", "identity", "windows"}
    # A row holds its two ids, and what a benchmark's event is made of.
    assert sizes["raw row"] > sizes["identity"] > 32
