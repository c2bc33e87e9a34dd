"""Apache Kafka 4 from Maven's repository, as one node without ZooKeeper."""

from __future__ import annotations

import base64
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from fleet.embedded.daemon import Daemon, DidNotStart
from fleet.ports import HOST, free_ports, is_free

_VERSION = "4.4.0"
_LIBS = "MINDWEAVE_KAFKA_LIBS"
_USER = "mindweave"
_PORT_SECONDS = 10.0

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>mindweave</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{_VERSION}</version>
      <exclusions>
        <exclusion>
          <groupId>org.apache.kafka</groupId>
          <artifactId>kafka-tools-api</artifactId>
        </exclusion>
      </exclusions>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-slf4j-impl</artifactId>
      <version>2.25.5</version>
    </dependency>
  </dependencies>
</project>
"""

_OPTIONS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "num.partitions": "1",
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "500",
    "message.max.bytes": str(16 * 1024 * 1024),
    "log.segment.bytes": str(128 * 1024 * 1024),
    # The wait of a restart after kill -9 for the session of the broker that was there before.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "num.recovery.threads.per.data.dir": "2",
    "log.cleaner.dedupe.buffer.size": str(8 * 1024 * 1024),
}


class Kafka(Daemon):
    """One broker that is its own controller, on two loopback ports that stay with the folder.

    What was acknowledged is in the system's page cache: it survives ``kill -9`` of this process,
    not a failure of the machine. ``log.flush.interval.messages`` stays as in production, where the
    replicas on other machines make up for that; a sync of each batch (``options``) takes the
    throughput of one node to a thirtieth.

    The program is taken from the folder that ``MINDWEAVE_KAFKA_LIBS`` names, else from
    ``.cache/kafka`` in the current folder, where Maven puts it once.
    """

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, str] | None = None,
        *,
        password: str | None = None,
        port: int | None = None,
        cluster: str | None = None,
    ) -> None:
        """Make it known; it is started by ``start``.

        Args:
            folder: its own.
            options: of the broker, beside and before those here.
            password: of letters and digits; without one it takes calls from anybody.
            port: the one before its controller's; the folder's own or any free one when absent.
            cluster: the id that all brokers of a cluster are formatted with; its own when absent.
        """
        super().__init__("kafka", folder)
        self._password = password
        self._options = (_guarded(password) if password else {}) | dict(options or {})
        self._configuration = folder / "server.properties"
        self._data = folder / "data"
        self._cluster = cluster
        self._port = port or self._kept_port() or next(free_ports(neighbours=1))

    @property
    def bootstrap(self) -> str:
        """What clients are told, ``host:port``."""
        return f"{HOST}:{self._port}"

    @property
    def access(self) -> dict[str, str]:
        """What clients set, by the names of settings."""
        found = {"kafka_brokers": self.bootstrap}
        if self._password:
            found |= {
                "kafka_security_protocol": "SASL_PLAINTEXT",
                "kafka_sasl_mechanism": "PLAIN",
                "kafka_username": _USER,
                "kafka_password": self._password,
            }
        return found

    @property
    def version(self) -> str:
        """Of the program, by the name of its jar."""
        (jar,) = libraries().glob("kafka_2.13-*.jar")
        return jar.stem.rpartition("-")[2]

    def prepare(self) -> None:
        """Fetch the program and format the folder, where that was not done yet.

        Raises:
            DidNotStart: Java or Maven is not there or failed, or a port is another program's.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._wait_for_ports()
        self._configure(self._configuration, self._data)
        if not self._data.exists():
            self._format()

    def command(self) -> list[str]:
        return [
            *_java(),
            "-Xmx256m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:+ExitOnOutOfMemoryError",
            "-Dlog4j2.level=WARN",
            "kafka.Kafka",
            str(self._configuration),
        ]

    def answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self._port), timeout=1.0) as connection:
                # ApiVersions, version 0, of a client without a name: served once it is ready.
                connection.sendall(struct.pack(">ihhih", 10, 18, 0, 1, -1))
                return len(connection.recv(4)) == 4
        except OSError:
            return False

    def _kept_port(self) -> int | None:
        """The folder's port, unless another program has taken it or its neighbour."""
        try:
            lines = self._configuration.read_text().splitlines()
        except FileNotFoundError:
            return None
        address = next(line for line in lines if line.startswith("advertised.listeners="))
        port = int(address.rpartition(":")[2])
        return port if self.process is not None or _are_free(port) else None

    def _wait_for_ports(self) -> None:
        """Clients were told the port; a broker that was killed keeps it for some milliseconds."""
        deadline = time.monotonic() + _PORT_SECONDS
        while not _are_free(self._port):
            if time.monotonic() > deadline:
                raise DidNotStart(f"kafka: another program is at {self.bootstrap} or the next port")
            time.sleep(0.02)

    def _configure(self, file: Path, data: Path) -> None:
        options = _OPTIONS | {
            "controller.quorum.voters": f"1@{HOST}:{self._port + 1}",
            "listeners": f"PLAINTEXT://{HOST}:{self._port},CONTROLLER://{HOST}:{self._port + 1}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self._port}",
            "log.dirs": str(data),
            **self._options,
        }
        unfinished = file.with_suffix(".new")
        unfinished.touch(mode=0o600)
        unfinished.write_text("".join(f"{name}={value}\n" for name, value in options.items()))
        unfinished.rename(file)

    def _format(self) -> None:
        unfinished = self._data.with_suffix(".new")
        configuration = self.folder / "format.properties"
        shutil.rmtree(unfinished, ignore_errors=True)
        self._configure(configuration, unfinished)
        cluster = self._cluster or cluster_id()
        # An id may begin with a dash.
        tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}"]
        _run("Kafka's StorageTool", *_java(), *tool, "-c", str(configuration))
        unfinished.rename(self._data)
        configuration.unlink()


def cluster_id() -> str:
    """A new one, as Kafka writes it."""
    return base64.urlsafe_b64encode(uuid4().bytes).decode().rstrip("=")


def _java() -> list[str]:
    return [_program("java"), "-XX:-UsePerfData", "-cp", f"{libraries()}/*"]


def libraries() -> Path:
    """The folder with Kafka's jars, fetched where it is not there yet.

    Raises:
        DidNotStart: Maven is not there or failed.
    """
    named = os.environ.get(_LIBS)
    if named:
        return Path(named)
    folder = Path(".cache/kafka").resolve() / _VERSION
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Of brokers that start at the same time one downloads; Maven's own folder bears no more.
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _download(folder)
    return folder


def _download(folder: Path) -> None:
    """Let Maven copy the jars to another folder, which then becomes ``folder``."""
    maven = _program("mvn")
    unfinished = folder.with_name(f"{_VERSION}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    pom = unfinished / "pom.xml"
    pom.write_text(_POM)
    copy = ["-B", "-q", "-f", str(pom), "dependency:copy-dependencies"]
    try:
        _run("Maven", maven, *copy, "-DincludeScope=runtime", f"-DoutputDirectory={unfinished}")
        pom.unlink()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise DidNotStart(
            f"The embedded Kafka needs {name}, which is not installed: "
            "install Java 17 or newer and Maven, set KAFKA_BROKERS, "
            "or do without: --broker redis-streams (make up BROKER=redis-streams)."
        )
    return found


def _run(what: str, *command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        lines = f"{done.stdout}{done.stderr}".strip().splitlines()
        raise DidNotStart(f"{what} failed:\n" + "\n".join(lines[-10:]))


def _are_free(port: int) -> bool:
    return is_free(port) and is_free(port + 1)


def _guarded(password: str) -> dict[str, str]:
    """Options with which it asks for the password, as broker and as controller."""
    login = (
        "org.apache.kafka.common.security.plain.PlainLoginModule required "
        f'username="{_USER}" password="{password}" user_{_USER}="{password}";'
    )
    return {
        "listener.security.protocol.map": "PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "sasl.mechanism.controller.protocol": "PLAIN",
        "listener.name.plaintext.plain.sasl.jaas.config": login,
        "listener.name.controller.plain.sasl.jaas.config": login,
    }
