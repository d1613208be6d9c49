"""OpenTelemetry's SDK. Owns whether it is set up: if the standard variables name an endpoint. Does
not create spans (guard/traces.py, guarded/middleware.py).

The SDK reads all other variables itself: OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_BSP_*,
OTEL_SDK_DISABLED, OTEL_EXPORTER_OTLP_HEADERS and so on.
"""

import os
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

_SERVICE = "setback"
_EXPORTERS: Mapping[str, type[SpanExporter]] = {"grpc": OverGrpc, "http/protobuf": OverHttp}


class ProtocolUnknown(ValueError):
    """The message names the variable's value and the known values."""


def set_up() -> None:
    """Exports spans from an API process if an endpoint is set. Keeps vLLM's own provider, which
    --otlp-traces-endpoint sets earlier and which exports our spans too.

    Raises ProtocolUnknown.
    """
    exporter = exporter_class()
    if exporter is None or isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    environment = OTELResourceDetector().detect().attributes
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: _SERVICE, **environment}))
    provider.add_span_processor(BatchSpanProcessor(exporter()))
    trace.set_tracer_provider(provider)


def exporter_class() -> type[SpanExporter] | None:
    """Returns the exporter, or None if no endpoint is set. Raises ProtocolUnknown."""
    if not _variable("ENDPOINT"):
        return None
    protocol = _variable("PROTOCOL") or "grpc"
    if protocol not in _EXPORTERS:
        known = " or ".join(_EXPORTERS)
        raise ProtocolUnknown(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; use {known}")
    return _EXPORTERS[protocol]


def _variable(name: str) -> str:
    """Returns OpenTelemetry's variable for traces, or else the one for all signals."""
    all_signals = os.environ.get(f"OTEL_EXPORTER_OTLP_{name}", "")
    return os.environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}", "") or all_signals
