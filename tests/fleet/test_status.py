from __future__ import annotations

import io
from pathlib import Path

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from common.service import Service
from fleet.cli import app
from fleet.embedded import DataFolder
from fleet.services import SERVICES, load
from fleet.status import NotRunning, ProcessStatus, of_address, of_folder, show

pytestmark = pytest.mark.unit


def part(name: str, *, ready: bool = True, lag: int | None = None) -> dict[str, object]:
    return {"name": name, "ready": ready, "detail": "" if ready else "no answer", "lag": lag}


def service(name: str, *parts: dict[str, object]) -> dict[str, object]:
    ready = all(p["ready"] for p in parts)
    return {"name": name, "ready": ready, "version": "1.2.3", "parts": list(parts)}


def shown(*services: dict[str, object]) -> tuple[bool, str]:
    out = io.StringIO()
    whole = show([ProcessStatus("one", services)], Console(file=out, width=120))
    return whole, out.getvalue()


def test_each_service_and_part_is_shown_with_version_and_lag() -> None:
    whole, table = shown(service("team", part("database"), part("outbox", lag=7)))

    assert whole
    for text in ("team", "1.2.3", "database", "outbox", "7", "yes"):
        assert text in table


def test_a_part_that_is_down_is_shown_with_its_reason() -> None:
    whole, table = shown(service("team", part("database", ready=False)), service("auth"))

    assert not whole
    assert "no answer" in table


def test_the_report_is_asked_of_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"status": "unavailable", "services": [service("team")]}

    def get(url: str, **_: object) -> httpx.Response:
        assert url == "http://127.0.0.1:9/health/ready"
        return httpx.Response(503, json=body)

    monkeypatch.setattr(httpx, "get", get)

    for address in ("127.0.0.1:9", "http://127.0.0.1:9"):
        (process,) = of_address(address)
        assert process.services == body["services"]


def test_a_process_that_does_not_answer_is_shown_with_what_its_supervisor_says() -> None:
    out = io.StringIO()
    dead = ProcessStatus("team-1", detail="backoff: Exited too quickly")

    whole = show([ProcessStatus("auth-1", [service("auth")]), dead], Console(file=out, width=120))

    assert not whole
    assert "team-1" in out.getvalue()
    assert "Exited too quickly" in out.getvalue()


def test_every_process_of_a_folder_is_asked_at_its_own_address(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.write_run({"processes": [{"name": "team-1", "metrics": "127.0.0.1:1"}]})

    (found,) = of_folder(tmp_path)

    folder.close()
    assert (found.name, found.ready, found.detail) == ("team-1", False, "does not answer")


def test_without_a_platform_status_says_so_and_fails(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="mindweave all"):
        of_folder(tmp_path)
    with pytest.raises(NotRunning, match="Nothing answers"):
        of_address("127.0.0.1:1")

    result = CliRunner().invoke(app, ["status", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "No platform runs" in result.stderr


def test_a_wrong_setting_ends_the_start_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINDWEAVE_POOL_SIZE", "many")

    result = CliRunner().invoke(app, ["all", "--data", str(tmp_path / "data")])

    assert result.exit_code == 1
    assert result.stderr.startswith("mindweave: MINDWEAVE_POOL_SIZE: ")
    assert result.stderr.count("\n") == 1


def test_every_service_is_found_by_its_name() -> None:
    found = load()

    assert [service.name for service in found] == list(SERVICES)
    assert all(isinstance(service, Service) for service in found)
    assert {s.name for s in found if s.migrations is None} == {"gateway"}
    with pytest.raises(LookupError, match="there is no service mail"):
        load(["mail"])
