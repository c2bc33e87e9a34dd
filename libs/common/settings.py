"""What may be configured, from the environment or a TOML file, checked at start."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import tomllib
from collections.abc import Mapping
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings.exceptions import SettingsError as UnreadableSetting

PREFIX = "MINDWEAVE_"
_CONFIG = f"{PREFIX}CONFIG"
_DATABASE = "DATABASE_URL_"
_OWNER = "DATABASE_OWNER_URL_"
_NOT_JSON = 'must be JSON, such as {"name": "value"}'


class SettingsError(Exception):
    """A setting is missing or wrong; the message is one line that names the variable."""


class Limits(BaseModel):
    """What one caller may do; each is a variable such as MINDWEAVE_LIMITS__FAILED_LOGINS."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    registrations_per_minute: int = Field(default=60, gt=0)
    failed_logins: int = Field(default=10, gt=0)
    failed_logins_seconds: int = Field(default=300, gt=0)
    requests_per_second: int = Field(default=2000, gt=0)
    # Of one address: those that only auth could tell from right ones, each counted once.
    failed_credentials_per_minute: int = Field(default=60, gt=0)
    # Of the bodies of events that a process has in hand, of those of one organization and of one
    # credential.
    ingest_bytes: int = Field(default=128_000_000, gt=0)
    ingest_bytes_per_org: int = Field(default=16_000_000, gt=0)
    ingest_bytes_per_credential: int = Field(default=12_000_000, gt=0)
    # Of all clients of one HTTP address together.
    connections: int = Field(default=4000, gt=0)


class Resilience(BaseModel):
    """When a callee is given up for a while, and how many calls to it are open at once.

    Each is a variable such as MINDWEAVE_RESILIENCE__BREAKER_FAILURES.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Calls in a row that come to nothing.
    breaker_failures: int = Field(default=5, gt=0)
    breaker_open_seconds: float = Field(default=1.0, gt=0)
    # Of one process to one callee.
    bulkhead_calls: int = Field(default=500, gt=0)


def _named(*variables: str) -> AliasChoices:
    """Read from variables whose names others know, as well as from our own."""
    return AliasChoices(*variables, *(PREFIX + variable for variable in variables))


class Settings(BaseSettings):
    """Every setting of the platform. Sizes are bytes, times seconds, unless the name says else."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
    )

    secret: str = Field(min_length=32, repr=False)
    database_url: str | None = Field(
        default=None, validation_alias=_named("DATABASE_URL"), repr=False
    )
    database_urls: dict[str, str] = Field(default={}, repr=False)
    database_owner_urls: dict[str, str] = Field(default={}, repr=False)
    redis_url: str | None = Field(default=None, validation_alias=_named("REDIS_URL"), repr=False)
    cache_url: str | None = Field(
        default=None, validation_alias=_named("REDIS_CACHE_URL"), repr=False
    )
    # "host:port,…"; where it is set, Kafka carries the events, else the Redis of redis_url does.
    kafka_brokers: str | None = Field(default=None, validation_alias=_named("KAFKA_BROKERS"))
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    kafka_username: str | None = None
    kafka_password: str | None = Field(default=None, repr=False)
    # Certificates that sign the brokers' own; the machine's when absent.
    kafka_ca_file: Path | None = None
    # Of topics that the platform makes; the brokers' own default when absent.
    kafka_replication: int | None = Field(default=None, ge=1)
    # This process among those that run the same services; the same name again after a restart.
    instance: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,100}$")
    issuer: str = "https://mindweave.local"
    listen: str = "127.0.0.1:8080"
    # Origins whose pages may call the REST API from a browser; none by default.
    cors_origins: tuple[str, ...] = ()
    # Addresses of proxies whose X-Forwarded-For is believed; none by default.
    trusted_proxies: tuple[str, ...] = ()
    grpc_listen: str = "127.0.0.1:0"
    metrics_listen: str = "127.0.0.1:0"
    # Where each service is called: "host:port", or several of them separated by commas.
    addresses: dict[str, str] = {}
    data: Path = Path(".data")

    # Of usage.events; as many as it has where absent, and 4 where it is made.
    partitions: int | None = Field(default=None, ge=1, le=1024)
    windows_partitions: int = Field(default=2, ge=1, le=1024)
    stream_max_records: int = Field(default=20_000, ge=1)
    raw_retention_days: int = Field(default=7, ge=1)
    id_retention_days: int = Field(default=8, ge=2)
    # How long deltas of windows wait, packed, until they become rows of usage_tracker.
    compaction_seconds: float = Field(default=60.0, gt=0)
    # A user's events without session_id are of another session after so long without any.
    session_gap_minutes: int = Field(default=30, ge=1, le=1440)
    clock_skew_ms: int = Field(default=200, ge=0)

    pool_size: int = Field(default=4, ge=2)
    # Of the embedded PostgreSQL: what it keeps of its tables in memory of its own.
    embedded_buffers_mb: int = Field(default=24, ge=1, le=65_536)
    access_token_ttl: int = Field(default=600, ge=30, le=900)
    refresh_token_ttl: int = Field(default=30 * 86400, ge=600)
    limits: Limits = Limits()
    resilience: Resilience = Resilience()
    # A call to another service that says no time of its own; a request at the edge has 30.
    rpc_timeout: float = Field(default=5.0, gt=0, le=20)
    startup_timeout: float = Field(default=60.0, gt=0)
    # How long a process that is to end still serves after it has said that it is not ready.
    drain_delay: float = Field(default=0.0, ge=0)
    drain_timeout: float = Field(default=20.0, gt=0)

    otlp_endpoint: str | None = Field(
        default=None, validation_alias=_named("OTEL_EXPORTER_OTLP_ENDPOINT")
    )
    log_level: str = "info"

    @field_validator("listen", "grpc_listen", "metrics_listen")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parse_address(value)
        return value

    @field_validator("addresses")
    @classmethod
    def _are_addresses(cls, value: dict[str, str]) -> dict[str, str]:
        for addresses in value.values():
            rpc_target(addresses)
        return value

    @field_validator("database_url", "redis_url", "cache_url")
    @classmethod
    def _is_a_url(cls, value: str | None) -> str | None:
        if value is not None and "://" not in value:
            raise ValueError("must be a URL such as scheme://user:password@host:port/name")
        return value

    @field_validator("kafka_brokers")
    @classmethod
    def _are_brokers(cls, value: str | None) -> str | None:
        if value is not None:
            for broker in value.split(","):
                parse_address(broker)
        return value

    @model_validator(mode="after")
    def _know_a_user(self) -> Settings:
        sasl = self.kafka_security_protocol.startswith("SASL")
        if sasl and not (self.kafka_username and self.kafka_password):
            raise ValueError(
                f"{PREFIX}KAFKA_USERNAME, {PREFIX}KAFKA_PASSWORD: are needed with SASL and not set"
            )
        return self

    @field_validator("log_level")
    @classmethod
    def _is_a_level(cls, value: str) -> str:
        levels = ("debug", "info", "warning", "error")
        if value.lower() not in levels:
            raise ValueError(f"must be one of {', '.join(levels)}")
        return value.lower()

    @model_validator(mode="after")
    def _outlive_raw_rows(self) -> Settings:
        if self.id_retention_days <= self.raw_retention_days:
            raise ValueError(
                f"{PREFIX}ID_RETENTION_DAYS: must be more than {PREFIX}RAW_RETENTION_DAYS"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments before the environment, the environment before the file."""
        sources = [init_settings, env_settings, _DatabaseUrls(settings_cls)]
        file = os.environ.get(_CONFIG)
        if file:
            if not Path(file).is_file():
                raise SettingsError(f"{_CONFIG}: there is no file {file}")
            sources.append(TomlConfigSettingsSource(settings_cls, Path(file)))
        return tuple(sources)

    def runtime_dsn(self, service: str) -> str:
        """The service's database as its runtime role, which row-level security binds."""
        if service in self.database_urls:
            return self.database_urls[service]
        return self._derived_dsn(service, service)

    def owner_dsn(self, service: str) -> str:
        """The service's database as the role that owns its tables and migrates them."""
        if service in self.database_owner_urls:
            return self.database_owner_urls[service]
        return self._derived_dsn(service, f"{service}_owner")

    def _derived_dsn(self, database: str, role: str) -> str:
        if self.database_url is None:
            raise SettingsError(
                f"DATABASE_URL or {_DATABASE}{database.upper()}: is needed and not set"
            )
        parts = urlsplit(self.database_url)
        host = parts.netloc.rpartition("@")[2]
        netloc = f"{role}:{db_password(self, role)}@{host}"
        return urlunsplit(parts._replace(netloc=netloc, path=f"/{database}"))

    def broker_url(self) -> str:
        """The broker's address.

        Raises:
            SettingsError: none is configured.
        """
        if self.redis_url is None:
            raise SettingsError("KAFKA_BROKERS or REDIS_URL: is needed and not set")
        return self.redis_url

    def cache_address(self) -> str:
        """The cache's address; the broker's where that can be a cache and no other is named.

        Raises:
            SettingsError: none is configured.
        """
        found = self.cache_url or self.redis_url
        if found is None:
            raise SettingsError("REDIS_CACHE_URL or REDIS_URL: is needed and not set")
        return found


class _DatabaseUrls(PydanticBaseSettingsSource):
    """DATABASE_URL_<SERVICE> and DATABASE_OWNER_URL_<SERVICE>, by service."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {
            "database_urls": _by_service(os.environ, _DATABASE),
            "database_owner_urls": _by_service(os.environ, _OWNER),
        }
        return {name: urls for name, urls in found.items() if urls}


def _by_service(environ: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {
        name.removeprefix(prefix).lower(): value
        for name, value in environ.items()
        if name.startswith(prefix) and value
    }


def load_settings(**given: Any) -> Settings:
    """The settings from the arguments, the environment and MINDWEAVE_CONFIG, in this order.

    Raises:
        SettingsError: something is missing or wrong; all of it on one line.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError("; ".join(_complaints(error))) from None
    except UnreadableSetting as error:
        field = re.search(r'field "(\w+)"', str(error))
        raise SettingsError(f"{PREFIX}{field[1].upper() if field else ''}: {_NOT_JSON}") from None
    except (tomllib.TOMLDecodeError, OSError) as error:
        raise SettingsError(f"{_CONFIG}: {error}") from None


def _complaints(error: ValidationError) -> list[str]:
    problems = error.errors(include_url=False, include_input=False)
    return [
        ": ".join([*_variable(problem["loc"]), problem["msg"].removeprefix("Value error, ")])
        for problem in problems
    ]


def _variable(location: tuple[int | str, ...]) -> list[str]:
    """The variable's name; none where the message names it already."""
    if not location:
        return []
    first, *inner = (str(part) for part in location)
    if first not in Settings.model_fields:
        return [first]
    return ["__".join([f"{PREFIX}{first.upper()}", *(part.upper() for part in inner)])]


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port"; port 0 asks for a free one.

    Raises:
        ValueError: it is not of that shape.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 65536):
        raise ValueError("must be host:port, such as 127.0.0.1:8080")
    return host.strip("[]"), int(port)


def rpc_target(addresses: str) -> str:
    """What gRPC dials for "host:port", or for several of them separated by commas.

    Raises:
        ValueError: one is not of that shape, or several are not all IPv4 addresses.
    """
    listed = [address.strip() for address in addresses.split(",")]
    hosts = [parse_address(address)[0] for address in listed]
    if len(listed) == 1:
        return listed[0]
    try:
        for host in hosts:
            IPv4Address(host)
    except AddressValueError:
        raise ValueError("several addresses must be IPv4, such as 10.0.0.1:9000") from None
    return f"ipv4:{','.join(listed)}"


def _derive(settings: Settings, purpose: str) -> bytes:
    return hmac.digest(settings.secret.encode(), purpose.encode(), hashlib.sha256)


def service_secret(settings: Settings, name: str) -> str:
    """What the service ``name`` shows auth to be given its own token."""
    return _derive(settings, f"service:{name}").hex()


def db_password(settings: Settings, role: str) -> str:
    """The password of a database role: ``<service>`` or ``<service>_owner``."""
    return _derive(settings, f"database:{role}").hex()


def sealing_key(settings: Settings, name: str) -> bytes:
    """The service's key, of 32 bytes, for what it keeps encrypted."""
    return _derive(settings, f"sealing:{name}")
