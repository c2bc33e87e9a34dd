"""Makes the root of every image: ``python root.py ROOT``, in a build on Debian.

It has Python without what no service imports, the libraries that it is linked to, certificates, and
nothing else that could be run. ``python root.py ROOT FOLDER`` fails where a module in FOLDER is
linked to a library that is not there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

PYTHON = Path(sys.base_prefix)
LIBRARY = PYTHON / "lib" / f"python3.{sys.version_info.minor}"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# What wheels take from the system besides: of C++, of threads that end, and by the names of old.
FURTHER = ("libstdc++.so.6", "libgcc_s.so.1", "libdl.so.2", "libpthread.so.0", "librt.so.1")
NEEDLESS = shutil.ignore_patterns(
    *("__pycache__", "config-3*", "ensurepip", "idlelib", "lib2to3", "pydoc_data"),
    *("site-packages", "test", "tests", "tkinter", "turtledemo", "_test*.so", "_tkinter*.so"),
)
USER = 10001
_LINKED = re.compile(r"(?:=> )?(/\S+) \(0x")


def linked(files: Iterable[Path]) -> set[Path]:
    """The system's libraries that programs and modules are linked to."""
    command = ["ldd", *map(str, files)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = {Path(place) for place in _LINKED.findall(said)}
    return {place.parent.resolve() / place.name for place in found}


def make(root: Path) -> None:
    for folder in ("usr/lib", "usr/lib64", "etc/ssl/certs", "tmp", f".{PYTHON}/bin"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in ("lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "tmp").chmod(0o1777)
    program = PYTHON / "bin" / LIBRARY.name
    copy(root, program)
    for name in ("python", "python3"):
        (root / f".{program.parent}" / name).symlink_to(program.name)
    shutil.copytree(LIBRARY, root / f".{LIBRARY}", ignore=NEEDLESS)
    modules = [*(root / f".{LIBRARY}" / "lib-dynload").glob("*.so")]
    for library in linked([program, *modules]) | further():
        copy(root, library)
    copy(root, CERTIFICATES)
    etc = root / "etc"
    (etc / "passwd").write_text(f"mindweave:x:{USER}:{USER}::/tmp:/nowhere\n")
    (etc / "group").write_text(f"mindweave:x:{USER}:\n")
    (etc / "nsswitch.conf").write_text("hosts: files dns\n")
    folders = {f"{library.parent}\n" for library in linked([program, *modules]) | further()}
    (etc / "ld.so.conf").write_text("".join(sorted(folders | {f"{PYTHON}/lib\n"})))
    subprocess.run(["ldconfig", "-r", str(root)], check=True)


def further() -> set[Path]:
    return {next(Path("/usr/lib").glob(f"*/{name}")) for name in FURTHER}


def copy(root: Path, place: Path) -> None:
    target = root / f".{place}"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(place, target)


def check(root: Path, folder: Path) -> None:
    """Say which libraries of the system are missing.

    Raises:
        SystemExit: there are some.
    """
    wanted = linked(folder.rglob("*.so*"))
    missing = sorted(
        str(place)
        for place in wanted
        if not place.is_relative_to(folder) and not (root / f".{place}").exists()
    )
    if missing:
        sys.exit(f"{root} lacks {', '.join(missing)}")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        make(Path(sys.argv[1]))
    else:
        check(Path(sys.argv[1]), Path(sys.argv[2]))
