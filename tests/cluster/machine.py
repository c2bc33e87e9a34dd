"""Where the cluster is from: KUBECONFIG's, or one that is made on this machine."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

import psutil

from tests.chart.rendering import ROOT
from tests.cluster.running import run

MAKER = ROOT.parent / "shared" / "cluster" / "cluster"


class Machine(ABC):
    """What kubectl cannot do to a cluster.

    Attributes:
        loses: whether it can lose a node.
    """

    loses = True

    @abstractmethod
    def load(self, images: Sequence[str]) -> None:
        """Put images of the Docker engine into the nodes."""

    @abstractmethod
    def folders(self, count: int) -> list[Path]:
        """Folders of the nodes for volumes; none where the cluster makes volumes itself."""

    @abstractmethod
    def lose(self, node: str) -> None:
        """End a node as if its power were gone."""


class Given(Machine):
    """Of ``KUBECONFIG``: commands of the environment do what only its maker knows.

    ``LOAD`` takes images (``kind load docker-image``), ``LOSE`` a node's name (``docker kill``).
    """

    def __init__(self) -> None:
        """Make it known.

        Raises:
            SystemExit: nobody has said that this cluster may be broken.
        """
        self.loses = "LOSE" in os.environ
        context = run("kubectl", "config", "current-context").strip()
        if os.environ.get("CLUSTER") != context:
            raise SystemExit(
                f"This drains and loses nodes of the cluster {context!r}, whoever has pods there: "
                f"say CLUSTER={context} where that may be."
            )

    def load(self, images: Sequence[str]) -> None:
        if "LOAD" in os.environ:
            run(*shlex.split(os.environ["LOAD"]), *images)

    def folders(self, count: int) -> list[Path]:
        return []

    def lose(self, node: str) -> None:
        run(*shlex.split(os.environ["LOSE"]), node)


class Made(Machine):
    """Two nodes on this machine."""

    def __init__(self) -> None:
        self._data = Path(mkdtemp(prefix="mindweave-volumes-"))

    def begin(self) -> None:
        """Make it; whatever of it was made is taken away by ``end``."""
        run(str(MAKER), "up", patience=3600)
        run(str(MAKER), "node2")
        for line in run(str(MAKER), "env").removeprefix("export ").split():
            name, _, value = line.partition("=")
            os.environ[name] = value.replace("$PATH", os.environ["PATH"])

    def load(self, images: Sequence[str]) -> None:
        run(str(MAKER), "load", *images)

    def folders(self, count: int) -> list[Path]:
        """Both nodes are this machine: a pod finds its volume on either."""
        made = [self._data / str(number) for number in range(count)]
        for folder in made:
            folder.mkdir()
            # Each server has a user of its own, who gets no share in a folder of the node.
            folder.chmod(0o777)
        return made

    def lose(self, node: str) -> None:
        """Its agents by SIGKILL, then what they had started: the second node's alone."""
        folder = Path(os.environ["KUBECONFIG"]).parents[1]
        agents = [int((folder / "pid" / name).read_text()) for name in ("kubelet2", "containerd2")]
        inside = [
            int(pid)
            for group in Path("/sys/fs/cgroup").glob("*/node2")
            for listed in group.rglob("cgroup.procs")
            for pid in listed.read_text().split()
        ]
        keepers = [p.pid for p in psutil.process_iter(["cmdline"]) if _keeps(p, folder)]
        for pid in (*agents, *inside, *keepers):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        run(str(MAKER), "down", "wipe")
        shutil.rmtree(self._data)


def _keeps(process: psutil.Process, folder: Path) -> bool:
    """Whether it is the parent of a container on the second node."""
    return str(folder / "containerd2" / "containerd.sock") in (process.info["cmdline"] or ())


@contextmanager
def machine() -> Iterator[Machine]:
    """KUBECONFIG's, or one that is made here and taken away.

    Raises:
        SystemExit: there is neither.
    """
    if os.environ.get("KUBECONFIG"):
        yield Given()
        return
    if not MAKER.exists() or os.getuid() != 0 or not shutil.which("apt-get"):
        raise SystemExit("KUBECONFIG names no cluster; see CONTRIBUTING.md")
    made = Made()
    try:
        made.begin()
        yield made
    finally:
        if not os.environ.get("KEEP"):
            made.end()
