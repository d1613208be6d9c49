"""OpenTelemetry spans of the guard's work. Owns what a span may hold: names and figures, never
text. Uses the API only: until server/telemetry/traces.py configures an SDK, spans are no-ops.
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
    """Opens a span around the block, as a child of the current span or of `parent`.

    The span does not become the current one: tasks started in the block are its siblings.
    attributes: recorded as setback.<name>.
    """
    current = _tracer.start_span(name, parent, kind, _prefixed(attributes))
    try:
        yield current
    except Exception as error:
        # Only the error's type: messages and tracebacks of other libraries may quote an answer.
        code = error.code if isinstance(error, GuardError) else type(error).__name__
        current.set_attribute("error.type", code)
        current.set_status(StatusCode.ERROR)
        raise
    finally:
        current.end()


def note(current: Span, **attributes: AttributeValue) -> None:
    """Sets attributes as setback.<name>."""
    current.set_attributes(_prefixed(attributes))


def _prefixed(attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    return {f"setback.{name}": value for name, value in attributes.items()}
