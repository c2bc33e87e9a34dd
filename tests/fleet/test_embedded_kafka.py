"""The embedded Kafka: where its program comes from, and that its data outlives it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.events.bus import BusUnavailable, Outgoing
from common.events.drivers import bus_for
from common.events.kafka import Access, KafkaBus
from common.settings import load_settings
from common.testing import silent_telemetry
from fleet.embedded import DidNotStart, Kafka
from tests.common.waiting import eventually

# Takes the place of Maven: copies one jar, slowly, and notes that it ran.
MAVEN = """#!/bin/sh
for word in "$@"; do case $word in -DoutputDirectory=*) to=${word#*=};; esac; done
echo ran >> "$NOTES"
sleep 0.5
touch "$to/kafka_2.13-4.4.0.jar"
"""
FETCH = """
from concurrent.futures import ThreadPoolExecutor
from fleet.embedded import Kafka
from pathlib import Path

with ThreadPoolExecutor() as pool:
    print(*set(pool.map(lambda name: Kafka(Path(name)).version, "abc")))
"""


def script(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(text)
    file.chmod(0o755)


@pytest.mark.unit
def test_brokers_that_start_at_once_share_one_download(tmp_path: Path) -> None:
    script(tmp_path, "mvn", MAVEN)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "NOTES": str(tmp_path / "notes"),
        "MINDWEAVE_KAFKA_LIBS": "",
    }

    def fetch(_: int) -> str:
        return subprocess.run(
            [sys.executable, "-c", FETCH],
            check=True,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        ).stdout.strip()

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(fetch, range(3))) == ["4.4.0"] * 3
    assert (tmp_path / "notes").read_text() == "ran\n"
    assert {f.name for f in (tmp_path / ".cache" / "kafka").iterdir()} == {"4.4.0", "lock"}
    jars = (tmp_path / ".cache" / "kafka" / "4.4.0").iterdir()
    assert [file.name for file in jars] == ["kafka_2.13-4.4.0.jar"]


@pytest.mark.unit
@pytest.mark.parametrize("missing", ["java", "mvn"])
def test_what_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in {"java", "mvn"} - {missing}:
        script(tmp_path, name, "#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("MINDWEAVE_KAFKA_LIBS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DidNotStart, match=f"needs {missing}.*set KAFKA_BROKERS"):
        Kafka(tmp_path / "kafka").start()


@pytest.mark.unit
def test_what_maven_says_is_told_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path, "java", "#!/bin/sh\n")
    script(tmp_path, "mvn", "#!/bin/sh\necho no such repository\nexit 1\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("MINDWEAVE_KAFKA_LIBS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DidNotStart, match="Maven failed:\nno such repository"):
        Kafka(tmp_path / "kafka").start()
    assert [left.name for left in (tmp_path / ".cache" / "kafka").iterdir()] == ["lock"]


@pytest.mark.bus
async def test_a_broker_is_found_again_and_started_again_with_its_data(tmp_path: Path) -> None:
    first = Kafka(tmp_path / "kafka", password="otters")
    first.start()
    pid, address = first.pid, first.bootstrap
    settings = load_settings(secret="x" * 32, **first.access)
    bus = bus_for(settings, telemetry=silent_telemetry())
    await bus.declare("topic", 1)
    (token,) = await bus.publish("topic", [Outgoing(b"kept")])

    heir = Kafka(tmp_path / "kafka", password="otters")
    heir.start()
    assert (heir.pid, heir.bootstrap) == (pid, address)
    process = first.process
    assert process is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    first.start()
    assert first.pid != pid
    assert first.bootstrap == address
    # As soon as it is told dead: its threads are still ending, and its ports are not free yet.
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    await eventually(lambda: first.process is None)
    first.start()
    assert first.bootstrap == address
    again = bus_for(settings, telemetry=silent_telemetry())
    assert await again.end("topic", 0) == token
    await bus.stop()
    await again.stop()
    await refuses_strangers(first)
    first.stop()
    assert heir.process is None


async def refuses_strangers(server: Kafka) -> None:
    guess = ("SASL_PLAINTEXT", "PLAIN", "mindweave", "weasels")
    for access in (Access(server.bootstrap), Access(server.bootstrap, *guess)):
        stranger = KafkaBus(access, telemetry=silent_telemetry())
        with pytest.raises(BusUnavailable):
            await stranger.ping()
        await stranger.stop()
    controller = int(server.bootstrap.rpartition(":")[2]) + 1
    with socket.create_connection(("127.0.0.1", controller)) as connection:
        # SaslHandshake, version 1, of a client without a name; a port without SASL refuses it.
        body = struct.pack(">hhihh", 17, 1, 7, -1, 5) + b"PLAIN"
        connection.sendall(struct.pack(">i", len(body)) + body)
        assert connection.recv(10)[4:] == struct.pack(">ih", 7, 0)
    assert stat.S_IMODE((server.folder / "server.properties").stat().st_mode) == 0o600


@pytest.mark.unit
def test_a_port_that_another_program_has_taken_is_left_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "kafka"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        (folder / "server.properties").write_text(f"advertised.listeners=PLAINTEXT://{taken}\n")
        assert Kafka(folder).bootstrap != taken
    assert Kafka(folder).bootstrap == taken
