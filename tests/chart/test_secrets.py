"""The Secret of in-cluster servers is made in the cluster, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.chart.rendering import CHART, environment

pytestmark = pytest.mark.unit

SECRETS = "/api/v1/namespaces/mindweave/secrets"


class Api(ThreadingHTTPServer):
    """As much of Kubernetes' API as the Job may use, which refuses a name that is there."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.made: list[dict[str, Any]] = []
        self.credentials: set[str] = set()


class Answers(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        self._answer(200, {"metadata": {"uid": "the-owner"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        there = any(m["metadata"]["name"] == body["metadata"]["name"] for m in self.server.made)
        if self.path != SECRETS or there:
            self._answer(409 if there else 404, {})
            return
        self.server.made.append(body)
        self._answer(201, body)

    def _answer(self, status: int, body: object) -> None:
        self.server.credentials.add(self.headers["Authorization"])
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing on the test's output."""


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        Thread(target=server.serve_forever).start()
        yield server
        server.shutdown()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("a token")
    (tmp_path / "namespace").write_text("mindweave")
    return tmp_path


def make(api: Api, account: Path) -> None:
    there = {
        "KUBERNETES_API": f"http://127.0.0.1:{api.server_port}",
        "SERVICE_ACCOUNT": str(account),
    }
    command = [sys.executable, str(CHART / "files" / "make_secret.py"), "mindweave"]
    subprocess.run(command, check=True, env=os.environ | there)


def test_it_has_every_key_that_is_asked_for_and_goes_with_the_release(
    chart: Any, api: Api, account: Path
) -> None:
    make(api, account)
    (secret,) = api.made
    assert api.credentials == {"Bearer a token"}
    assert secret["metadata"]["ownerReferences"][0]["uid"] == "the-owner"
    owner = secret["metadata"]["ownerReferences"][0]["name"]
    for name in ("trying out", "an upgrade", "redis streams behind an ingress"):
        assert owner in chart(name).of("ServiceAccount")
        for _, pod in chart(name).pods:
            for said in environment(pod).values():
                reference = said.get("valueFrom", {}).get("secretKeyRef")
                assert reference is None or reference["key"] in secret["stringData"]
    said = secret["stringData"]
    assert len(said["secret"]) >= 32
    assert said["postgresql-password"] in said["database-admin-url"]
    assert said["valkey-password"] in said["cache-url"]


def test_what_was_made_stays(api: Api, account: Path) -> None:
    make(api, account)
    before = json.dumps(api.made)
    make(api, account)
    assert json.dumps(api.made) == before


def test_the_job_may_do_no_more_than_that(chart: Any) -> None:
    found = chart("trying out")
    assert found.of("Role")["secrets"]["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
        {
            "apiGroups": [""],
            "resources": ["serviceaccounts"],
            "resourceNames": ["secrets-owner"],
            "verbs": ["get"],
        },
    ]
    assert chart("an upgrade").of("Role") == chart("production").of("Role") == {}
