"""Reports of adapters side by side: text, JSON, a picture and a page. Owns how measures look. The
page is self-contained: its picture is inside.
"""

import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from refine.evaluation.figures import Figure
from refine.evaluation.measures import LOWER_IS_BETTER, Measures
from refine.files import write_report

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Okabe and Ito's colours, which are distinct for readers with any colour vision."""
MARKS = "osD^vPX*"
_CELL = 23


def table(measured: Sequence[Measures]) -> str:
    """Returns a line per figure and a column per adapter: share and 95% interval."""
    names = figure_names(measured)
    width = max(map(len, names))
    heads = "".join(f"  {_title(measures):<{_CELL}}" for measures in measured)
    lines = [f"{'':<{width}}{heads}  cases", "-" * (width + len(heads) + 7)]
    for name in names:
        figures = [measures.figure(name) for measures in measured]
        cells = "".join(f"  {_cell(figure):<{_CELL}}" for figure in figures)
        cases = "/".join(dict.fromkeys(str(figure.n) for figure in figures if figure))
        lines.append(f"{name:<{width}}{cells}  {cases}{_direction(name)}")
    return "\n".join(line.rstrip() for line in lines)


def as_json(measured: Sequence[Measures], about: Mapping[str, str]) -> dict[str, Any]:
    """Returns all measures, by case, with the facts in `about`."""
    return {**about, "adapters": [measures.as_json() for measures in measured]}


def write(folder: Path, measured: Sequence[Measures], about: Mapping[str, str]) -> list[Path]:
    """Writes JSON, PNG and HTML into `folder` and returns their paths."""
    return write_report(
        folder,
        "evaluation",
        values=as_json(measured, about),
        picture=picture(measured, "png"),
        page=page(measured, about),
    )


def picture(measured: Sequence[Measures], format_: str) -> bytes:
    """Draws every figure with its 95% interval, in a format of matplotlib (png or svg)."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    names = figure_names(measured)
    kinds = [
        ("higher is better", [name for name in names if name not in LOWER_IS_BETTER]),
        ("lower is better", [name for name in names if name in LOWER_IS_BETTER]),
    ]
    shown = [(title, kind_names) for title, kind_names in kinds if kind_names]
    heights = [len(kind_names) for _, kind_names in shown]
    with matplotlib.rc_context({"font.family": "sans-serif", "svg.fonttype": "path"}):
        canvas = Canvas(figsize=(9.0, 1.8 + 0.42 * sum(heights)), layout="constrained")
        FigureCanvasAgg(canvas)
        panels = canvas.subplots(len(shown), 1, squeeze=False, height_ratios=heights, sharex=True)
        for (panel,), (title, kind_names) in zip(panels, shown, strict=True):
            _panel(panel, title, kind_names, measured)
        panels[-1][0].set_xlabel("share of cases, with 95% interval")
        canvas.legend(
            *panels[0][0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=4,
            frameon=False,
        )
        buffer = io.BytesIO()
        canvas.savefig(buffer, format=format_, dpi=150)
    return buffer.getvalue()


def _panel(panel: Any, title: str, names: Sequence[str], measured: Sequence[Measures]) -> None:
    """Draws a row per figure, with a mark and an interval per adapter."""
    step = 0.62 / max(1, len(measured))
    for index, measures in enumerate(measured):
        figures = [(row, measures.figure(name)) for row, name in enumerate(names)]
        rows = [(row_, figure_) for row_, figure_ in figures if figure_ is not None and figure_.n]
        shares = [figure.share for _, figure in rows]
        panel.errorbar(
            shares,
            [row + (index - (len(measured) - 1) / 2) * step for row, _ in rows],
            xerr=[
                [max(0.0, figure.share - figure.interval[0]) for _, figure in rows],
                [max(0.0, figure.interval[1] - figure.share) for _, figure in rows],
            ],
            fmt=MARKS[index % len(MARKS)],
            color=COLOURS[index % len(COLOURS)],
            label=_title(measures),
            markersize=6,
            linewidth=1.6,
            capsize=2.5,
        )
    panel.set_title(title, loc="left", fontsize=10, color="#444444")
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_xlim(-0.02, 1.02)
    panel.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    panel.grid(axis="x", color="#dddddd", linewidth=0.8)
    for row in range(1, len(names)):
        panel.axhline(row - 0.5, color="#eeeeee", linewidth=0.8)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.set_axisbelow(True)


def page(measured: Sequence[Measures], about: Mapping[str, str]) -> str:
    """Returns an HTML page with the picture and the table."""
    svg = picture(measured, "svg").decode()
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in about.items()
    )
    return _PAGE.substitute(
        facts=facts,
        picture=svg[svg.index("<svg") :],
        heads="".join(f"<th scope=col>{escape(_title(measures))}</th>" for measures in measured),
        rows="".join(_row(name, measured) for name in figure_names(measured)),
    )


def _row(name: str, measured: Sequence[Measures]) -> str:
    figures = [measures.figure(name) for measures in measured]
    cells = "".join(f"<td>{escape(_cell(figure))}</td>" for figure in figures)
    cases = "/".join(dict.fromkeys(str(figure.n) for figure in figures if figure))
    head = f"{escape(name)}<small>{escape(_direction(name))}</small>"
    return f"<tr><th scope=row>{head}</th>{cells}<td>{cases}</td></tr>\n"


def figure_names(measured: Sequence[Measures]) -> list[str]:
    """Returns the names of all figures of all adapters, in order."""
    return list(dict.fromkeys(figure.name for measures in measured for figure in measures.figures))


def _title(measures: Measures) -> str:
    return measures.adapter if measures.adapter == "base" else f"adapter {measures.adapter}"


def _cell(figure: Figure | None) -> str:
    if figure is None or math.isnan(figure.share):
        return "not measured"
    low, high = figure.interval
    return f"{figure.share:.1%} ({low:.1%} to {high:.1%})"


def _direction(name: str) -> str:
    return "  lower is better" if name in LOWER_IS_BETTER else ""


_PAGE = Template(
    """<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<title>Setback: adapters side by side</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  color: #222; background: #fff; }
h1 { font-size: 1.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; color: #444; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; } svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid #ddd; text-align: left;
  white-space: nowrap; }
thead th { border-bottom: 2px solid #888; }
small { color: #666; font-weight: 400; }
</style>
<h1>Adapters side by side</h1>
<dl>$facts</dl>
<figure role=img aria-label="Every figure with its interval; the table below has the numbers">
$picture
</figure>
<div class=wide><table>
<thead><tr><th scope=col>share (95% interval)</th>$heads<th scope=col>cases</th></tr></thead>
<tbody>
$rows</tbody>
</table></div>
</html>
"""
)
