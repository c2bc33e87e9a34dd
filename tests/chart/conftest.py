"""The chart under each set of values that is tested, rendered once."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.chart.rendering import KEDA, ROOT, Rendered, rendered

DEPLOY = ROOT / "deploy" / "k8s"
CANARY = {"tag": "0.2.0", "weight": 10, "replicas": 2}
MESH = {"mesh": {"enabled": True, "host": "api.example.com"}}
SETS: dict[str, dict[str, Any]] = {
    "trying out": {},
    "a laptop": {"files": (DEPLOY / "dev.yaml",)},
    "production": {"files": (DEPLOY / "production.yaml",)},
    "an upgrade": {"options": ("--is-upgrade",)},
    "an upgrade that rejoins": {
        "files": (DEPLOY / "production.yaml",),
        "values": {"rejoin": {"enabled": True}},
        "options": ("--is-upgrade",),
    },
    "production with KEDA": {
        "files": (DEPLOY / "production.yaml",),
        "options": ("--api-versions", KEDA),
    },
    "trying out with KEDA": {"options": ("--api-versions", KEDA)},
    "redis streams behind an ingress": {
        "values": {
            "broker": {"kind": "redis-streams"},
            "edge": {
                "trustedHops": 1,
                "ingress": {"enabled": True, "host": "api.example.com", "tlsSecret": "tls"},
            },
        }
    },
    "a mesh": {"values": MESH},
    "canaries": {
        "values": MESH | {"services": {"gateway": {"canary": CANARY}, "team": {"canary": CANARY}}}
    },
    "a further service": {"values": {"services": {"governance": {}}}},
    "a further service in a mesh": {"values": MESH | {"services": {"governance": {}}}},
}


@cache
def _rendered(name: str) -> Rendered:
    given = dict(SETS[name])
    return rendered(given.pop("values", None), **given)


@pytest.fixture(scope="session")
def chart() -> Any:
    """The chart under one of ``SETS``, by its name."""
    return _rendered


@pytest.fixture(params=SETS)
def any_chart(request: pytest.FixtureRequest) -> Rendered:
    return _rendered(request.param)
