"""Small disks that can be filled: a tmpfs of its own for each."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BALLAST = "ballast"
_PIECE = 1024 * 1024
_TRIES = 20


class Disk:
    """A folder that is a file system of its own where mounts are permitted, else a folder alone."""

    def __init__(self, folder: Path, *, own: bool) -> None:
        self.folder = folder
        self.own = own

    def fill(self) -> str:
        """Shrink it to what is in use and take what is left; returns what one more write says.

        Raises:
            OSError: it did not shrink, or a write failed otherwise than for space.
        """
        for _ in range(_TRIES):
            if self._resize(f"{(self._used + 2 * _PIECE) // 1024}k"):
                return self._take_what_is_left()
        raise OSError(errno.EBUSY, f"{self.folder} grows faster than it shrinks")

    def empty(self) -> None:
        """Give the space back."""
        self._resize("50%")
        (self.folder / _BALLAST).unlink(missing_ok=True)

    @property
    def free(self) -> int:
        """Bytes that are left."""
        return shutil.disk_usage(self.folder).free

    @property
    def _used(self) -> int:
        return shutil.disk_usage(self.folder).used

    def _resize(self, size: str) -> bool:
        return _mount("-o", f"remount,size={size}", str(self.folder))

    def _take_what_is_left(self) -> str:
        said = ""
        with (self.folder / _BALLAST).open("ab", buffering=0) as file:
            size = _PIECE
            while size:
                try:
                    file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    said = os.strerror(error.errno)
                    size //= 2
        return said


@contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    """A tmpfs at ``folder``, which is made; where it may not be mounted, the folder as it is."""
    folder.mkdir(parents=True)
    own = os.geteuid() == 0 and _mount("-t", "tmpfs", "-o", "size=50%", "tmpfs", str(folder))
    try:
        yield Disk(folder, own=own)
    finally:
        if own:
            # Lazily: a process that is about to end may still have files there.
            subprocess.run([_program("umount"), "--lazy", str(folder)], check=True)


def _mount(*arguments: str) -> bool:
    done = subprocess.run([_program("mount"), *arguments], check=False, capture_output=True)
    return done.returncode == 0


def _program(name: str) -> str:
    return shutil.which(name) or name
