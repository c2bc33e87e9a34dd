"""Which driver of the bus runs, by the settings."""

from __future__ import annotations

from common.events.bus import Bus
from common.settings import Settings
from common.telemetry import Telemetry


def bus_for(settings: Settings, *, telemetry: Telemetry) -> Bus:
    """A bus on the broker that the settings name: Kafka where they name one, else Redis.

    Raises:
        SettingsError: they name none.
    """
    # Each driver's client is slow to import, and only one is needed.
    if settings.kafka_brokers is None:
        from common.events.redis_streams import RedisStreamsBus

        return RedisStreamsBus(
            settings.broker_url(), telemetry=telemetry, max_records=settings.stream_max_records
        )
    from common.events.kafka import Access, KafkaBus

    ca_file = settings.kafka_ca_file
    return KafkaBus(
        Access(
            settings.kafka_brokers,
            settings.kafka_security_protocol,
            settings.kafka_sasl_mechanism,
            settings.kafka_username,
            settings.kafka_password,
            str(ca_file) if ca_file is not None else None,
        ),
        telemetry=telemetry,
        instance=settings.instance,
        replication=settings.kafka_replication,
    )
