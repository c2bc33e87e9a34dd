"""The bus on Apache Kafka 4 (3.1 or newer), by aiokafka's connections, producer and codecs."""

from common.events.kafka.bus import KafkaBus
from common.events.kafka.cluster import Access

__all__ = ["Access", "KafkaBus"]
