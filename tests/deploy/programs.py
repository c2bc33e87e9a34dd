"""Prometheus and promtool: those of this machine, else what packages bring, kept in .cache."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "prometheus"
NAMES = ("prometheus", "promtool")
MODULE = "github.com/prometheus/prometheus@v0.305.0"


def program(name: str) -> str:
    """The path of one of ``NAMES``.

    Raises:
        RuntimeError: it is not here, and neither Debian's package nor Go's module brings it.
    """
    here = shutil.which(name)
    if here is not None:
        return here
    if not (FOLDER / name).exists():
        FOLDER.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER.parent) as folder:
            _bring(Path(folder))
            shutil.rmtree(FOLDER, ignore_errors=True)
            Path(folder, "bin").rename(FOLDER)
    return str(FOLDER / name)


def _bring(folder: Path) -> None:
    """Put the programs into ``folder/bin``, without installing anything."""
    (folder / "bin").mkdir()
    if shutil.which("apt-get") and shutil.which("dpkg"):
        download = ["apt-get", "download", "--quiet", "prometheus"]
        if subprocess.run(download, cwd=folder, capture_output=True, check=False).returncode:
            # The list of packages is missing, or older than what the archive has.
            _run("apt-get", "update", "--quiet")
            _run(*download, cwd=folder)
        (package,) = folder.glob("prometheus_*.deb")
        _run("dpkg", "-x", str(package), str(folder / "debian"))
        for name in NAMES:
            (folder / "debian/usr/bin" / name).rename(folder / "bin" / name)
    elif shutil.which("go"):
        # Its module replaces others, which `go install` refuses.
        found = json.loads(_run("go", "mod", "download", "-json", MODULE))["Dir"]
        commands = [f"./cmd/{name}" for name in NAMES]
        _run("go", "build", "-C", found, "-o", f"{folder / 'bin'}/", *commands)
    else:
        raise RuntimeError("install prometheus and promtool, or Go, which builds them")


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout
