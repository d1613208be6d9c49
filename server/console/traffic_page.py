"""/console/traffic: answers, flag rate, false alarms and the guard's overhead over time. Owns which
figures are charted. Does not store them (guard/store/traffic.py).
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request, Response

from guard.store.adapters import AdapterStore
from guard.store.traffic import Period, TrafficStore
from server.console.charts import Axis, Chart, Series, chart
from server.console.view import PageRoute, page
from server.routes.loop import Registry

_SPANS = {
    "1h": (timedelta(minutes=1), 60),
    "24h": (timedelta(minutes=15), 96),
    "7d": (timedelta(hours=2), 84),
    "30d": (timedelta(hours=6), 120),
}
_DEFAULT = "24h"
_MAX_ACTIVATIONS = 1000

router = APIRouter(prefix="/console/traffic", route_class=PageRoute, include_in_schema=False)


@router.get("")
async def traffic(request: Request, registry: Registry, span: str = _DEFAULT) -> Response:
    """Shows the charts of a span of time up to now."""
    chosen = span if span in _SPANS else _DEFAULT
    length, number = _SPANS[chosen]
    store: TrafficStore = request.app.state.setback.traffic
    periods = await store.periods(datetime.now(UTC), length, number)
    axis = await _axis(registry, periods, length)
    return page(
        request,
        "traffic.html",
        charts=_charts(axis, periods),
        span=chosen,
        spans=list(_SPANS),
        answers=sum(period.traffic.answers for period in periods),
        switches=axis.switches,
    )


async def _axis(registry: AdapterStore, periods: Sequence[Period], length: timedelta) -> Axis:
    start, end = periods[0].start, periods[-1].start + length
    switches = tuple(
        (activation.created_at, "base" if activation.version is None else str(activation.version))
        for activation in await registry.history(_MAX_ACTIVATIONS)
        if start <= activation.created_at < end
    )
    return Axis(tuple(period.start for period in periods), end, switches[::-1])


def _charts(axis: Axis, periods: Sequence[Period]) -> list[Chart]:
    traffic = [period.traffic for period in periods]
    answers = Series("answers", tuple(float(item.answers) for item in traffic))
    flagged = Series("flagged", tuple(float(item.flagged) for item in traffic))
    flags = Series("flagged", tuple(_share(item.flagged, item.answers) for item in traffic))
    alarms = Series("dismissed", tuple(_share(item.dismissed, item.reviewed) for item in periods))
    overhead = Series("mean", tuple(_share(item.overhead_s, item.requests) for item in traffic))
    return [
        chart(
            "Answers", "judged, and flagged of them", axis, [answers, flagged], _count, bars=True
        ),
        chart("Flag rate", "flagged of all answers", axis, [flags], _percent),
        chart(
            "False alarms",
            "dismissed of the flags of that time that were reviewed",
            axis,
            [alarms],
            _percent,
        ),
        chart("Guard overhead", "mean added to a request", axis, [overhead], _duration),
    ]


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _count(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _percent(value: float) -> str:
    return f"{value:.0%}" if value * 100 == int(value * 100) else f"{value:.1%}"


def _duration(value: float) -> str:
    if value >= 1:
        return f"{value:,.1f} s"
    return f"{value * 1000:,.0f} ms" if value >= 0.01 else f"{value * 1000:.1f} ms"
