"""The positions of bars, lines, gaps and switches in charts."""

from datetime import UTC, datetime, timedelta

import pytest

from server.console.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Chart,
    Series,
    chart,
)

NOON = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
GROUND = HEIGHT - BOTTOM
STEP = (WIDTH - LEFT - RIGHT) / 4


def axis(*switches: tuple[datetime, str]) -> Axis:
    """Four hours from noon on."""
    return Axis(tuple(NOON + hours * HOUR for hours in range(4)), NOON + 4 * HOUR, switches)


def drawn(*values: float | None, bars: bool = False) -> Chart:
    return chart("T", "of it", axis(), [Series("a", values)], lambda v: f"{v:g} of", bars=bars)


def test_bars_stand_on_the_base_line() -> None:
    (bars,) = drawn(5, 0, None, 10, bars=True).bars
    assert [bar.x for bar in bars] == [LEFT, LEFT + 3 * STEP]
    assert [bar.y + bar.height for bar in bars] == [GROUND, GROUND]
    assert [bar.height for bar in bars] == [(GROUND - TOP) / 2, GROUND - TOP]
    assert bars[0].x + bars[0].width < bars[0].x + STEP
    assert bars[1].x + bars[1].width <= WIDTH - RIGHT


def test_lines_break_where_nothing_is_known() -> None:
    (lines,) = drawn(0.0, 1.0, None, 0.5).lines
    middle = [LEFT + (index + 0.5) * STEP for index in range(4)]
    half = (TOP + GROUND) / 2
    assert lines == (
        f"{middle[0]:.1f},{GROUND:.1f} {middle[1]:.1f},{TOP:.1f}",
        f"{middle[3]:.1f},{half:.1f}",
    )


def test_a_chart_without_values() -> None:
    empty = drawn(None, None, None, None)
    assert empty.lines == ((),)
    assert empty.rows == ()
    assert [tick.text for tick in empty.values] == ["0 of", "0.5 of", "1 of"]


@pytest.mark.parametrize(
    ("highest", "top"),
    [(1, 1), (1.01, 2), (2.5, 2.5), (3, 5), (7, 10), (1000, 1000), (1001, 2000), (0.03, 0.05)],
)
def test_the_scale_ends_at_a_round_number(highest: float, top: float) -> None:
    values = drawn(highest, 0, 0, 0).values
    assert values[-1].text == f"{top:g} of"
    assert [tick.at for tick in values] == [GROUND, (GROUND + TOP) / 2, TOP]


def test_all_series_share_a_scale() -> None:
    both = chart("T", "", axis(), [Series("a", (8, 0, 0, 0)), Series("b", (4, 0, 0, 0))], str)
    assert [line[0].split()[0].partition(",")[2] for line in both.lines] == [
        f"{GROUND - share * (GROUND - TOP):.1f}" for share in (0.8, 0.4)
    ]


def test_switches_stand_at_their_time() -> None:
    switched = axis((NOON, "base"), (NOON + 2 * HOUR, "7"), (NOON + timedelta(minutes=210), "8"))
    marks = chart("T", "", switched, [Series("a", (None,) * 4)], str).switches
    assert [mark.text for mark in marks] == ["base", "7", "8"]
    assert [mark.at for mark in marks] == [LEFT, LEFT + 2 * STEP, LEFT + 3.5 * STEP]


def test_times_are_hours_within_a_day_and_days_beyond() -> None:
    times = drawn(1, 1, 1, 1).times
    assert [tick.text for tick in times] == ["12:00", "13:00", "14:00", "15:00"]
    assert [tick.at for tick in times] == [LEFT + index * STEP for index in range(4)]
    starts = tuple(NOON + 6 * index * HOUR for index in range(120))
    month = Axis(starts, NOON + 720 * HOUR, ())
    assert [tick.text for tick in month.times()] == ["25 Nov", "03 Dec", "10 Dec", "18 Dec"]


def test_the_table_has_the_newest_first_and_no_empty_rows() -> None:
    series = [Series("a", (1.0, 0.0, None, 3.0)), Series("b", (None, 0.0, None, 0.0))]
    rows = chart("T", "", axis(), series, lambda v: f"{v:g}").rows
    assert rows == (("2026-11-25 15:00", "3", "0"), ("2026-11-25 12:00", "1", "–"))
