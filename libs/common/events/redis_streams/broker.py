"""The connections to the server, and what its failures mean."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import redis.exceptions as failures
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from common.certificates import refusal
from common.events.bus import BusFull, BusUnavailable
from common.events.redis_streams.entries import Entries

CONNECT_TIMEOUT = 2.0
ANSWER_TIMEOUT = 5.0
# Seconds that one blocking read may wait at the server.
BLOCK = 5.0
_CONNECTIONS = 32

_logger = logging.getLogger(__name__)


class Broker:
    """One server: short commands share a few connections, each blocking read has its own."""

    def __init__(self, url: str, name: str) -> None:
        """Args: ``name`` shows in the server's list of clients."""
        parts = urlsplit(url)
        self.address = f"{parts.hostname or parts.path}:{parts.port or 6379}"
        options: dict[str, Any] = {
            "protocol": 2,
            # Its own timeout loses cancellations (asyncio.wait_for of Python 3.11).
            "socket_timeout": None,
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
            "client_name": f"mindweave-{name}",
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": CONNECT_TIMEOUT,
        }
        self._commands: Any = Redis.from_pool(
            BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=ANSWER_TIMEOUT,
                **options,
            )
        )
        self._readers: Any = Redis.from_pool(ConnectionPool.from_url(url, **options))
        clients: list[Any] = [self._commands, self._readers]
        for client in clients:
            client.set_response_callback("XREAD", _entries)

    async def close(self) -> None:
        await self._commands.aclose()
        await self._readers.aclose()

    async def command(self, *words: str | bytes | int) -> Any:
        """Run one command.

        Raises:
            BusUnavailable: the server is down, silent, or cannot keep what it is given.
            BusFull: it has no memory left for records.
        """
        async with self._reaching():
            return await self._commands.execute_command(*words)

    async def pipeline(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> list[Any]:
        """Run commands in one round trip; others may come in between."""
        async with self._reaching():
            pipe = self._commands.pipeline(transaction=False)
            for words in commands:
                pipe.execute_command(*words)
            answers: list[Any] = await pipe.execute()
        return answers

    async def script(
        self, text: str, keys: Sequence[str], arguments: Sequence[str | bytes | int]
    ) -> Any:
        """Run a script of ``scripts``."""
        async with self._reaching():
            return await self._commands.register_script(text)(keys=keys, args=arguments)

    async def read(
        self, positions: Sequence[tuple[str, str]], count: int, wait: float
    ) -> list[tuple[bytes, Entries]]:
        """Entries after the position of each stream, waiting for the first one at most ``BLOCK``.

        Args:
            positions: pairs of stream and id.
            count: at most so many entries from each stream.
            wait: seconds; 0 does not wait.
        """
        words: list[str | int] = ["XREAD", "COUNT", count]
        if wait > 0:
            wait = min(wait, BLOCK)
            words += ["BLOCK", max(1, int(wait * 1000))]
        words += ["STREAMS", *(s for s, _ in positions), *(i for _, i in positions)]
        client = self._readers if wait > 0 else self._commands
        async with self._reaching(wait):
            found: list[tuple[bytes, Entries]] = await client.execute_command(*words)
        return found

    @asynccontextmanager
    async def _reaching(self, wait: float = 0.0) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT + wait):
                yield
        except failures.OutOfMemoryError as error:
            raise BusFull("The event broker has no memory left.") from error
        except (failures.ConnectionError, failures.TimeoutError, OSError) as error:
            if (why := refusal(error, "ssl_ca_certs in REDIS_URL")) is not None:
                _logger.error(
                    "the certificate of the broker at %s is refused: %s", self.address, why
                )
            else:
                _logger.info("the broker at %s does not answer: %s", self.address, error)
            raise BusUnavailable from error
        except failures.ReadOnlyError as error:
            raise BusUnavailable from error
        except failures.ResponseError as error:
            if str(error).startswith(
                ("MISCONF", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "BUSY ")
            ):
                _logger.warning("the broker at %s takes nothing: %s", self.address, error)
                raise BusUnavailable from error
            raise


def _entries(answer: Any, **_: Any) -> list[tuple[bytes, Entries]]:
    return answer or []
