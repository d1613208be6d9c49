"""Charts as plain geometry, which the template chart.html draws. Owns scales, lines and ticks. Does
not choose what is charted (traffic_page.py).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 28
_MAX_TIME_TICKS = 4
_MIN_NAME_DISTANCE = 40
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Series:
    """One value per period, None where there is none."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, at `at` pixels."""

    at: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A bar on the base line, in pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Chart:
    """A titled chart. bars: a list for each series. lines: the same as points of SVG polylines, one
    point for an isolated value. rows: the same figures as text."""

    title: str
    about: str
    names: tuple[str, ...]
    bars: tuple[tuple[Bar, ...], ...]
    lines: tuple[tuple[str, ...], ...]
    values: tuple[Tick, ...]
    times: tuple[Tick, ...]
    switches: tuple[Tick, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Axis:
    """The time axis: the start of each period, the end, and the adapter switches."""

    starts: tuple[datetime, ...]
    end: datetime
    switches: tuple[tuple[datetime, str], ...]

    @property
    def step(self) -> float:
        """The width of a period in pixels."""
        return (WIDTH - LEFT - RIGHT) / len(self.starts)

    def x(self, time: datetime) -> float:
        """Returns a time's position in pixels."""
        share = (time - self.starts[0]) / (self.end - self.starts[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def times(self) -> tuple[Tick, ...]:
        """Returns ticks at some of the periods' starts."""
        days = (self.end - self.starts[0]).days >= 2
        every = math.ceil(len(self.starts) / _MAX_TIME_TICKS)
        time_format = "%d %b" if days else "%H:%M"
        return tuple(
            Tick(self.x(start), start.strftime(time_format)) for start in self.starts[::every]
        )

    def marks(self) -> tuple[Tick, ...]:
        """Returns ticks at the switches. Of switches close together only the last one is named."""
        positions = [self.x(time) for time, _ in self.switches]
        following = [*positions, math.inf][1:]
        return tuple(
            Tick(position, name if next_position - position >= _MIN_NAME_DISTANCE else "")
            for position, next_position, (_, name) in zip(
                positions, following, self.switches, strict=True
            )
        )


def chart(
    title: str,
    about: str,
    axis: Axis,
    series: Sequence[Series],
    format_value: Callable[[float], str],
    *,
    bars: bool = False,
) -> Chart:
    """Charts the series on one scale from zero."""
    top = _top(
        max((value for item in series for value in item.values if value is not None), default=0.0)
    )
    ticks = [top * share for share in (0.0, 0.5, 1.0)]
    return Chart(
        title=title,
        about=about,
        names=tuple(item.name for item in series),
        bars=tuple(_bars(item, axis, top) for item in series) if bars else (),
        lines=() if bars else tuple(_lines(item, axis, top) for item in series),
        values=tuple(Tick(_y(value, top), format_value(value)) for value in ticks),
        times=axis.times(),
        switches=axis.marks(),
        rows=tuple(_rows(axis, series, format_value)),
    )


def _top(highest: float) -> float:
    """Returns the smallest round number that is not below `highest`."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in _STEPS if step * power >= highest * (1 - 1e-9))


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)


def _bars(series: Series, axis: Axis, top: float) -> tuple[Bar, ...]:
    ground = HEIGHT - BOTTOM
    return tuple(
        Bar(axis.x(start), _y(value, top), max(axis.step - 1, 0.5), ground - _y(value, top))
        for start, value in zip(axis.starts, series.values, strict=True)
        if value
    )


def _lines(series: Series, axis: Axis, top: float) -> tuple[str, ...]:
    """Returns line segments, which break where there is no value."""
    lines: list[list[str]] = [[]]
    for start, value in zip(axis.starts, series.values, strict=True):
        if value is None:
            lines.append([])
        else:
            lines[-1].append(f"{axis.x(start) + axis.step / 2:.1f},{_y(value, top):.1f}")
    return tuple(" ".join(line) for line in lines if line)


def _rows(
    axis: Axis, series: Sequence[Series], format_value: Callable[[float], str]
) -> Sequence[tuple[str, ...]]:
    """Returns the rows, newest first, without periods that have no values."""
    rows = []
    for start, *values in zip(axis.starts, *(item.values for item in series), strict=True):
        if any(values):
            cells = ("–" if value is None else format_value(value) for value in values)
            rows.append((f"{start:%Y-%m-%d %H:%M}", *cells))
    return rows[::-1]
