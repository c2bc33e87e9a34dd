"""The images of the services, and those of the servers under the names that the chart has."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from fleet.embedded.kafka import libraries
from fleet.embedded.postgres import binaries
from fleet.embedded.valkey import program as valkey
from fleet.layout.up import envoy_program
from tests.chart.rendering import CHART
from tests.cluster.running import run

HERE = Path(__file__).resolve().parent
# Debian's client has BuildKit; another one on the PATH may not.
DOCKER = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"
METRICS_SERVER = "sigs.k8s.io/metrics-server/cmd/metrics-server@v0.9.0"
# What Kafka's classes ask of Java.
MODULES = "java.se,jdk.unsupported,jdk.management,jdk.crypto.ec,jdk.zipfs"


def values() -> dict[str, Any]:
    """The chart's own."""
    return dict(yaml.safe_load((CHART / "values.yaml").read_text()))


def services() -> list[str]:
    """Of the chart, by the names that images have."""
    return sorted(name.replace("_", "-") for name in values()["services"])


def names(tag: str) -> list[str]:
    """Of the images of the services."""
    return [f"mindweave/{service}:{tag}" for service in services()]


def server_images() -> dict[str, str]:
    """Names of images, by the server's."""
    servers = values()["servers"]
    found = {name: servers[name]["image"] for name in ("postgresql", "valkey", "kafka")}
    return found | {"envoy": values()["edge"]["image"]}


def build(tag: str) -> list[str]:
    """Build the services' images; returns their names."""
    run("make", "images", f"TAG={tag}", f"DOCKER={DOCKER}")
    return names(tag)


def build_servers() -> list[str]:
    """Make those that this Docker engine does not have from packages; returns all names.

    Other machines pull them; here they have what the chart asks of them and no more.
    """
    wanted = server_images()
    missing = [name for name in wanted if not exists(wanted[name])]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: _build_server(name, wanted[name]), missing))
    return list(wanted.values())


def exists(image: str) -> bool:
    asked = subprocess.run([DOCKER, "image", "inspect", image], capture_output=True, check=False)
    return asked.returncode == 0


def named_anew(image: str, tag: str, other: str) -> str:
    """The same image under another tag; returns its name."""
    name = f"{image.removesuffix(tag)}{other}"
    run(DOCKER, "tag", image, name)
    return name


def derived(image: str, base: str, *, add: dict[str, str] | None = None) -> str:
    """Build an image that is another one with further files, by their paths; returns its name."""
    with TemporaryDirectory(prefix="mindweave-image-") as name:
        folder = Path(name)
        lines = [f"FROM {base}"]
        for number, (path, text) in enumerate((add or {}).items()):
            (folder / str(number)).write_text(text)
            lines.append(f"COPY --chown=0:0 --chmod=644 {number} {path}")
        (folder / "Dockerfile").write_text("\n".join(lines) + "\n")
        run(DOCKER, "build", "--quiet", "--tag", image, name, DOCKER_BUILDKIT="1")
    return image


def build_metrics_server() -> str:
    """By Go, for clusters that have none; returns its name."""
    image = "mindweave-test/metrics-server:1"
    if not exists(image):
        with TemporaryDirectory(prefix="mindweave-image-") as folder:
            go = {"GOBIN": folder, "CGO_ENABLED": "0"}
            run("go", "install", "-trimpath", "-ldflags=-s -w", METRICS_SERVER, **go)
            lines = ("FROM scratch", "COPY metrics-server /", 'ENTRYPOINT ["/metrics-server"]')
            (Path(folder) / "Dockerfile").write_text("\n".join(lines) + "\n")
            run(DOCKER, "build", "--quiet", "--tag", image, folder, DOCKER_BUILDKIT="1")
    return image


def _build_server(name: str, image: str) -> None:
    with TemporaryDirectory(prefix="mindweave-image-") as folder:
        context = Path(folder) / name
        shutil.copytree(HERE / "servers" / name, context)
        _PREPARED[name](context)
        run(DOCKER, "build", "--quiet", "--tag", image, str(context), DOCKER_BUILDKIT="1")


def _postgresql(context: Path) -> None:
    package = binaries().parents[1]
    for found in (package, *_beside(package)):
        shutil.copytree(found, context / "packages" / found.name)


def _beside(package: Path) -> Iterator[Path]:
    """The libraries that a wheel brings along."""
    return package.parent.glob(f"{package.name}.libs")


def _valkey(context: Path) -> None:
    shutil.copy(valkey(), context / "valkey-server")


def _envoy(context: Path) -> None:
    shutil.copy(envoy_program(), context / "envoy")


def _kafka(context: Path) -> None:
    shutil.copytree(libraries(), context / "libs")
    run("jlink", "--add-modules", MODULES, "--strip-debug", "--output", str(context / "jre"))


_PREPARED: dict[str, Callable[[Path], None]] = {
    "postgresql": _postgresql,
    "valkey": _valkey,
    "envoy": _envoy,
    "kafka": _kafka,
}
