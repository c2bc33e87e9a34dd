"""Which processes `mindweave up` runs, and where each is found."""

from __future__ import annotations

from itertools import count

import pytest

from common.background import Role
from common.settings import SettingsError, rpc_target
from fleet.layout.processes import DEFAULT, placed, rpc_addresses, scaled
from fleet.ports import free_ports
from fleet.services import SERVICES

pytestmark = pytest.mark.unit

FRONTS = frozenset({"gateway", "usage_tracker"})


def names(*options: str) -> list[str]:
    return [process.name for process in placed(scaled(options), FRONTS, count(20_000))]


def test_by_default_every_service_has_a_process_and_the_usage_path_two_for_each_role() -> None:
    assert {service for service, _ in DEFAULT} == set(SERVICES)
    assert sorted(names()) == [
        "account-1",
        "analytics-1",
        "auth-1",
        "gateway-1",
        "project-1",
        "team-1",
        "usage_tracker-serve-1",
        "usage_tracker-serve-2",
        "usage_tracker-work-1",
        "usage_tracker-work-2",
    ]


def test_a_role_is_scaled_by_itself_and_a_service_as_a_whole() -> None:
    more = names("usage_tracker:work=3", "gateway=2", "analytics:work=1")

    assert {"usage_tracker-work-3", "usage_tracker-serve-2", "gateway-2"} <= set(more)
    assert {"analytics-1", "analytics-work-1"} <= set(more)
    assert [n for n in names("usage_tracker=1") if "usage" in n] == ["usage_tracker-1"]


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("team=0", "no process of team would serve, work"),
        ("usage_tracker:work=0", "no process of usage_tracker would work"),
        ("mail=1", "mail=1 is not NAME"),
        ("team", "team is not NAME"),
        ("team=some", "team=some is not NAME"),
        ("team:sleep=1", "a role is serve or work"),
    ],
)
def test_a_count_that_leaves_work_undone_or_means_nothing_is_refused(
    option: str, complaint: str
) -> None:
    with pytest.raises(SettingsError, match=f"--scale: .*{complaint}"):
        scaled([option])


def test_no_two_processes_share_a_port_and_only_those_that_answer_rest_have_one_for_it() -> None:
    processes = placed(scaled([]), FRONTS, free_ports())
    ports = [port for p in processes for port in (p.rpc, p.metrics, p.http) if port is not None]

    assert len(set(ports)) == len(ports)
    assert {p.name for p in processes if p.http is not None} == {
        "gateway-1",
        "usage_tracker-serve-1",
        "usage_tracker-serve-2",
    }


def test_a_service_is_called_at_every_process_that_serves_it() -> None:
    processes = placed(scaled(["team=2", "analytics:work=2"]), FRONTS, count(20_000))
    addresses = rpc_addresses(processes)
    first, second = (p.rpc_address for p in processes if p.service == "team")

    assert set(addresses) == set(SERVICES)
    assert rpc_target(addresses["team"]) == f"ipv4:{first},{second}"
    assert rpc_target(addresses["analytics"]).startswith("127.0.0.1:")


def test_a_process_is_run_by_the_name_that_the_program_takes() -> None:
    by_name = {p.name: p for p in placed(scaled([]), FRONTS, count(20_000))}

    assert by_name["team-1"].argument == "team"
    assert by_name["usage_tracker-work-2"].argument == "usage_tracker:work"
    assert by_name["usage_tracker-work-2"].role is Role.WORK
    assert by_name["usage_tracker-work-2"].facts()["http"] == ""
