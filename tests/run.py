"""The small kinds of tests, their coverage, the end-to-end tests, faults, one line of counts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from fleet.process import Platform
from tests import variants
from tests.common.otlp import otlp_receiver
from tests.e2e.edges import EdgeReceiver, forbidden, told

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / ".cache" / "tests"
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


@dataclass(frozen=True)
class Part:
    """The tests of a kind in some places, or all but those in some places."""

    name: str
    kind: str
    only: Sequence[str] = ()
    but: Sequence[str] = ()

    def run(self, *runner: str) -> int:
        """How many passed."""
        chosen = (*self.only, *(f"--ignore={place}" for place in self.but))
        return passed(self.name, *runner, "pytest", "-m", self.kind, *chosen, aside=True)


# Side by side go rows of about the same length, whose tests wait more than they work.
DRIVERS = ("tests/common/bus_contract", "tests/common/kafka")
SMALL = (
    (Part("unit", "unit"), Part("store", "store")),
    (Part("rpc", "rpc"), Part("bus", "bus", but=DRIVERS)),
    (Part("bus drivers", "bus", only=DRIVERS),),
)
FAULTS = ("tests/e2e/faults", "tests/e2e/hostile", "tests/e2e/test_layout.py")
# It sends at a steady rate, which takes all there is.
ALONE = ("tests/e2e/test_draining.py",)
PLATFORMS = (
    (Part("e2e", "e2e", but=FAULTS + ALONE),),
    (Part("e2e faults", "e2e", only=FAULTS),),
)


def run_rows(rows: Sequence[Sequence[Part]], *runner: str) -> Counter[str]:
    """How many tests of each kind passed; the parts of a row one after another.

    Raises:
        SystemExit: a part did not pass; each other row has gone on to its end.
    """

    def run_row(row: Sequence[Part]) -> Counter[str]:
        found: Counter[str] = Counter()
        for part in row:
            found[part.kind] += part.run(*runner)
        return found

    with ThreadPoolExecutor(len(rows)) as pool:
        return sum(pool.map(run_row, rows), Counter())


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
    counts = run_rows(SMALL, "coverage", "run", "-m")
    check_coverage()
    counts += run_rows(PLATFORMS)
    counts["e2e"] += Part("e2e alone", "e2e", only=ALONE).run()
    apart = run_apart()
    run_chaos()
    told = [f"{kind} {count}" for kind, count in counts.items()]
    counted = f"tests passed: {', '.join(told)} (all), {apart} (up on kafka); exact under faults"
    print(f"{counted}; {variants.told()}")


if __name__ == "__main__":
    main()
