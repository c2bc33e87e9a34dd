"""Make the stubs and the descriptor set from the protos.

``python proto/generate.py`` writes them into ``libs``; ``--check`` fails where what stands there
differs from what the protos make. protovalidate's own proto comes from its Go module.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import google.api
import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "proto"
GATHERED = ROOT / ".cache" / "proto"
PROTOVALIDATE = "github.com/bufbuild/protovalidate@v1.2.2"
DESCRIPTORS = Path("mindweave") / "descriptors.binpb"


def gather() -> None:
    """Copy the protos of others to ``.cache/proto``, from the packages that publish them."""
    if (GATHERED / "buf/validate/validate.proto").exists():
        return
    answer = subprocess.run(
        ["go", "mod", "download", "-json", PROTOVALIDATE],
        check=True,
        capture_output=True,
        text=True,
    )
    module = Path(json.loads(answer.stdout)["Dir"]) / "proto" / "protovalidate"
    site = Path(next(iter(google.api.__path__)))
    wanted = {
        "google/api": [site / n for n in ("annotations.proto", "http.proto", "httpbody.proto")],
        "buf/validate": [module / "buf/validate/validate.proto"],
    }
    for folder, files in wanted.items():
        target = GATHERED / folder
        target.mkdir(parents=True, exist_ok=True)
        for file in files:
            (target / file.name).write_bytes(file.read_bytes())


def generate(out: Path) -> None:
    """Write Python stubs, their types and one descriptor set below ``out``.

    Raises:
        SystemExit: protoc refused a file.
    """
    scripts = sysconfig.get_path("scripts")
    os.environ["PATH"] = scripts + os.pathsep + os.environ["PATH"]
    ours = sorted(str(p.relative_to(SOURCES)) for p in SOURCES.rglob("*.proto"))
    includes = [
        f"-I{SOURCES}",
        f"-I{GATHERED}",
        f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
    ]
    out.mkdir(parents=True, exist_ok=True)
    steps = [
        [f"--python_out={out}", f"--mypy_out=quiet:{out}", *ours, "buf/validate/validate.proto"],
        [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet,only_async:{out}"]
        + [f for f in ours if "\nservice " in (SOURCES / f).read_text()],
        [
            f"--descriptor_set_out={out / DESCRIPTORS}",
            "--include_imports",
            "--include_source_info",
            *ours,
        ],
    ]
    (out / DESCRIPTORS).parent.mkdir(parents=True, exist_ok=True)
    for step in steps:
        if protoc.main(["protoc", *includes, *step]) != 0:
            raise SystemExit(1)
    for folder in {p.parent for p in out.rglob("*_pb2.py")}:
        inner = folder
        while inner != out:
            (inner / "__init__.py").touch()
            inner = inner.parent


def differences(made: Path, kept: Path) -> list[str]:
    """Paths that differ between what was made and what is kept in ``libs``."""
    found = []
    names = {p.relative_to(made) for p in made.rglob("*") if p.is_file()}
    for top in ("mindweave", "buf"):
        names |= {
            p.relative_to(kept)
            for p in (kept / top).rglob("*")
            if p.is_file() and "__pycache__" not in p.parts
        }
    for name in sorted(names):
        ours, theirs = made / name, kept / name
        if not (ours.exists() and theirs.exists() and filecmp.cmp(ours, theirs, shallow=False)):
            found.append(str(name))
    return found


def main() -> None:
    gather()
    libs = ROOT / "libs"
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        generate(made)
        if "--check" in sys.argv:
            stale = differences(made, libs)
            if stale:
                print("stubs are not what the protos generate; run `make proto`:", *stale, sep="\n")
                raise SystemExit(1)
            return
        for top in ("mindweave", "buf"):
            shutil.rmtree(libs / top, ignore_errors=True)
            shutil.copytree(made / top, libs / top)


if __name__ == "__main__":
    main()
