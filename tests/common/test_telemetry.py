from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from common.errors import NotFound
from common.telemetry import (
    Metrics,
    SpanKind,
    Telemetry,
    Tracing,
    accepted_correlation_id,
    bind_correlation_id,
    correlation_id,
    inject,
)
from common.telemetry.masking import masked
from common.telemetry.tracing import trace_ids
from tests.common.logs import written_logs
from tests.common.otlp import otlp_receiver

pytestmark = pytest.mark.unit

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Logged = Callable[[], list[dict[str, Any]]]


def telemetry(service: str = "team", metrics: Metrics | None = None) -> Telemetry:
    tracing = Tracing(None, version="1.2.3")
    return Telemetry(service, metrics=metrics or Metrics(CollectorRegistry()), tracing=tracing)


@pytest.fixture
def logged() -> Iterator[Logged]:
    """The process's log lines, as an operator would read them."""
    with written_logs() as written:
        yield lambda: [json.loads(line) for line in written()]


@pytest.fixture(autouse=True)
def _no_correlation() -> Iterator[None]:
    bind_correlation_id("")
    yield
    bind_correlation_id("")


def test_a_log_line_names_its_service_request_and_trace(logged: Logged) -> None:
    team = telemetry()
    bind_correlation_id("request-7")
    with team.continued({"traceparent": PARENT, "x-correlation-id": "request-7"}, "work"):
        team.log.info("a member was added", org_id=UUID(int=1), members=3)
    (line,) = logged()
    assert line["service"] == "team"
    assert line["correlation_id"] == "request-7"
    assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert line["span_id"] == "b7ad6b7169203331"
    assert (line["event"], line["level"], line["members"]) == ("a member was added", "info", 3)
    assert line["org_id"] == "00000000-0000-0000-0000-000000000001"
    assert line["timestamp"].endswith("Z")


def test_a_log_line_outside_of_any_request_has_no_ids(logged: Logged) -> None:
    telemetry().log.info("started")
    assert not {"correlation_id", "trace_id", "span_id"} & set(logged()[0])


def test_logs_of_libraries_are_json_too_and_what_is_below_the_level_is_left_out(
    logged: Logged,
) -> None:
    logging.getLogger("asyncpg").warning("lost %s connections", 2)
    logging.getLogger("asyncpg").debug("nothing")
    telemetry().log.debug("nothing")
    (line,) = logged()
    assert (line["event"], line["level"]) == ("lost 2 connections", "warning")
    assert line["logger"] == "asyncpg"


def test_what_a_module_gives_beside_its_line_is_in_it(logged: Logged) -> None:
    logging.getLogger("common.events").error("stopped", extra={"alert": True, "token": "mwu_1234"})
    (line,) = logged()
    assert (line["event"], line["logger"], line["alert"]) == ("stopped", "common.events", True)
    assert line["token"] == "***"


def test_an_exception_is_logged_with_its_traceback_on_one_line(logged: Logged) -> None:
    try:
        raise NotFound("no such row")
    except NotFound:
        telemetry().log.exception("a call failed", operation="GetOrg")
    (line,) = logged()
    assert "Traceback" in line["exception"]
    assert "no such row" in line["exception"]


def real_secrets() -> dict[str, str]:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return {
        "a user's key": "mwu_3fQx9Zr7LbT2vKc8WnYp5HsJd4GmEa6R1qBt",
        "a project's key": "mwp_9ZrT2vKc8WnYp5HsJd4GmEa6R1qBt3fQx7Lb",
        "a refresh token": "mwr_T2vKc8WnYp5HsJd4GmEa6R1qBt3fQx7Lb9Zr",
        "an access token": jwt.encode({"sub": str(uuid4())}, key, "EdDSA", headers={"kid": "k"}),
        "a private key": pem,
    }


@pytest.mark.parametrize("what", list(real_secrets()))
def test_a_secret_is_never_logged_wherever_it_stands(logged: Logged, what: str) -> None:
    secret = real_secrets()[what]
    log = telemetry().log
    sentence = f"sent {secret} on"
    log.info(sentence)
    log.info("plain", value=secret)
    log.info("nested", request={"body": [{"deep": (secret,)}], secret: 1}, people={secret})
    logging.getLogger("library").warning("got %s", secret)
    try:
        raise ValueError(f"cannot use {secret}")
    except ValueError:
        log.exception("failed")
    body = secret.splitlines()[1] if "\n" in secret else secret.partition("_")[2] or secret
    told = json.dumps(logged())
    assert len(logged()) == 5
    assert body not in told
    assert told.count("***") >= 5


@pytest.mark.parametrize(
    "name",
    [
        "password", "current_password", "Authorization", "token", "access_token", "refreshToken",
        "secret", "client_secret", "key", "api_key", "X-API-Key", "cookie", "set-cookie", "dsn",
        "credentials",
    ],
)  # fmt: skip
def test_a_field_whose_name_says_that_it_is_secret_is_never_shown(
    logged: Logged, name: str
) -> None:
    telemetry().log.info("said", **{name: "hunter2 correct horse", "other": {name: ["hunter2"]}})
    (line,) = logged()
    assert line[name] == "***"
    assert line["other"] == {name: "***"}


def test_what_is_no_secret_stays_readable(logged: Logged) -> None:
    given = {
        "input_tokens": 512,
        "monkey": "seen",
        "keyboard": "used",
        "path": "/auth/api-keys",
        "url": "https://example.test/a?b=c",
        "permission": "api_key:write",
        "nothing": None,
        "share": 0.5,
        "ok": True,
    }
    telemetry().log.info("said", **given)
    (line,) = logged()
    assert {name: line[name] for name in given} == given


def test_a_password_in_a_url_is_masked_and_the_rest_of_it_is_not() -> None:
    assert (
        masked("cannot reach postgres://team:s3cret@db:5432/team now")
        == "cannot reach postgres://team:***@db:5432/team now"
    )
    assert masked("Authorization: Bearer abcdef123456") == "Authorization: Bearer ***"


def test_bytes_and_bottomless_values_are_not_written_out() -> None:
    bottomless: list[Any] = []
    bottomless.append(bottomless)
    assert masked([b"secret", None, 7]) == ["<6 bytes>", None, 7]
    assert "***" in json.dumps(masked(bottomless))


def shown(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_services_of_one_process_share_a_metric_and_keep_their_own_series() -> None:
    metrics = Metrics(CollectorRegistry())
    for service, times in (("team", 1), ("auth", 2)):
        family = telemetry(service, metrics).counter("mindweave_x_total", "X.", ("kind",))
        for _ in range(times):
            family.of(kind="a").inc()
    seen = shown(metrics)
    assert seen["mindweave_x_total", frozenset({("service", "team"), ("kind", "a")})] == 1
    assert seen["mindweave_x_total", frozenset({("service", "auth"), ("kind", "a")})] == 2


def test_every_kind_of_metric_is_shown_with_its_service() -> None:
    team = telemetry()
    team.gauge("mindweave_lag", "Lag.").of().set(7)
    team.histogram("mindweave_wait_seconds", "Wait.", buckets=(0.1, 1.0)).of().observe(0.5)
    seen = shown(team.metrics)
    service = ("service", "team")
    assert seen["mindweave_lag", frozenset({service})] == 7
    assert seen["mindweave_wait_seconds_bucket", frozenset({service, ("le", "0.1")})] == 0
    assert seen["mindweave_wait_seconds_bucket", frozenset({service, ("le", "1.0")})] == 1


def test_a_series_that_is_forgotten_is_shown_no_more_and_may_come_back() -> None:
    team = telemetry()
    family = team.gauge("mindweave_lag", "Lag.", ("partition",))
    family.of(partition="0").set(7)
    family.forget(partition="0")
    assert not [name for name, _ in shown(team.metrics) if name == "mindweave_lag"]
    family.of(partition="0").set(8)
    labels = frozenset({("service", "team"), ("partition", "0")})
    assert shown(team.metrics)["mindweave_lag", labels] == 8


def test_one_name_cannot_mean_two_metrics() -> None:
    team = telemetry()
    team.counter("mindweave_x_total", "X.", ("kind",))
    with pytest.raises(ValueError, match="mindweave_x_total"):
        team.counter("mindweave_x_total", "X.", ("other",))


def test_a_process_tells_of_its_own_memory() -> None:
    assert "process_resident_memory_bytes" in {name for name, _ in shown(Metrics.of_process())}


@pytest.mark.parametrize(
    "offered", ["a", "7f3c", "9b2f6c1e-0000-4000-8000-000000000000", "order:7.retry_2", "x" * 128]
)
def test_a_plain_correlation_id_is_accepted(offered: str) -> None:
    assert accepted_correlation_id(offered) == offered


@pytest.mark.parametrize("offered", [None, "", "x" * 129, "a b", "a\nb", "ä", "<script>", "-a"])
def test_any_other_correlation_id_is_replaced(offered: str | None) -> None:
    made = accepted_correlation_id(offered)
    assert str(UUID(made)) == made


def test_without_a_receiver_the_trace_context_is_passed_on_as_it_came() -> None:
    headers = {"traceparent": PARENT, "tracestate": "vendor=1", "x-correlation-id": "c-1"}
    sent: dict[str, str] = {}
    team = telemetry()
    with team.continued(headers, "consume"), team.span("inner"):
        inject(sent)
    assert sent == headers
    assert trace_ids() is None


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "garbage",
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        "ff" + PARENT[2:],
        PARENT.upper(),
    ],
)
def test_without_a_receiver_and_a_sane_context_a_fresh_trace_is_begun(parent: str) -> None:
    sent: dict[str, str] = {}
    with telemetry().continued({"traceparent": parent}, "consume"):
        inject(sent)
        assert trace_ids() == (sent["traceparent"][3:35], sent["traceparent"][36:52])
    assert sent["traceparent"] != parent
    assert len(sent["traceparent"]) == 55
    assert correlation_id() == sent["x-correlation-id"]


def test_a_context_of_a_later_version_and_an_overlong_state_are_cut_to_what_is_known() -> None:
    sent: dict[str, str] = {}
    headers = {"traceparent": "01" + PARENT[2:] + "-more", "tracestate": "x" * 600}
    with telemetry().continued(headers, "consume"):
        inject(sent)
    assert sent["traceparent"] == PARENT
    assert "tracestate" not in sent


async def test_spans_of_one_request_arrive_at_the_receiver_as_one_trace() -> None:
    with otlp_receiver() as receiver:
        tracing = Tracing(receiver.endpoint + "/", version="1.2.3")
        metrics = Metrics(CollectorRegistry())
        team = Telemetry("team", metrics=metrics, tracing=tracing)
        analytics = Telemetry("analytics", metrics=metrics, tracing=tracing)
        sent: dict[str, str] = {}
        messages = {"messages": 2}
        with (
            team.continued({"traceparent": PARENT}, "request", kind=SpanKind.SERVER),
            team.span("publish", kind=SpanKind.PRODUCER, attributes=messages),
        ):
            inject(sent)
        with pytest.raises(NotFound), analytics.continued(sent, "consume"):
            raise NotFound("the secret row")
        await tracing.stop()
    assert receiver.paths == {"/v1/traces"}
    request = receiver.named("request", "team")
    publish = receiver.named("publish", "team")
    consume = receiver.named("consume", "analytics")
    assert {s.trace for s in (request, publish, consume)} == {"0af7651916cd43dd8448eb211c80319c"}
    assert request.parent == "b7ad6b7169203331"
    assert publish.parent == request.id
    assert consume.parent == publish.id
    assert publish.attributes == {"messages": 2}
    assert request.resource["service.version"] == "1.2.3"
    assert request.resource["service.namespace"] == "mindweave"
    assert [s.error for s in (request, publish, consume)] == [False, False, True]
    assert consume.attributes == {"error.type": "NotFound"}
    assert "secret" not in repr(receiver.spans)


async def test_a_receiver_that_is_down_stops_nobody() -> None:
    tracing = Tracing("http://127.0.0.1:1", version="1")
    team = Telemetry("team", metrics=Metrics(CollectorRegistry()), tracing=tracing)
    with team.span("work"):
        pass
    await tracing.stop()


async def test_a_log_line_of_a_recorded_span_names_it(logged: Logged) -> None:
    with otlp_receiver() as receiver:
        tracing = Tracing(receiver.endpoint, version="1")
        team = Telemetry("team", metrics=Metrics(CollectorRegistry()), tracing=tracing)
        assert team.records
        with team.span("work"):
            team.log.info("working")
        await tracing.stop()
    span, (line,) = receiver.named("work", "team"), logged()
    assert (line["trace_id"], line["span_id"]) == (span.trace, span.id)


async def test_what_records_nothing_has_nothing_to_send() -> None:
    assert not telemetry().records
    await telemetry().tracing.stop()
