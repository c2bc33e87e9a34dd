"""An OTLP/HTTP receiver that keeps what it is sent."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass
class ReceivedSpan:
    """A span as it arrived; ids in hexadecimal, ``parent`` "" for a root."""

    service: str
    resource: dict[str, Any]
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    error: bool
    attributes: dict[str, Any]


@dataclass
class Receiver:
    """Answers as an OpenTelemetry collector does; of metrics and logs it keeps the bytes."""

    endpoint: str = ""
    paths: set[str] = field(default_factory=set)
    spans: list[ReceivedSpan] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def take(self, path: str, body: bytes) -> None:
        self.paths.add(path)
        self.bodies.append(body)
        if path == "/v1/traces":
            self._take_spans(body)

    def _take_spans(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = _attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        ReceivedSpan(
                            service=about["service.name"],
                            resource=about,
                            name=span.name,
                            kind=span.kind,
                            trace=span.trace_id.hex(),
                            id=span.span_id.hex(),
                            parent=span.parent_span_id.hex(),
                            error=span.status.code == 2,
                            attributes=_attributes(span.attributes),
                        )
                    )

    def named(self, name: str, service: str) -> ReceivedSpan:
        found = [s for s in self.spans if (s.name, s.service) == (name, service)]
        assert len(found) == 1, f"{name} of {service} among {self.spans}"
        return found[0]


def _attributes(pairs: Any) -> dict[str, Any]:
    return {p.key: getattr(p.value, p.value.WhichOneof("value")) for p in pairs}


@contextmanager
def otlp_receiver(
    receiver: Receiver | None = None, listen: tuple[str, int] = ("127.0.0.1", 0)
) -> Iterator[Receiver]:
    """A receiver, on a free port of this machine where none is named, while the block runs."""
    receiver = receiver or Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            receiver.take(self.path, body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(listen, Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    receiver.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
