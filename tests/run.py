"""Every kind of tests, then the coverage, then one line of counts when all of it passed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / ".cache" / "tests"
KINDS = ("unit", "store", "rpc", "bus", "e2e")
COVERED = "services/*,libs/common/*"
BAR = 95


def run_kind(kind: str) -> int:
    """How many tests of the kind passed.

    Raises:
        SystemExit: one failed, or there was none.
    """
    print(f"── {kind} tests", flush=True)
    report = REPORTS / f"{kind}.xml"
    command = ["coverage", "run", "-m", "pytest", "-q", "-m", kind, f"--junitxml={report}"]
    if subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode != 0:
        raise SystemExit(f"the {kind} tests did not pass")
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    count = {"tests": 0, "skipped": 0}
    for suite in suites:
        for name in count:
            count[name] += int(suite.get(name, "0"))
    if count["tests"] == 0 or count["skipped"] > 0:
        raise SystemExit(f"{kind}: {count['tests']} tests ran, {count['skipped']} were skipped")
    return count["tests"]


def check_coverage() -> None:
    """Raises SystemExit where fewer lines ran than the bar asks."""
    subprocess.run([sys.executable, "-m", "coverage", "combine", "--quiet"], cwd=ROOT, check=True)
    report = ["report", "--skip-covered", f"--include={COVERED}", f"--fail-under={BAR}"]
    command = [sys.executable, "-m", "coverage", *report]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise SystemExit(f"fewer than {BAR} % of the lines of services/ and libs/common ran")


def main() -> None:
    os.environ["CI"] = os.environ.get("CI", "1")
    REPORTS.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "coverage", "erase"], cwd=ROOT, check=True)
    counts = {kind: run_kind(kind) for kind in KINDS}
    check_coverage()
    print("tests passed: " + ", ".join(f"{kind} {n}" for kind, n in counts.items()))


if __name__ == "__main__":
    main()
