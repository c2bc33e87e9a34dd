"""supervisord, which keeps the processes: its configuration, and what it is told and asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError
from xmlrpc.client import Error as RemoteError
from xmlrpc.client import Fault, ServerProxy

import psutil

from fleet.embedded.daemon import server_environment
from fleet.layout import tied
from fleet.ports import HOST

USER = "mindweave"
EDGE, SERVICES, PROXY = "edge", "services", "proxy"
# Those of the highest number are stopped first.
_PRIORITIES = {EDGE: 900, SERVICES: 500, PROXY: 100}
# A process that ends sooner is started again later and later, any other one at once.
_STAYED_SECONDS = 15
_LOG_BYTES = "20MB"
_ENDED = ("STOPPED", "FATAL")
_AGAIN = 0.1
# supervisor.xmlrpc.Faults, which is not installed wherever one is asked.
_ALREADY_STARTED, _NOT_RUNNING = 60, 70


@dataclass(frozen=True)
class Program:
    """What supervisord keeps running.

    Attributes:
        name: of the process.
        group: EDGE, SERVICES or PROXY.
        command: whose first part is a path.
        environment: all of it.
        autostart: start with supervisord itself.
    """

    name: str
    group: str
    command: Sequence[str]
    environment: Mapping[str, str]
    autostart: bool = True


@dataclass(frozen=True)
class Place:
    """Where supervisord works: its files' folder, the logs, and its loopback port."""

    folder: Path
    logs: Path
    port: int
    password: str

    @property
    def url(self) -> str:
        return f"http://{USER}:{self.password}@{HOST}:{self.port}/RPC2"


def write_configuration(place: Place, programs: Sequence[Program], stop_seconds: float) -> Path:
    """Write supervisord's file and one for each program; the first one's path."""
    for program in programs:
        described = {"command": list(program.command), "environment": dict(program.environment)}
        _write(place.folder / f"{program.name}.json", json.dumps(described, indent=2))
    file = place.folder / "supervisord.conf"
    _write(file, configuration(place, programs, stop_seconds))
    return file


def configuration(place: Place, programs: Sequence[Program], stop_seconds: float) -> str:
    """Supervisord's file; what is secret stands in the programs' own files."""
    sections: dict[str, dict[str, object]] = {
        "supervisord": {
            "nodaemon": "true",
            "silent": "true",
            "logfile": _escaped(place.logs / "supervisor.log"),
            "logfile_maxbytes": _LOG_BYTES,
            "logfile_backups": 1,
            "pidfile": _escaped(place.folder / "supervisord.pid"),
            "childlogdir": _escaped(place.logs),
            "umask": "077",
        },
        "inet_http_server": {
            "port": f"{HOST}:{place.port}",
            "username": USER,
            "password": place.password,
        },
        "rpcinterface:supervisor": {
            "supervisor.rpcinterface_factory": ("supervisor.rpcinterface:make_main_rpcinterface"),
        },
    }
    for program in programs:
        sections[f"program:{program.name}"] = _program(place, program, stop_seconds)
    for group, priority in _PRIORITIES.items():
        members = [program.name for program in programs if program.group == group]
        if members:
            sections[f"group:{group}"] = {"programs": ",".join(members), "priority": priority}
    return "\n".join(
        "\n".join([f"[{name}]", *(f"{key}={value}" for key, value in options.items()), ""])
        for name, options in sections.items()
    )


def _program(place: Place, program: Program, stop_seconds: float) -> dict[str, object]:
    launcher = [sys.executable, "-I", "-S", tied.__file__, place.folder / f"{program.name}.json"]
    return {
        "command": " ".join(_quoted(part) for part in launcher),
        "autostart": str(program.autostart).lower(),
        "autorestart": "true",
        "startsecs": _STAYED_SECONDS,
        "startretries": 1_000_000,
        "stopsignal": "TERM",
        "stopwaitsecs": round(stop_seconds),
        "redirect_stderr": "true",
        "stdout_logfile": _escaped(place.logs / f"{program.name}.log"),
        "stdout_logfile_maxbytes": _LOG_BYTES,
        "stdout_logfile_backups": 1,
    }


def _quoted(part: object) -> str:
    text = str(part).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_escaped(text)}"'


def _escaped(text: object) -> str:
    return str(text).replace("%", "%%")


def _write(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(text)


class Supervisor:
    """A running supervisord, which this process started as its child.

    Started by the thread that lives longest: it is killed when that one ends.
    """

    def __init__(self, place: Place, configuration: Path) -> None:
        self.remote = Remote(place.url)
        self._place = place
        self._configuration = configuration
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def _output(self) -> Path:
        return self._place.logs / "supervisor.out"

    def last_lines(self) -> str:
        """The end of what it said beside its log."""
        return "\n".join(self._output.read_text(errors="replace").splitlines()[-10:])

    def start(self) -> None:
        """Start it; returns at once."""
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._configuration)]
        described = self._place.folder / "supervisord.json"
        environment = server_environment()
        _write(described, json.dumps({"command": command, "environment": environment}))
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", tied.__file__, str(described)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**environment, tied.PARENT: str(os.getpid())},
            )

    def stop(self, patience: float) -> None:
        """End it and all that it keeps, in order; kills what does not end in time."""
        if self._process is None:
            return
        if self._process.poll() is None:
            kept = psutil.Process(self._process.pid).children(recursive=True)
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            psutil.wait_procs(kept, timeout=patience)
        self._process = None


class Remote:
    """What a supervisord at ``url`` is asked and told, by a process's name.

    Each method raises OSError where it does not answer, or ends while it does.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def processes(self) -> list[dict[str, Any]]:
        """Of each process: name, group, pid, statename, exitstatus, description and more."""
        found: list[dict[str, Any]] = self._call("getAllProcessInfo")
        return found

    def process(self, name: str) -> dict[str, Any]:
        """One of them.

        Raises:
            LookupError: there is none of that name.
        """
        for process in self.processes():
            if process["name"] == name:
                return process
        raise LookupError(f"there is no process {name}")

    def start(self, name: str) -> None:
        """Start it, where it does not run; returns at once."""
        try:
            self._call("startProcess", self._full_name(name), False)
        except Fault as fault:
            if fault.faultCode != _ALREADY_STARTED:
                raise

    def stop(self, name: str) -> None:
        """End it, to stay so until it is started; returns when it has ended."""
        while self.process(name)["statename"] not in _ENDED:
            try:
                self._call("stopProcess", self._full_name(name), True)
            except Fault as fault:
                # It has just ended by itself, and is about to be started again.
                if fault.faultCode != _NOT_RUNNING:
                    raise
                time.sleep(_AGAIN)

    def _full_name(self, name: str) -> str:
        return f"{self.process(name)['group']}:{name}"

    def _call(self, method: str, *arguments: Any) -> Any:
        # A proxy keeps its connection until it is closed, and is one thread's.
        try:
            with ServerProxy(self._url) as proxy:
                return getattr(proxy.supervisor, method)(*arguments)
        except Fault:
            raise
        except (RemoteError, HTTPException, ExpatError) as error:
            raise ConnectionError(f"the supervisor does not answer: {error!r}") from error
