"""`mindweave all` as a process beside: started, waited for, measured, stopped or killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import httpx
import psutil

STOP_PATIENCE = 60.0


class PlatformEnded(Exception):
    """The platform ended, or was not ready in time; the message ends with its last lines."""


class Platform:
    """One `mindweave all` in a process group of its own, its output in ``DATA/mindweave.log``.

    Attributes:
        address: of its REST API, such as ``http://127.0.0.1:8080``.
    """

    def __init__(
        self, data: Path, listen: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.data = data
        self.address = f"http://{listen}"
        self.log = data / "mindweave.log"
        self._listen = listen
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None

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
        command = [sys.executable, "-m", "fleet.cli", "all"]
        command += ["--data", str(self.data), "--listen", self._listen]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **self._environment},
            )

    def wait_until_ready(self, patience: float = 90.0) -> float:
        """Wait for 200 from ``/health/ready``; returns the seconds waited.

        Raises:
            PlatformEnded: it ended, or is not ready after ``patience`` seconds.
        """
        begun = time.monotonic()
        while time.monotonic() < begun + patience:
            if self.process.poll() is not None:
                raise PlatformEnded(f"code {self.process.returncode}:\n{self.last_lines()}")
            if self._is_ready():
                return time.monotonic() - begun
            time.sleep(0.05)
        raise PlatformEnded(f"not ready after {patience:.0f} s:\n{self.last_lines()}")

    def _is_ready(self) -> bool:
        try:
            answer = httpx.get(f"{self.address}/health/ready", timeout=2)
        except httpx.TransportError:
            return False
        return answer.status_code == httpx.codes.OK

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
        """Kill its whole process group at once (SIGKILL); its servers stay behind."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=STOP_PATIENCE)

    def processes(self) -> list[psutil.Process]:
        """Itself and every server that works in its data folder, as far as they run."""
        pids = {self.process.pid}
        for file in self.data.rglob("*.pid"):
            first = file.read_text().split()[:1]
            pids |= {int(pid) for pid in first if pid.isdecimal()}
        found = {pid: psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)}
        for process in list(found.values()):
            found |= {child.pid: child for child in process.children(recursive=True)}
        return list(found.values())

    def memory(self) -> tuple[int, int]:
        """Bytes of all processes: resident (shared pages counted in each), and PSS (once)."""
        maps = [p.memory_full_info() for p in self.processes() if p.is_running()]
        return sum(m.rss for m in maps), sum(m.pss for m in maps)
