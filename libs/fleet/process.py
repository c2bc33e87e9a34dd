"""`mindweave all` or `up` as a process beside: started, waited for, measured, stopped, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import httpx
import psutil

from fleet.embedded.folder import read_run
from fleet.layout.supervisor import Remote

Layout = Literal["all", "up"]

STOP_PATIENCE = 90.0


class PlatformEnded(Exception):
    """The platform ended, or was not ready in time; the message ends with its last lines."""


class Platform:
    """One `mindweave all` or `up` in a session of its own, its output in ``DATA/mindweave.log``.

    Args:
        data: its folder.
        listen: "host:port" of its REST API.
        environment: variables in addition to those of this process.
        layout: what is run.
        options: further ones of the command line, such as ``--broker``.

    Attributes:
        address: of its REST API, such as ``http://127.0.0.1:8080``.
    """

    def __init__(
        self,
        data: Path,
        listen: str,
        environment: Mapping[str, str] | None = None,
        *,
        layout: Layout = "all",
        options: Sequence[str] = (),
    ) -> None:
        self.data = data
        self.layout = layout
        self.address = f"http://{listen}"
        self.log = data / "mindweave.log"
        self._listen = listen
        self._environment = environment or {}
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        # One for all questions: a new one reads the list of authorities, which takes 30 ms.
        self._http = httpx.Client(timeout=2, limits=httpx.Limits(max_keepalive_connections=0))

    def __enter__(self) -> Platform:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process.

        Raises:
            PlatformEnded: it was not started.
        """
        if self._process is None:
            raise PlatformEnded("the platform was not started")
        return self._process

    def start(self) -> None:
        """Start it; returns at once."""
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = [sys.executable, "-m", "fleet", self.layout]
        command += ["--data", str(self.data), "--listen", self._listen, *self._options]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **self._environment},
            )

    def wait_until_ready(self, patience: float = 180.0) -> float:
        """Wait for 200 from ``/health/ready``; returns the seconds waited.

        Raises:
            PlatformEnded: it ended, or is not ready after ``patience`` seconds.
        """
        begun = time.monotonic()
        while time.monotonic() < begun + patience:
            if self.process.poll() is not None:
                raise PlatformEnded(f"code {self.process.returncode}:\n{self.last_lines()}")
            if self._answers(self.address):
                return time.monotonic() - begun
            time.sleep(0.05)
        raise PlatformEnded(f"not ready after {patience:.0f} s:\n{self.last_lines()}")

    def _answers(self, address: str) -> bool:
        """Whether it says that it is ready."""
        try:
            return self._http.get(f"{address}/health/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def run(self) -> dict[str, Any]:
        """What it left in ``run.json``.

        Raises:
            PlatformEnded: there is none.
        """
        facts = read_run(self.data)
        if facts is None:
            raise PlatformEnded(f"there is no run.json:\n{self.last_lines()}")
        return facts

    def pid(self, name: str) -> int:
        """Of a process or server by its name, such as ``project-1`` or ``postgres``.

        Raises:
            LookupError: there is none of that name, or it does not run now.
        """
        facts = self.run()
        for process in facts["processes"]:
            if process["name"] == name and "pid" in process:
                return int(process["pid"])
        if name in facts["servers"]:
            return int((self.data / f"{name}.pid").read_text())
        pid = int(self._supervisor().process(name)["pid"])
        if not pid:
            raise LookupError(f"{name} does not run")
        return pid

    def hold(self, name: str) -> None:
        """End a process in order, and do not start it again until it is released."""
        self._supervisor().stop(name)

    def release(self, name: str) -> None:
        """Start a held process; returns at once."""
        self._supervisor().start(name)

    def wait_until(self, name: str, *, ready: bool = True, patience: float = 60.0) -> None:
        """Wait until a process says that it is ready, or no longer does.

        Raises:
            PlatformEnded: that does not come within ``patience`` seconds.
        """
        (address,) = (p["metrics"] for p in self.run()["processes"] if p["name"] == name)
        deadline = time.monotonic() + patience
        while self._answers(f"http://{address}") is not ready:
            if time.monotonic() > deadline:
                raise PlatformEnded(f"{name} does not get {'' if ready else 'un'}ready")
            time.sleep(0.05)

    def _supervisor(self) -> Remote:
        return Remote(self.run()["supervisor"])

    def last_lines(self, count: int = 20) -> str:
        """The end of its output."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-count:])

    def stop(self) -> int:
        """Stop it in order; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=STOP_PATIENCE)

    def kill(self) -> None:
        """Kill it at once (SIGKILL), and with it all that hangs on it; its servers stay behind."""
        hanging = self._hanging()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=STOP_PATIENCE)
        psutil.wait_procs(hanging, timeout=STOP_PATIENCE)

    def kill_everything(self) -> None:
        """Kill it and its servers at once (SIGKILL)."""
        for process in self.processes():
            # One ends with another.
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(timeout=STOP_PATIENCE)

    def _hanging(self) -> list[psutil.Process]:
        """What it started, without the servers, which outlive it."""
        servers, found = self._server_pids(), []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            # Servers end some of their processes whenever they like.
            with suppress(psutil.NoSuchProcess):
                if not servers & {child.pid, *(parent.pid for parent in child.parents())}:
                    found.append(child)
        return found

    def processes(self) -> list[psutil.Process]:
        """Itself and every server that works in its data folder, as far as they run."""
        pids = {self.process.pid} | self._server_pids()
        found: dict[int, psutil.Process] = {}
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                family = [process, *process.children(recursive=True)]
                found |= {member.pid: member for member in family}
        return list(found.values())

    def _server_pids(self) -> set[int]:
        found = set()
        for file in self.data.glob("*.pid"):
            first = file.read_text().split()[:1]
            found |= {int(pid) for pid in first if pid.isdecimal()}
        return found

    def memory(self) -> tuple[int, int]:
        """Bytes of all processes: resident (shared pages counted in each), and PSS (once)."""
        maps = [p.memory_full_info() for p in self.processes() if p.is_running()]
        return sum(m.rss for m in maps), sum(m.pss for m in maps)
