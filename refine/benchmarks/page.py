"""The reliability plot of a benchmark, a self-contained page with it, and the files that a
benchmark leaves. Owns how they look. Does not format figures as text (report.py).
"""

import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from refine.benchmarks.reliability import draw_reliability
from refine.benchmarks.report import Result, as_json, by_set, notes, share
from refine.files import write_report

_COLUMNS = 3


def write(folder: Path, results: Sequence[Result], about: Mapping[str, str]) -> list[Path]:
    """Writes JSON, PNG and HTML into `folder` and returns their paths."""
    return write_report(
        folder,
        "benchmark",
        values=as_json(results, about),
        picture=picture(results, "png"),
        page=page(results, about),
    )


def picture(results: Sequence[Result], format_: str) -> bytes:
    """Draws a reliability plot for each set, in a format of matplotlib (png or svg)."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    sets = by_set(results)
    columns = min(_COLUMNS, len(sets))
    row_count = -(-len(sets) // columns)
    with matplotlib.rc_context({"font.family": "sans-serif", "svg.fonttype": "path"}):
        canvas = Canvas(
            figsize=(max(4.2, 3.6 * columns), 0.8 + 3.4 * row_count), layout="constrained"
        )
        FigureCanvasAgg(canvas)
        panels = list(canvas.subplots(row_count, columns, squeeze=False).flat)
        for panel in panels[len(sets) :]:
            panel.set_visible(False)
        for panel, set_results in zip(panels, sets.values(), strict=False):
            _panel(panel, set_results)
        handles, labels = _legend(panels)
        if handles:
            canvas.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
        buffer = io.BytesIO()
        canvas.savefig(buffer, format=format_, dpi=150)
    return buffer.getvalue()


def _panel(panel: Any, results: Sequence[Result]) -> None:
    """Draws one set, with a curve for each server."""
    benchmark = results[0].run.benchmark
    title = f"{benchmark.format} ({Path(benchmark.file).name})"
    curves = {result.run.address.name: result.scores.reliability for result in results}
    draw_reliability(panel, title, curves)


def _legend(panels: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Returns a legend entry for each server, whichever panels show it."""
    shown: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    return list(shown.values()), list(shown)


def page(results: Sequence[Result], about: Mapping[str, str]) -> str:
    """Returns an HTML page with the plot and the tables."""
    svg = picture(results, "svg").decode()
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in about.items()
    )
    return _PAGE.substitute(
        facts=facts,
        picture=svg[svg.index("<svg") :],
        tables="".join(_table(name, set_results) for name, set_results in by_set(results).items()),
    )


def _table(name: str, results: Sequence[Result]) -> str:
    names = [f"<th scope=col>{escape(result.run.address.name)}</th>" for result in results]
    rows = "".join(
        _row(figure, [result.cells[figure] for result in results]) for figure in results[0].cells
    )
    notes_html = "".join(f"<p>{escape(note)}</p>" for note in notes(results))
    return (
        f"<h2>{escape(name)}</h2>\n<div class=wide><table>\n<thead><tr><th scope=col>95% interval "
        f"in brackets</th>{''.join(names)}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
        f"{notes_html}{_groups(results)}"
    )


def _groups(results: Sequence[Result]) -> str:
    """Returns how often each group of the set is flagged, in a collapsed table."""
    rows = ""
    for group in sorted({name for result in results for name in result.scores.groups}):
        rates_by_server = [result.scores.groups.get(group, ()) for result in results]
        for kind in ("catch rate", "false-alarm rate"):
            rates = [next((r for r in rates if r.name == kind), None) for rates in rates_by_server]
            if any(rates):
                rows += _row(f"{group}: {kind}", [share(rate) for rate in rates])
    if not rows:
        return ""
    heads = "".join(f"<th scope=col>{escape(result.run.address.name)}</th>" for result in results)
    return (
        "<details><summary>By group</summary><div class=wide><table>\n"
        f"<thead><tr><th></th>{heads}</tr></thead><tbody>\n{rows}</tbody></table></div></details>\n"
    )


def _row(name: str, cells: Sequence[str]) -> str:
    tags = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f"<tr><th scope=row>{escape(name)}</th>{tags}</tr>\n"


_PAGE = Template(
    """<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<title>Setback: benchmarks</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem;
  color: #222; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; color: #444; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; } svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid #ddd; text-align: left;
  white-space: nowrap; }
thead th { border-bottom: 2px solid #888; }
</style>
<h1>Benchmarks</h1>
<dl>$facts</dl>
<figure role=img aria-label="Reliability: share of harmful rows by mean score; the dashed line is
perfect calibration">
$picture
</figure>
$tables
</html>
"""
)
