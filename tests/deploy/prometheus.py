"""A real Prometheus with our rules, which scrapes a platform."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from fleet.ports import free_port
from tests.deploy.programs import program
from tests.deploy.written import RULES


class Prometheus:
    """Answers questions in PromQL."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def values(self, query: str) -> list[float]:
        """The numbers that a query comes to now; those that are none are left out.

        Raises:
            AssertionError: Prometheus refuses the query.
        """
        answer = self._http.post("/api/v1/query", data={"query": query})
        assert answer.status_code == httpx.codes.OK, f"{query}: {answer.text}"
        found = json.loads(answer.text)["data"]
        samples = [found] if found["resultType"] == "scalar" else found["result"]
        numbers = [float(s["result" if "result" in s else "value"][1]) for s in samples]
        return [number for number in numbers if number == number]

    def rules(self) -> list[dict[str, Any]]:
        """Every rule as it was evaluated last."""
        groups = self._http.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        return list(self._http.get("/api/v1/targets").json()["data"]["activeTargets"])


@contextmanager
def prometheus(targets: Sequence[str], folder: Path) -> Iterator[Prometheus]:
    """One that scrapes ``targets`` ("host:port") every second, while the block runs."""
    config = folder / "prometheus.yml"
    # As Prometheus' operator names targets, after the Service that leads to them.
    named = {"targets": list(targets), "labels": {"service": "of-kubernetes", "pod": "one"}}
    job = {"job_name": "mindweave", "honor_labels": True, "static_configs": [named]}
    every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config.write_text(
        yaml.safe_dump(
            {"global": every, "rule_files": [str(p) for p in RULES], "scrape_configs": [job]}
        )
    )
    listen = f"127.0.0.1:{free_port()}"
    command = [program("prometheus"), f"--config.file={config}", f"--web.listen-address={listen}"]
    command += [f"--storage.tsdb.path={folder / 'tsdb'}", "--log.level=warn"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            with httpx.Client(base_url=f"http://{listen}", timeout=30) as http:
                yield Prometheus(http)
        finally:
            process.terminate()
            process.wait(timeout=30)
