"""Charts as plain geometry, which the template chart.html draws. Owns scales, lines and ticks; what
is charted is traffic_page.py's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 28
_TIMES = 4
_NAME_WIDTH = 40
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Series:
    """One value per period, None where there is none, and how to write it."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, at `at` pixels."""

    at: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A bar on the ground line."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Chart:
    """A titled chart. bars: one list per series. lines: the same, as points of SVG polylines; a
    lone point is a line of one. rows: the same figures in words."""

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
    """The time that is charted: the start of each period, the end, and the adapter switches."""

    starts: tuple[datetime, ...]
    end: datetime
    switches: tuple[tuple[datetime, str], ...]

    @property
    def step(self) -> float:
        """The width of a period."""
        return (WIDTH - LEFT - RIGHT) / len(self.starts)

    def x(self, time: datetime) -> float:
        """Where a time is."""
        share = (time - self.starts[0]) / (self.end - self.starts[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def times(self) -> tuple[Tick, ...]:
        """Some of the periods' starts."""
        days = (self.end - self.starts[0]).days >= 2
        every = math.ceil(len(self.starts) / _TIMES)
        shown = "%d %b" if days else "%H:%M"
        return tuple(Tick(self.x(each), each.strftime(shown)) for each in self.starts[::every])

    def marks(self) -> tuple[Tick, ...]:
        """The switches; of some that are too close to each other the last one's name is written."""
        places = [self.x(time) for time, _ in self.switches]
        following = [*places, math.inf][1:]
        return tuple(
            Tick(at, name if after - at >= _NAME_WIDTH else "")
            for at, after, (_, name) in zip(places, following, self.switches, strict=True)
        )


def chart(
    title: str,
    about: str,
    axis: Axis,
    series: Sequence[Series],
    told: Callable[[float], str],
    *,
    bars: bool = False,
) -> Chart:
    """The series on one scale from zero; `told` writes a value."""
    top = _top(max((v for each in series for v in each.values if v is not None), default=0.0))
    ticks = [top * share for share in (0.0, 0.5, 1.0)]
    return Chart(
        title=title,
        about=about,
        names=tuple(each.name for each in series),
        bars=tuple(_bars(each, axis, top) for each in series) if bars else (),
        lines=() if bars else tuple(_lines(each, axis, top) for each in series),
        values=tuple(Tick(_y(value, top), told(value)) for value in ticks),
        times=axis.times(),
        switches=axis.marks(),
        rows=tuple(_rows(axis, series, told)),
    )


def _top(highest: float) -> float:
    """The least round number that is not below."""
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
    """Broken where there is no value."""
    lines: list[list[str]] = [[]]
    for start, value in zip(axis.starts, series.values, strict=True):
        if value is None:
            lines.append([])
        else:
            lines[-1].append(f"{axis.x(start) + axis.step / 2:.1f},{_y(value, top):.1f}")
    return tuple(" ".join(line) for line in lines if line)


def _rows(
    axis: Axis, series: Sequence[Series], told: Callable[[float], str]
) -> Sequence[tuple[str, ...]]:
    """Newest first, without the periods in which there was nothing."""
    rows = []
    for start, *values in zip(axis.starts, *(each.values for each in series), strict=True):
        if any(values):
            written = ("–" if value is None else told(value) for value in values)
            rows.append((f"{start:%Y-%m-%d %H:%M}", *written))
    return rows[::-1]
