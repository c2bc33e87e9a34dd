"""The bus on Redis or Valkey: a stream for each partition."""

from common.events.redis_streams.bus import RedisStreamsBus

__all__ = ["RedisStreamsBus"]
