"""A collector of OpenTelemetry traces over HTTP, which keeps what it receives."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

WAIT_S = 60


class Collector(ThreadingHTTPServer):
    """Listens on its own port; see `endpoint`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._came = Condition()
        self._spans: list[Span] = []
        self.services: set[str] = set()

    @property
    def endpoint(self) -> str:
        """The value for OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Stores spans and wakes waiting tests."""
        with self._came:
            for sent in request.resource_spans:
                for attribute in sent.resource.attributes:
                    if attribute.key == "service.name":
                        self.services.add(attribute.value.string_value)
                self._spans += [span for scope in sent.scope_spans for span in scope.spans]
            self._came.notify_all()

    def trace(self, trace_id: str) -> list[Span]:
        """Returns a trace's spans once its `guard` span, which ends last, has arrived."""
        with self._came:
            assert self._came.wait_for(
                lambda: any(span.name == "guard" for span in self._of(trace_id)), WAIT_S
            )
            return self._of(trace_id)

    def _of(self, trace_id: str) -> list[Span]:
        return [span for span in self._spans if span.trace_id.hex() == trace_id]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["content-encoding"] == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces"
        self.server.take(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *_arguments: object) -> None:
        """Logs nothing."""


@contextmanager
def collecting() -> Iterator[Collector]:
    """Runs a collector for the block."""
    with Collector() as collector:
        thread = Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()
