"""Becomes the program that a file describes, as a process that does not outlive its parent.

Run by itself, without any package at hand: ``python -I -S tied.py FILE``.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path

PARENT = "FLEET_TIED_TO"
_PR_SET_PDEATHSIG = 1
_MOST_FILES = 65_536


def tie() -> None:
    """Ask the kernel to kill this process when its parent's thread ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before that was asked.
    if os.getppid() != int(os.environ.get(PARENT, os.getppid())):
        sys.exit("the parent has ended")
    # An exec keeps the pid: what this process starts is tied to it in turn.
    os.environ[PARENT] = str(os.getpid())


def allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def main(file: str) -> None:
    described = json.loads(Path(file).read_text())
    tie()
    allow_files()
    kept = {name: os.environ[name] for name in (PARENT,)}
    os.execve(described["command"][0], described["command"], described["environment"] | kept)


if __name__ == "__main__":
    main(sys.argv[1])
