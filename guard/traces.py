"""Spans of the guard's work, by OpenTelemetry's API: without an SDK, which
server/telemetry/traces.py sets up, one costs microseconds and goes nowhere. Owns what may be in
them: names and figures, no text.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue

from guard.errors import GuardError

_tracer = trace.get_tracer("setback")


@contextmanager
def span(
    name: str,
    *,
    parent: Context | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    **attributes: AttributeValue,
) -> Iterator[Span]:
    """A span around the block, below the current one or `parent`; see note() for attributes.

    It does not become the current one: tasks that the block starts are beside it, not part of it.
    """
    began = _tracer.start_span(name, parent, kind, _prefixed(attributes))
    try:
        yield began
    except Exception as error:
        # The kind alone: messages and tracebacks of others may quote an answer.
        code = error.code if isinstance(error, GuardError) else type(error).__name__
        began.set_attribute("error.type", code)
        began.set_status(StatusCode.ERROR)
        raise
    finally:
        began.end()


def note(began: Span, **attributes: AttributeValue) -> None:
    """Adds attributes, as setback.<name>."""
    began.set_attributes(_prefixed(attributes))


def _prefixed(attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    return {f"setback.{name}": value for name, value in attributes.items()}
