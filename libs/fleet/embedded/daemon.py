"""A server process that outlives its parent and is found again by its pid file."""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path

import psutil

# What sun_path holds on Linux, less its final zero.
_LONGEST_SOCKET_PATH = 107
_POLL = 0.02
_STOP_SECONDS = 30.0
# Becomes the server when it is told that its pid is noted, and ends where its parent does before.
_SHELL = "/bin/sh"
_ONCE_NOTED = 'read -r _ && exec "$@" < /dev/null'
_TOLD_TO_SERVERS = frozenset(
    {
        "HOME",
        "JAVA_HOME",
        "JAVA_TOOL_OPTIONS",
        "JDK_JAVA_OPTIONS",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "PATH",
        "PYTHONPATH",
        "TMPDIR",
        "TZ",
        "USER",
    }
)


class DidNotStart(Exception):
    """A server did not come up; the message ends with the last lines of its log."""


class Daemon(ABC):
    """One server process in a folder of its own.

    A process that a killed parent left behind is adopted where it answers, and ended where it
    does not.
    """

    stop_signal = signal.SIGTERM

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self._pid_file = folder.parent / f"{name}.pid"
        self._log_file = folder.parent / f"{name}.log"
        self._child: int | None = None

    @abstractmethod
    def prepare(self) -> None:
        """Make the folder and the configuration."""

    @abstractmethod
    def command(self) -> list[str]: ...

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server takes calls now; never blocks for long."""

    @property
    def process(self) -> psutil.Process | None:
        """The running server; None where there is none."""
        try:
            process = psutil.Process(int(self._pid_file.read_text()))
            if _runs(process) and (process.pid == self._child or self._is_ours(process)):
                return process
        except (FileNotFoundError, ValueError, psutil.Error):
            pass
        return None

    def _is_ours(self, process: psutil.Process) -> bool:
        """Whether a process that another run started works in this folder."""
        return any(str(self.folder) in part for part in process.cmdline())

    @property
    def pid(self) -> int | None:
        process = self.process
        return process.pid if process else None

    def start(self, timeout: float = 120.0) -> None:
        """Adopt what runs and answers, else start; returns when the server answers.

        Raises:
            DidNotStart: the server ended, or does not answer after ``timeout`` seconds.
        """
        # A dead child that nobody has reaped would pass for a running server.
        self._reap()
        left_behind = self.process
        if left_behind is not None:
            if self._wait_until_it_answers(time.monotonic() + 5.0):
                return
            self._kill(left_behind)
        self.prepare()
        deadline = time.monotonic() + timeout
        # Children of a killed server hold its memory for a moment.
        last_try = time.monotonic() + min(10.0, timeout)
        while True:
            self._launch()
            if self._wait_until_it_answers(deadline):
                return
            if time.monotonic() > last_try:
                raise DidNotStart(f"{self.name} did not start:\n{self._last_lines()}")
            time.sleep(0.3)

    def _launch(self) -> None:
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        waiting, telling = os.pipe()
        try:
            self._child = os.posix_spawn(
                _SHELL,
                [_SHELL, "-c", _ONCE_NOTED, self.name, *self.command()],
                server_environment(),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, waiting, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(self._log_file), append, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                setsigdef=[signal.SIGPIPE],
            )
            unfinished = self._pid_file.with_suffix(".new")
            unfinished.write_text(str(self._child))
            unfinished.rename(self._pid_file)
            os.write(telling, b"\n")
        finally:
            os.close(waiting)
            os.close(telling)

    def _wait_until_it_answers(self, deadline: float) -> bool:
        while time.monotonic() < deadline:
            if self._ended():
                return False
            if self.answers():
                return True
            time.sleep(_POLL)
        return False

    def _ended(self) -> bool:
        # An own child's command line is empty while it becomes the server.
        started_here = self._child is not None
        self._reap()
        return self._child is None if started_here else self.process is None

    def _reap(self) -> None:
        """Take note where our own child has ended."""
        if self._child is None:
            return
        try:
            ended, _ = os.waitpid(self._child, os.WNOHANG)
        except ChildProcessError:
            ended = self._child
        if ended:
            self._child = None

    def stop(self) -> None:
        """End the server in order; kills it where it does not end in time."""
        process = self.process
        if process is not None:
            process.send_signal(self.stop_signal)
            if not self._ends(process, _STOP_SECONDS):
                self._kill(process)
        self._pid_file.unlink(missing_ok=True)

    def _kill(self, process: psutil.Process) -> None:
        family = [process, *process.children(recursive=True)]
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        for member in family:
            self._ends(member, _STOP_SECONDS)

    def _ends(self, process: psutil.Process, seconds: float) -> bool:
        """Whether it ends in time; one that nobody has reaped yet has ended too."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not _runs(process):
                self._reap()
                return True
            time.sleep(_POLL)
        return False

    def _last_lines(self) -> str:
        lines = self._log_file.read_text(errors="replace").splitlines()
        return "\n".join(lines[-10:])


def fits_a_socket(path: Path) -> bool:
    """Whether a Unix socket can have this path, and a list of hosts can name it."""
    return len(str(path).encode()) <= _LONGEST_SOCKET_PATH and "," not in str(path)


def server_environment() -> dict[str, str]:
    """What a program of others is told of this process's environment: none of our secrets."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _TOLD_TO_SERVERS or name.startswith("LC_")
    }


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
