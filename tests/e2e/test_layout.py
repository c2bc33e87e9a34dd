"""`mindweave up`: a process for each service, kept, found, and ended as a whole."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import httpx
import psutil
import pytest

from fleet.process import STOP_PATIENCE, Platform
from fleet.services import SERVICES
from tests.e2e.faults.watching import until
from tests.e2e.own import free_port, own_platform
from tests.e2e.processes import health, pid_of
from tests.e2e.tenant import PASSWORD, User, register

pytestmark = pytest.mark.e2e

ON_STREAMS = ("--broker", "redis-streams")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    data = tmp_path_factory.mktemp("up") / "data"
    with own_platform(data, layout="up", options=ON_STREAMS) as platform:
        yield platform


@pytest.fixture(scope="module")
def user(platform: Platform) -> User:
    return register(platform.address)


def mindweave(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fleet", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def log_in(platform: Platform, user: User) -> int:
    body = {"email": user.email, "password": PASSWORD}
    return httpx.post(f"{platform.address}/auth/login", json=body, timeout=30).status_code


def test_every_service_has_processes_of_its_own_that_are_asked_at_their_own_address(
    platform: Platform,
) -> None:
    run = platform.run()
    pids = {platform.pid(process["name"]) for process in run["processes"]}

    assert (run["layout"], run["broker"]) == ("up", "redis-streams")
    assert {process["service"] for process in run["processes"]} == set(SERVICES)
    assert len(pids) == len(run["processes"])
    assert [health(process, "ready") for process in run["processes"]] == [200] * len(pids)
    shown = mindweave("status", "--data", str(platform.data))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    for process in run["processes"]:
        assert process["name"] in shown.stdout
        assert process["metrics"] in platform.log.read_text()


def test_a_process_knows_of_the_databases_its_own_alone_and_no_secret_is_in_its_command(
    platform: Platform,
) -> None:
    process = psutil.Process(platform.pid("team-1"))
    environment = process.environ()
    named = {name for name in environment if "DATABASE" in name}

    assert named == {"DATABASE_URL_TEAM"}
    assert environment["MINDWEAVE_SECRET"] not in " ".join(process.cmdline())
    assert "//team:" in environment["DATABASE_URL_TEAM"]


def test_a_client_cannot_say_where_it_calls_from(platform: Platform, user: User) -> None:
    body = {"email": user.email, "password": PASSWORD}
    claimed = {"X-Forwarded-For": "203.0.113.7"}
    session = httpx.post(f"{platform.address}/auth/login", json=body, headers=claimed).json()

    bearer = {"Authorization": f"Bearer {session['access_token']}"}
    sessions = httpx.get(f"{platform.address}/auth/sessions", headers=bearer).json()["sessions"]

    assert {one["ip"] for one in sessions} == {"127.0.0.1"}


def test_a_killed_process_is_started_again(platform: Platform, user: User) -> None:
    killed = platform.pid("auth-1")
    psutil.Process(killed).kill()

    until(lambda: pid_of(platform, "auth-1") not in (0, killed))
    platform.wait_until("auth-1")
    until(lambda: log_in(platform, user) == 200)


def test_a_killed_supervisor_and_all_that_it_kept_are_started_again(
    platform: Platform, user: User
) -> None:
    supervisor = psutil.Process(platform.pid("team-1")).parent()
    assert supervisor is not None
    kept = supervisor.children()
    supervisor.kill()

    _, left_behind = psutil.wait_procs(kept, timeout=30)
    assert left_behind == []
    platform.wait_until_ready()
    assert log_in(platform, user) == 200


def test_without_a_gateway_the_answer_is_a_problem_that_says_when_to_come_again(
    platform: Platform,
) -> None:
    platform.hold("gateway-1")
    answer = httpx.get(f"{platform.address}/orgs?of=mine", timeout=30)
    ingest = httpx.get(f"{platform.address}/v1/health", timeout=30)
    platform.release("gateway-1")
    platform.wait_until("gateway-1")

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told == {
        "type": "urn:mindweave:problem:unavailable",
        "title": told["title"],
        "status": 503,
        "detail": told["detail"],
        "instance": "/orgs",
        "code": "unavailable",
        "errors": [],
        "correlation_id": answer.headers["x-correlation-id"],
    }
    assert ingest.status_code == 200
    until(lambda: httpx.get(f"{platform.address}/health/ready").status_code == 200)


def test_what_is_read_is_the_gateways_and_what_is_sent_is_ingests_under_its_own_path_alone(
    platform: Platform, user: User
) -> None:
    def asked(method: str, path: str) -> tuple[int, str]:
        answer = user.client.request(method, path, json={})
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        return answer.status_code, answer.json()["code"]

    others = ("/v1/events/", "/v1/%65vents", "/v1//events", "/V1/EVENTS", "/v1/prices/")
    unknown = {(method, path) for method in ("GET", "POST") for path in others}
    # The gateway reads a path as it means; ingest has one spelling.
    unknown.remove(("GET", "/v1/%65vents"))
    assert {asked(*one) for one in unknown} == {(404, "route_not_found")}
    for path in ("/v1/prices", "/v1/unpriced", "/v1/reconciliation"):
        assert asked("GET", path) == (422, "missing_field")
        assert asked("DELETE", path) == (405, "method_not_allowed")
    for path in ("/v1/sessions", "/v1/events", "/v1/%65vents"):
        assert asked("GET", path) == (422, "missing_field")
    told = user.client.options("/v1/events")
    assert (told.status_code, told.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")

    platform.hold("gateway-1")
    gateways = ("/v1/prices", "/v1/reconciliation", "/v1/events/", "/v1/events")
    without = [asked("GET", path) for path in gateways]
    events = asked("POST", "/v1/events")
    platform.release("gateway-1")
    platform.wait_until("gateway-1")

    assert set(without) == {(503, "unavailable")}
    assert events == (422, "missing_field")
    until(lambda: httpx.get(f"{platform.address}/health/ready").status_code == 200)


def test_a_head_that_is_too_large_is_a_problem_as_in_one_process(platform: Platform) -> None:
    answer = httpx.get(f"{platform.address}/orgs", headers={"X-Much": "a" * 40_000})

    told = answer.json()
    assert (answer.status_code, told["code"]) == (431, "headers_too_large")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "server" not in answer.headers
    assert told["instance"] == ""
    assert UUID(told["correlation_id"])


@pytest.mark.parametrize("layout", ["up", "all"])
def test_a_second_one_on_the_same_folder_is_refused_with_a_clear_line(
    platform: Platform, layout: str
) -> None:
    listen = f"127.0.0.1:{free_port()}"
    second = mindweave(layout, "--data", str(platform.data), "--listen", listen)

    assert second.returncode == 1
    assert "is in use by another mindweave" in second.stderr
    assert second.stderr.count("\n") == 1


def test_an_address_that_is_taken_is_said_in_a_line(platform: Platform, tmp_path: Path) -> None:
    listen = platform.address.removeprefix("http://")
    second = mindweave("up", "--data", str(tmp_path / "d"), "--listen", listen, *ON_STREAMS)

    assert second.returncode == 1
    assert "in use" in second.stderr
    assert second.stderr.count("\n") == 1


def test_no_process_outlives_a_killed_one_and_a_new_start_finds_the_data(
    platform: Platform, user: User
) -> None:
    hanging = {platform.pid(p["name"]) for p in platform.run()["processes"]}
    hanging.add(platform.pid("envoy"))
    psutil.Process(platform.process.pid).kill()
    platform.process.wait()

    until(lambda: not any(psutil.pid_exists(pid) for pid in hanging))
    assert platform.processes()
    platform.start()
    platform.wait_until_ready()
    assert log_in(platform, user) == 200


def test_a_new_start_finds_the_data_after_a_kill_of_everything(
    platform: Platform, user: User
) -> None:
    platform.kill_everything()

    platform.start()
    platform.wait_until_ready()
    assert log_in(platform, user) == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_as_a_whole_when_it_is_asked_to(platform: Platform, number: signal.Signals) -> None:
    if platform.process.poll() is not None:
        platform.start()
        platform.wait_until_ready()
    all_of_it = platform.processes()

    platform.process.send_signal(number)

    assert platform.process.wait(timeout=STOP_PATIENCE) == 0, platform.last_lines()
    _, left_behind = psutil.wait_procs(all_of_it, timeout=30)
    assert left_behind == []
    assert [*platform.data.rglob("*.sock"), *platform.data.glob("*.pid")] == []
    assert not (platform.data / "run.json").exists()
    stops = (platform.data / "logs" / "supervisor.log").read_text()
    assert "terminated by SIGKILL" not in stops.rpartition("supervisord started")[2]
