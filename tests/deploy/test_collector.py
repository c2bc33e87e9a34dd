"""The collector's configuration, as far as it can be judged without one.

``python -m tests.deploy.collector`` builds a real one and sends spans through it.
"""

from __future__ import annotations

import re

import pytest
import yaml

from common.telemetry.masking import MASK, masked, masked_field
from tests.common.test_telemetry import real_secrets
from tests.deploy.written import ROOT

pytestmark = pytest.mark.unit

CONFIG = yaml.safe_load((ROOT / "deploy/otel/collector.yaml").read_text())
BUILDER = yaml.safe_load((ROOT / "deploy/otel/builder.yaml").read_text())
REDACTION = CONFIG["processors"]["redaction"]
# By the last part of its module, the type of a component.
TYPES = {
    "otlpreceiver": "otlp",
    "batchprocessor": "batch",
    "memorylimiterprocessor": "memory_limiter",
    "redactionprocessor": "redaction",
    "otlphttpexporter": "otlp_http",
    "healthcheckextension": "health_check",
}


def hidden(value: str) -> bool:
    return any(re.search(pattern, value) for pattern in REDACTION["blocked_values"])


def hidden_by_name(name: str) -> bool:
    return any(re.search(pattern, name) for pattern in REDACTION["blocked_key_patterns"])


def test_every_signal_goes_in_by_otlp_is_bounded_hidden_gathered_and_goes_out() -> None:
    pipelines = CONFIG["service"]["pipelines"]
    assert pipelines.keys() == {"traces", "metrics", "logs"}
    for signal, pipeline in pipelines.items():
        assert pipeline["receivers"] == ["otlp"]
        assert pipeline["processors"] == ["memory_limiter", "redaction", "batch"]
        (exporter,) = pipeline["exporters"]
        variable = f"${{env:MINDWEAVE_{signal.upper()}_ENDPOINT}}"
        assert CONFIG["exporters"][exporter] == {"endpoint": variable}
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= CONFIG[kind].keys()


def test_nothing_is_defined_that_is_not_used_or_not_built() -> None:
    pipelines = CONFIG["service"]["pipelines"].values()
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in pipelines for name in pipeline[kind]}
        assert used == CONFIG[kind].keys()
    for kind in ("receivers", "processors", "exporters", "extensions"):
        built = {TYPES[c["gomod"].split()[0].rpartition("/")[2]] for c in BUILDER[kind]}
        assert built == {name.partition("/")[0] for name in CONFIG[kind]}


def test_it_listens_on_this_machine_alone_unless_it_is_told_else() -> None:
    endpoints = [p["endpoint"] for p in CONFIG["receivers"]["otlp"]["protocols"].values()]
    endpoints.append(CONFIG["extensions"]["health_check"]["endpoint"])
    assert all(e.startswith("${env:MINDWEAVE_OTEL_LISTEN:-127.0.0.1}:") for e in endpoints)


@pytest.mark.parametrize("what", list(real_secrets()))
def test_what_logs_hide_by_its_looks_is_hidden_here_too(what: str) -> None:
    secret = real_secrets()[what]
    assert masked(f"sent {secret} on") != f"sent {secret} on"
    assert hidden(f"sent {secret} on")


def test_urls_with_passwords_are_hidden_and_plain_texts_are_not() -> None:
    assert hidden("postgresql://team:a-password@db/team")
    for plain in ("POST /v1/events", "https://example.com/a?b=c", "claude-sonnet-4-5", "mindweave"):
        assert not hidden(plain)


@pytest.mark.parametrize(
    "name",
    [
        *("http.request.header.authorization", "Authorization", "db.password", "client_secret"),
        *("http.request.header.x-api-key", "access_token", "token", "http.request.header.cookie"),
        *("set-cookie", "http.response.header.set-cookie", "dsn", "credentials", "signing_key"),
    ],
)
def test_attributes_that_are_secret_by_name_are_hidden_as_in_logs(name: str) -> None:
    assert hidden_by_name(name)
    assert masked_field(name, "a plain word") == MASK


@pytest.mark.parametrize(
    "name", ["http.route", "gen_ai.usage.output_tokens", "tokens", "db.operation.name", "key"]
)
def test_attributes_that_are_none_are_left_alone(name: str) -> None:
    assert not hidden_by_name(name)
