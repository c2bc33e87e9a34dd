"""Certificates of databases and brokers: whose are trusted, and what a renewal takes."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import pytest

from common.database import Database
from common.errors import Unavailable
from common.events.kafka import Access, KafkaBus
from common.events.redis_streams import RedisStreamsBus
from common.settings import Settings
from common.testing import silent_telemetry
from fleet.embedded import Kafka
from tests.common.certificates.authority import HOST, Authority, Front
from tests.common.database.conftest import opened
from tests.common.logs import written_logs
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus

NAME = "certified"
Ping = Callable[[], Awaitable[None]]


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours.pem", "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "theirs.pem", "theirs")


@pytest.fixture
def signed(tmp_path: Path) -> Callable[[Authority], Path]:
    """Makes another certificate of the server."""
    numbers = count()
    return lambda authority: authority.sign(tmp_path / f"server-{next(numbers)}.pem")


async def answers(ping: Ping) -> None:
    """Wait until it does."""

    async def answered() -> bool:
        with suppress(Unavailable):
            await ping()
            return True
        return False

    await eventually(answered)


async def is_refused(ping: Ping, setting: str) -> None:
    """Wait until a line tells that a certificate is not trusted, and what to set."""
    with written_logs("error") as lines:

        async def told() -> bool:
            with pytest.raises(Unavailable):
                await ping()
            return any("is refused" in line and setting in line for line in lines())

        await eventually(told)


def at(url: str, front: Front, scheme: str, query: str) -> str:
    """The same, by TLS."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return urlunsplit((scheme, f"{user}@{HOST}:{front.port}", parts.path, query, ""))


@pytest.fixture
async def database(
    service_database: Callable[..., Awaitable[Database]], settings: Settings, tmp_path: Path
) -> str:
    """The DSN of a database behind a socket."""
    (tmp_path / "migrations").mkdir()
    await service_database(NAME, tmp_path / "migrations")
    return settings.runtime_dsn(NAME)


async def test_a_renewed_certificate_of_the_database_takes_no_restart_nor_does_another_authority(
    database: str,
    settings: Settings,
    ours: Authority,
    theirs: Authority,
    signed: Callable[[Authority], Path],
) -> None:
    (folder,) = parse_qs(urlsplit(database).query)["host"]
    front = Front(signed(ours), asked=True)
    with front.before(Path(folder) / ".s.PGSQL.5432"):
        query = f"sslmode=verify-full&sslrootcert={ours.file}"
        db = await opened(at(database, front, "postgresql", query), settings, name=NAME)
        await db.ping()
        front.show(signed(ours))
        await answers(db.ping)
        assert front.shown > 1
        front.show(signed(theirs))
        await is_refused(db.ping, "sslrootcert in DATABASE_URL")
        ours.file.write_bytes(ours.pem + theirs.pem)
        await answers(db.ping)
        await db.close()


@pytest.fixture
def streams(
    valkey: Any, ours: Authority, signed: Callable[[Authority], Path]
) -> Iterator[tuple[Front, str]]:
    """Valkey behind TLS, and its URL."""
    front = Front(signed(ours))
    parts = urlsplit(valkey.url)
    with front.before(Path(parts.path)):
        url = f"unix://{parts.netloc}"
        yield front, at(url, front, "rediss", f"ssl_ca_certs={ours.file}")


async def test_a_renewed_certificate_of_the_streams_takes_no_restart(
    streams: tuple[Front, str],
    ours: Authority,
    theirs: Authority,
    signed: Callable[[Authority], Path],
) -> None:
    front, url = streams
    bus = RedisStreamsBus(url, telemetry=silent_telemetry())
    await bus.ping()
    front.show(signed(ours))
    await answers(bus.ping)
    assert front.shown > 1
    front.show(signed(theirs))
    await is_refused(bus.ping, "ssl_ca_certs in REDIS_URL")
    await bus.stop()
    ours.file.write_bytes(ours.pem + theirs.pem)
    restarted = RedisStreamsBus(url, telemetry=silent_telemetry())
    await answers(restarted.ping)
    await restarted.stop()


class Certified(Kafka):
    """One that speaks TLS."""

    def __init__(self, folder: Path, certificate: Path, trusted: Path) -> None:
        options = {
            "listener.security.protocol.map": "PLAINTEXT:SSL,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(certificate),
            # It tries its own certificate.
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(trusted),
        }
        super().__init__(folder, options)

    def answers(self) -> bool:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        host, _, port = self.bootstrap.rpartition(":")
        try:
            with (
                socket.create_connection((host, int(port)), timeout=1.0) as connection,
                context.wrap_socket(connection),
            ):
                return True
        except OSError:
            return False


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return tmp_path / "kafka.pem"


@pytest.fixture
def kafka(tmp_path: Path, ours: Authority, certificate: Path) -> Iterator[Kafka]:
    ours.sign(certificate)
    server = Certified(tmp_path / "kafka", certificate, ours.file)
    server.start()
    yield server
    server.stop()


async def test_a_renewed_certificate_of_kafka_takes_no_restart_nor_does_another_authority(
    kafka: Kafka, ours: Authority, theirs: Authority, certificate: Path
) -> None:
    access = Access(kafka.bootstrap, "SSL", ca_file=str(ours.file))
    bus = KafkaBus(access, telemetry=silent_telemetry())
    await answers(bus.ping)
    strangers = KafkaBus(
        Access(kafka.bootstrap, "SSL", ca_file=str(theirs.file)), telemetry=silent_telemetry()
    )
    await is_refused(strangers.ping, "MINDWEAVE_KAFKA_CA_FILE")
    kafka.stop()
    theirs.sign(certificate)
    ours.file.write_bytes(ours.pem + theirs.pem)
    kafka.start()
    # One has met the certificate that is new, the other's authority has signed it.
    await answers(bus.ping)
    await answers(strangers.ping)
    await strangers.stop()
    await bus.stop()
