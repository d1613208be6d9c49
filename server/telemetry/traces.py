"""OpenTelemetry's SDK, set up where its standard variables say so. Owns that choice; what is traced
is guard/traces.py's and guarded/middleware.py's.

All else is the SDK's own: OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_BSP_*, OTEL_SDK_DISABLED,
OTEL_EXPORTER_OTLP_HEADERS and so on.
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
    """The message names the variable's value and those that are taken."""


def set_up() -> None:
    """In each API process: exports spans where an endpoint is named, once. vLLM's own provider,
    which --otlp-traces-endpoint sets before, is left in place and takes our spans too.

    Raises ProtocolUnknown.
    """
    exporter = exporter_class()
    if exporter is None or isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    given = OTELResourceDetector().detect().attributes
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: _SERVICE, **given}))
    provider.add_span_processor(BatchSpanProcessor(exporter()))
    trace.set_tracer_provider(provider)


def exporter_class() -> type[SpanExporter] | None:
    """What spans are sent with; None where no endpoint is named. Raises ProtocolUnknown."""
    if not _variable("ENDPOINT"):
        return None
    protocol = _variable("PROTOCOL") or "grpc"
    if protocol not in _EXPORTERS:
        known = " or ".join(_EXPORTERS)
        raise ProtocolUnknown(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; use {known}")
    return _EXPORTERS[protocol]


def _variable(name: str) -> str:
    """OpenTelemetry's variable for traces, or else the one for all signals."""
    for_all = os.environ.get(f"OTEL_EXPORTER_OTLP_{name}", "")
    return os.environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}", "") or for_all
