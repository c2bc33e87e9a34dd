from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from common.events.drivers import bus_for
from common.events.kafka import Access
from common.settings import (
    SettingsError,
    db_password,
    load_settings,
    parse_address,
    sealing_key,
    service_secret,
)
from common.testing import silent_telemetry

pytestmark = pytest.mark.unit

SECRET = "0123456789" * 4
ADMIN = "postgresql://admin:pw@db.example:5433/postgres?sslmode=require"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "DATABASE_URL",
        "REDIS_URL",
        "REDIS_CACHE_URL",
        "KAFKA_BROKERS",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MINDWEAVE_SECRET", SECRET)


def test_the_environment_wins_over_the_file_and_arguments_over_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "mindweave.toml"
    file.write_text(
        'partitions = 8\npool_size = 9\nlog_level = "WARNING"\n[limits]\nfailed_logins = 3'
    )
    monkeypatch.setenv("MINDWEAVE_CONFIG", str(file))
    monkeypatch.setenv("MINDWEAVE_POOL_SIZE", "11")
    monkeypatch.setenv("MINDWEAVE_PARTITIONS", "12")

    settings = load_settings(partitions=16)

    assert (settings.partitions, settings.pool_size, settings.log_level) == (16, 11, "warning")
    assert settings.limits.failed_logins == 3
    assert settings.limits.requests_per_second == 2000


def test_names_that_others_know_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", ADMIN)
    monkeypatch.setenv("REDIS_URL", "redis://broker:6379")
    monkeypatch.setenv("REDIS_CACHE_URL", "redis://cache:6379")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")

    settings = load_settings()

    assert settings.database_url == ADMIN
    assert settings.broker_url() == "redis://broker:6379"
    assert settings.cache_url == "redis://cache:6379"
    assert settings.otlp_endpoint == "http://collector:4318"


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("MINDWEAVE_POOL_SIZE", "many", "MINDWEAVE_POOL_SIZE"),
        ("MINDWEAVE_LIMITS__FAILED_LOGINS", "0", "MINDWEAVE_LIMITS__FAILED_LOGINS"),
        ("MINDWEAVE_LISTEN", "8080", "MINDWEAVE_LISTEN: must be host:port"),
        ("MINDWEAVE_SECRET", "short", "MINDWEAVE_SECRET"),
        ("MINDWEAVE_ADDRESSES", "{team", "MINDWEAVE_ADDRESSES: must be JSON"),
        ("MINDWEAVE_LOG_LEVEL", "loud", "MINDWEAVE_LOG_LEVEL: must be one of"),
        ("MINDWEAVE_ID_RETENTION_DAYS", "7", "MINDWEAVE_ID_RETENTION_DAYS"),
        ("DATABASE_URL", "localhost", "DATABASE_URL: must be a URL"),
        ("MINDWEAVE_CONFIG", "/nowhere/mindweave.toml", "MINDWEAVE_CONFIG: there is no file"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError) as refused:
        load_settings()

    assert str(refused.value).startswith(complaint)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_toml_or_sets_what_nobody_reads_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "mindweave.toml"
    monkeypatch.setenv("MINDWEAVE_CONFIG", str(file))

    file.write_text("partitions 8")
    with pytest.raises(SettingsError, match=r"^MINDWEAVE_CONFIG"):
        load_settings()

    file.write_text("partitionss = 8")
    with pytest.raises(SettingsError, match="partitionss"):
        load_settings()


def test_each_service_has_a_database_and_two_roles_of_its_own() -> None:
    settings = load_settings(database_url=ADMIN)

    runtime, owner = urlsplit(settings.runtime_dsn("team")), urlsplit(settings.owner_dsn("team"))

    assert (runtime.username, runtime.path) == ("team", "/team")
    assert (owner.username, owner.path) == ("team_owner", "/team")
    assert runtime.password == db_password(settings, "team")
    assert (
        len({runtime.password, owner.password, urlsplit(settings.runtime_dsn("auth")).password})
        == 3
    )
    assert (runtime.hostname, runtime.port, runtime.query) == (
        "db.example",
        5433,
        "sslmode=require",
    )


def test_a_service_may_have_a_server_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL_USAGE_TRACKER", "postgresql://u@usage/db")
    monkeypatch.setenv("DATABASE_OWNER_URL_USAGE_TRACKER", "postgresql://o@usage/db")

    settings = load_settings()

    assert settings.runtime_dsn("usage_tracker") == "postgresql://u@usage/db"
    assert settings.owner_dsn("usage_tracker") == "postgresql://o@usage/db"
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        settings.runtime_dsn("team")
    with pytest.raises(SettingsError, match="REDIS_URL"):
        settings.broker_url()


def test_no_secret_is_shown_when_settings_are_printed() -> None:
    settings = load_settings(database_url=ADMIN, redis_url="redis://:hidden@broker")

    shown = repr(settings)

    assert SECRET not in shown
    assert "pw@" not in shown
    assert "hidden" not in shown


def test_secrets_differ_by_purpose_and_by_root_secret() -> None:
    ours, others = load_settings(), load_settings(secret="another secret " * 4)

    made = [
        service_secret(ours, "team"),
        service_secret(ours, "auth"),
        service_secret(others, "team"),
        db_password(ours, "team"),
        sealing_key(ours, "team").hex(),
        sealing_key(ours, "auth").hex(),
    ]

    assert len(set(made)) == len(made)
    assert len(sealing_key(ours, "team")) == 32
    assert service_secret(ours, "team") == service_secret(load_settings(), "team")


@pytest.mark.parametrize("address", ["", "8080", ":8080", "host:", "host:http", "host:70000"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        parse_address(address)


def test_an_address_may_be_one_of_ipv6() -> None:
    assert parse_address("[::1]:8080") == ("::1", 8080)
    assert parse_address("127.0.0.1:0") == ("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"kafka_brokers": "broker-1"}, "KAFKA_BROKERS: must be host:port"),
        ({"kafka_brokers": "broker-1:9092,"}, "KAFKA_BROKERS: must be host:port"),
        ({"kafka_security_protocol": "TLS"}, "MINDWEAVE_KAFKA_SECURITY_PROTOCOL"),
        (
            {"kafka_security_protocol": "SASL_SSL", "kafka_username": "mindweave"},
            "MINDWEAVE_KAFKA_USERNAME, MINDWEAVE_KAFKA_PASSWORD: are needed with SASL",
        ),
        ({"kafka_replication": 0}, "MINDWEAVE_KAFKA_REPLICATION"),
        ({"instance": "worker 1"}, "MINDWEAVE_INSTANCE"),
    ],
)
def test_a_wrong_setting_of_kafka_is_named(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        load_settings(**given)


def test_kafka_carries_the_events_where_its_brokers_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    redis = load_settings(redis_url="redis://localhost")
    assert bus_for(redis, telemetry=silent_telemetry()).name == "redis-streams"
    monkeypatch.setenv("KAFKA_BROKERS", "one:9092,other:9093")
    both = load_settings(redis_url="redis://localhost")
    assert bus_for(both, telemetry=silent_telemetry()).name == "kafka"


def test_brokers_are_reached_as_the_settings_say() -> None:
    plain = Access("one:9092").options()
    assert plain == {"bootstrap_servers": "one:9092", "security_protocol": "PLAINTEXT"}
    guarded = Access("one:9093", "SASL_SSL", "SCRAM-SHA-512", "mindweave", "otters").options()
    assert guarded.pop("ssl_context").verify_mode is ssl.CERT_REQUIRED
    assert guarded == {
        "bootstrap_servers": "one:9093",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "mindweave",
        "sasl_plain_password": "otters",
    }
