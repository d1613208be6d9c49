"""The SDK is set up if the standard variables name an endpoint, and not otherwise."""

import os
import subprocess
import sys

import pytest

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
PROGRAM = """
from opentelemetry import trace
from server.telemetry import traces
traces.set_up()
provider = trace.get_tracer_provider()
traces.set_up()
assert trace.get_tracer_provider() is provider
spans = getattr(provider, "_active_span_processor", None)
processors = spans._span_processors if spans else ()
exporters = [type(each.span_exporter).__module__ for each in processors]
recording = trace.get_tracer("t").start_span("s").is_recording()
name = provider.resource.attributes["service.name"] if spans else None
print("grpc" if any("grpc" in e for e in exporters) else "http" if exporters else None)
print(recording, name)
# Nothing listens there: what would be sent at the end is dropped.
import os; os._exit(0)
"""


def run(**environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs in its own process, since a provider cannot be replaced."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-u", "-c", PROGRAM],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, ["None", "False", "None"]),
        (ENDPOINT, ["grpc", "True", "setback"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:1"}, ["grpc", "True", "setback"]),
        (
            ENDPOINT
            | {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            ["http", "True", "setback"],
        ),
        (ENDPOINT | {"OTEL_SERVICE_NAME": "mine"}, ["grpc", "True", "mine"]),
        (ENDPOINT | {"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours"}, ["grpc", "True", "ours"]),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, ["grpc", "False", "setback"]),
        (ENDPOINT | {"OTEL_TRACES_SAMPLER": "always_off"}, ["grpc", "False", "setback"]),
    ],
)
def test_the_standard_variables_decide(environment: dict[str, str], said: list[str]) -> None:
    done = run(**environment)
    assert done.stdout.split() == said, done.stderr


def test_an_unknown_protocol_is_refused_by_name() -> None:
    done = run(**ENDPOINT, OTEL_EXPORTER_OTLP_PROTOCOL="http/json")
    assert done.returncode != 0
    assert "ProtocolUnknown: OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'; use grpc" in done.stderr
