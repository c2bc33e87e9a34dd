"""The small kinds of tests, their coverage, the end-to-end tests, faults, one line of counts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from fleet.process import Platform
from tests import variants
from tests.common.otlp import otlp_receiver
from tests.e2e.edges import EdgeReceiver, forbidden, told

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / ".cache" / "tests"
# The kinds whose tests start no platform, in two rows of about the same length.
SMALL = (("unit", "store", "rpc"), ("bus",))
COVERED = "services/*,libs/common/*"
BAR = 95


def run(*command: str, output: IO[str] | None = None, **environment: str) -> bool:
    """Whether a module of this Python, with its arguments, succeeded."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        check=False,
        env={**os.environ, **environment},
        stdout=output,
        stderr=output,
    )
    return done.returncode == 0


def passed(name: str, *command: str, aside: bool = False, **environment: str) -> int:
    """How many tests passed of those that a command of pytest runs.

    Args:
        name: of the tests.
        command: a module and its arguments.
        aside: keep what it prints until it has ended, since something else prints meanwhile.
        environment: beside this process's own.

    Raises:
        SystemExit: one did not, or there was none.
    """
    report = REPORTS / f"{name}.json"
    report.unlink(missing_ok=True)
    command = (*command, "-q", f"--counts={report}")
    if aside:
        with (REPORTS / f"{name}.txt").open("w+") as output:
            succeeded = run(*command, output=output, **environment)
            output.seek(0)
            print(f"── {name} tests\n{output.read()}", flush=True)
    else:
        print(f"── {name} tests", flush=True)
        succeeded = run(*command, **environment)
    counts = json.loads(report.read_text()) if report.exists() else {}
    if not succeeded or not counts.get("passed"):
        raise SystemExit(f"the {name} tests did not pass: {counts or 'none ran'}")
    if set(counts) != {"passed"}:
        raise SystemExit(f"not every {name} test ran: {counts}")
    return int(counts["passed"])


def run_small() -> dict[str, int]:
    """How many tests of each small kind passed; they wait more than they work: two at a time."""

    def run_kinds(kinds: Sequence[str]) -> dict[str, int]:
        command = ("coverage", "run", "-m", "pytest", "-m")
        return {kind: passed(kind, *command, kind, aside=True) for kind in kinds}

    found: dict[str, int] = {}
    with ThreadPoolExecutor(len(SMALL)) as pool:
        for counts in pool.map(run_kinds, SMALL):
            found |= counts
    return found


def run_apart() -> int:
    """How many end-to-end tests passed by the address alone, on many processes and Kafka.

    Raises:
        SystemExit: one did not, or a service called one that the table of callers does not allow.
    """
    receiver = EdgeReceiver()
    with otlp_receiver(receiver):
        count = run_traced(receiver.endpoint)
    print(f"calls between services: {told(receiver.seen)}", flush=True)
    if not receiver.seen:
        raise SystemExit("no call between services was traced")
    if found := forbidden(receiver.seen):
        raise SystemExit(f"calls that nothing allows: {told(found)}")
    return count


def run_traced(endpoint: str) -> int:
    """The same, with every span sent to a receiver."""
    with socket.socket() as free, TemporaryDirectory(prefix="mindweave-") as folder:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        soon = {"MINDWEAVE_COMPACTION_SECONDS": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        with Platform(Path(folder) / "data", listen, soon, layout="up") as platform:
            print(f"many processes ready after {platform.wait_until_ready():.1f} s", flush=True)
            address = {"MINDWEAVE_E2E_ADDRESS": platform.address}
            count = passed("e2e-up", "pytest", "-m", "e2e", "tests/e2e", **address)
        if platform.process.returncode != 0:
            raise SystemExit(f"many processes did not end well:\n{platform.last_lines()}")
    return count


def run_chaos() -> None:
    """A short round of faults, which prints its seed.

    Raises:
        SystemExit: something was lost, doubled or off, did not come back, or was not hit.
    """
    print("── chaos", flush=True)
    if not run("tests.chaos"):
        raise SystemExit("the platform is not exact under faults")


def check_coverage() -> None:
    """Fail where fewer lines ran than the bar asks.

    Raises:
        SystemExit: that is so.
    """
    report = ("report", "--skip-covered", f"--include={COVERED}", f"--fail-under={BAR}")
    if not (run("coverage", "combine", "--quiet") and run("coverage", *report)):
        raise SystemExit(f"fewer than {BAR} % of the lines of services/ and libs/common ran")


def main() -> None:
    # The real trace must be there: a run that is to judge the platform takes no generator.
    os.environ.setdefault("CI", "1")
    REPORTS.mkdir(parents=True, exist_ok=True)
    run("coverage", "erase")
    counts = run_small()
    check_coverage()
    counts["e2e"] = passed("e2e", "pytest", "-m", "e2e")
    apart = run_apart()
    run_chaos()
    told = [f"{kind} {count}" for kind, count in counts.items()]
    counted = f"tests passed: {', '.join(told)} (all), {apart} (up on kafka); exact under faults"
    print(f"{counted}; {variants.told()}")


if __name__ == "__main__":
    main()
