"""A real OpenTelemetry Collector with deploy/otel: built, started, and sent what it must hide.

Building takes minutes of a processor, so it is no part of `make test`; the binary stays in .cache.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from fleet.ports import free_port
from tests.common.otlp import Receiver, otlp_receiver
from tests.common.test_telemetry import real_secrets

ROOT = Path(__file__).resolve().parents[2]
BINARY = ROOT / ".cache/otelcol/otelcol"
BUILDER = "go.opentelemetry.io/collector/cmd/builder@v0.158.0"
BY_NAME = "seventeen purple otters"
PLAIN = "what everybody may read"
PATIENCE = 60.0


def built() -> Path:
    """The collector that deploy/otel/builder.yaml describes."""
    if not BINARY.exists():
        command = ["go", "run", BUILDER, "--config", "deploy/otel/builder.yaml"]
        subprocess.run(command, cwd=ROOT, check=True)
    return BINARY


def attributes() -> list[KeyValue]:
    told = {"plain": PLAIN, "http.request.header.authorization": BY_NAME, "db.password": BY_NAME}
    told |= {f"note.{n}": f"sent {secret} on" for n, secret in enumerate(real_secrets().values())}
    return [KeyValue(key=k, value=AnyValue(string_value=v)) for k, v in told.items()]


def requests() -> dict[str, Message]:
    """One of each signal, by its path, with the same attributes."""
    traces, logs = ExportTraceServiceRequest(), ExportLogsServiceRequest()
    span = traces.resource_spans.add()
    span.resource.attributes.append(_of_service())
    one = span.scope_spans.add().spans.add(
        name="POST /v1/events", trace_id=os.urandom(16), span_id=os.urandom(8)
    )
    one.attributes.extend(attributes())
    record = logs.resource_logs.add().scope_logs.add().log_records.add()
    record.body.string_value = PLAIN
    record.attributes.extend(attributes())
    metrics = ExportMetricsServiceRequest()
    metric = metrics.resource_metrics.add().scope_metrics.add().metrics.add(name="plain")
    metric.gauge.data_points.add(as_int=1).attributes.extend(attributes())
    return {"/v1/traces": traces, "/v1/logs": logs, "/v1/metrics": metrics}


def _of_service() -> KeyValue:
    return KeyValue(key="service.name", value=AnyValue(string_value="others"))


@contextmanager
def running(binary: Path, receiver: Receiver) -> Iterator[str]:
    """The collector's OTLP/HTTP address, while it sends on to the receiver."""
    ports = {name: str(free_port()) for name in ("GRPC", "HTTP", "HEALTH")}
    environment = {f"MINDWEAVE_OTEL_{name}_PORT": port for name, port in ports.items()}
    for signal in ("TRACES", "METRICS", "LOGS"):
        environment[f"MINDWEAVE_{signal}_ENDPOINT"] = receiver.endpoint
    config = f"--config={ROOT / 'deploy/otel/collector.yaml'}"
    given = {**os.environ, **environment}
    subprocess.run([binary, "validate", config], env=given, check=True)
    with binary.with_name("otelcol.log").open("w") as log:
        process = subprocess.Popen([binary, config], env=given, stdout=log, stderr=log)
        try:
            _until(lambda: _answers(f"http://127.0.0.1:{ports['HEALTH']}"))
            yield f"http://127.0.0.1:{ports['HTTP']}"
        finally:
            process.terminate()
            process.wait(timeout=30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError("the collector does not do it")
        time.sleep(0.1)


def main() -> None:
    with otlp_receiver() as receiver, running(built(), receiver) as address:
        for path, request in requests().items():
            answer = httpx.post(
                f"{address}{path}",
                content=request.SerializeToString(),
                headers={"content-type": "application/x-protobuf"},
            )
            assert answer.status_code == httpx.codes.OK, answer.text
        _until(lambda: receiver.paths == requests().keys())
    for body in receiver.bodies:
        assert PLAIN.encode() in body
        for secret in (BY_NAME, *real_secrets().values()):
            # Of a key in PEM the middle.
            assert secret[-12:].encode() not in body, secret
            assert secret.splitlines()[len(secret.splitlines()) // 2].encode() not in body
    print(f"{len(receiver.bodies)} signals went through, and nothing in them that must be hidden")


if __name__ == "__main__":
    main()
