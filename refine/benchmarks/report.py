"""Benchmarks of several servers side by side: a table and JSON. Owns how figures look. Does not
compute them (scores.py), draw the plot and the page, or write files (page.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from refine.benchmarks.benchmark import BenchmarkRun
from refine.benchmarks.scores import Estimate, Judged, Scores, score
from refine.evaluation.figures import Figure

_CELL = 26
_NO_VALUE = "-"


@dataclass(frozen=True)
class Result:
    """One set on one server, with its figures."""

    run: BenchmarkRun

    @cached_property
    def scores(self) -> Scores:
        """The figures, cached because the bootstrap takes a moment."""
        return score(
            [
                Judged(
                    row.harmful,
                    stored.verdict.flagged,
                    stored.verdict.score,
                    stored.session,
                    stored.at,
                    row.group,
                )
                for row, stored in self.run.judged
            ]
        )

    @cached_property
    def cells(self) -> dict[str, str]:
        """Every formatted figure, in the order of the table."""
        scores, run = self.scores, self.run
        return {
            "average precision": _number(scores.average_precision),
            "  of chance": f"{scores.prevalence:.3f}" if scores.n else _NO_VALUE,
            "F1": _number(scores.f1),
            "catch rate": share(scores.catch_rate),
            "false-alarm rate": share(scores.false_alarm_rate),
            "calibration error": _number(scores.calibration_error),
            "requests per second": _number(scores.requests_per_second, digits=1),
            "rows (harmful)": f"{scores.n} ({scores.harmful})",
            "rows without a verdict": str(run.failed),
        }

    def as_json(self) -> dict[str, Any]:
        """Returns everything except the texts."""
        run, scores = self.run, self.scores
        return {
            "server": run.address.name,
            "url": run.address.url,
            **asdict(run.identity),
            "manner": run.manner,
            "set": run.benchmark.format,
            "file": run.benchmark.file,
            "sha256": run.benchmark.sha256,
            "left_out": dict(run.benchmark.left_out),
            "drawn": run.drawn,
            "failures": dict(run.failures),
            "n": scores.n,
            "harmful": scores.harmful,
            "scored": scores.scored,
            "prevalence": scores.prevalence if scores.n else None,
            "average_precision": _estimate(scores.average_precision),
            "f1": _estimate(scores.f1),
            "catch_rate": _figure(scores.catch_rate),
            "false_alarm_rate": _figure(scores.false_alarm_rate),
            "calibration_error": _estimate(scores.calibration_error),
            "requests_per_second": _estimate(scores.requests_per_second),
            "reliability": [
                {"score": bin_.score, **bin_.harmful.as_json()} for bin_ in scores.reliability
            ],
            "groups": {
                name: [rate.as_json() for rate in rates] for name, rates in scores.groups.items()
            },
        }


def by_set(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Returns the results by set, in order."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.run.benchmark.name, []).append(result)
    return grouped


def table(results: Sequence[Result]) -> str:
    """Returns a block for each set, with a line per figure and a column per server."""
    return "\n\n".join(_block(name, set_results) for name, set_results in by_set(results).items())


def _block(name: str, results: Sequence[Result]) -> str:
    width = max(map(len, results[0].cells))
    heads = "".join(f"  {result.run.address.name:<{_CELL}}" for result in results)
    lines = [name, f"{'':<{width}}{heads}", "-" * (width + len(heads))]
    for figure in results[0].cells:
        cells = "".join(f"  {result.cells[figure]:<{_CELL}}" for result in results)
        lines.append(f"{figure:<{width}}{cells}")
    return "\n".join([line.rstrip() for line in lines] + notes(results))


def notes(results: Sequence[Result]) -> list[str]:
    """Returns remarks on the figures: rows that were left out, and failures with reasons."""
    remarks = []
    left_out = results[0].run.benchmark.left_out
    if left_out:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in left_out.items())
        remarks.append(f"Left out of the set: {reasons}.")
    for result in results:
        most_frequent = sorted(result.run.failures.items(), key=lambda item: -item[1])[:3]
        if most_frequent:
            reasons = "; ".join(f"{count} x {reason}" for reason, count in most_frequent)
            remarks.append(
                f"{result.run.address.name}: no verdict for {result.run.failed}: {reasons}"
            )
        if result.scores.scored < result.scores.n:
            missing = result.scores.n - result.scores.scored
            remarks.append(
                f"{result.run.address.name}: {missing} verdicts came without scores, so there is "
                "no average precision and no calibration error."
            )
    return remarks


def as_json(results: Sequence[Result], about: Mapping[str, str]) -> dict[str, Any]:
    """Returns every result, with the facts in `about`."""
    return {**about, "results": [result.as_json() for result in results]}


def share(figure: Figure | None) -> str:
    """Formats a rate in percent with its interval."""
    if figure is None:
        return _NO_VALUE
    low, high = figure.interval
    return f"{figure.share:.1%} ({low:.1%} to {high:.1%})"


def _number(estimate: Estimate | None, digits: int = 3) -> str:
    if estimate is None:
        return _NO_VALUE
    value, low, high = (
        f"{number:.{digits}f}" for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low} to {high})"


def _estimate(estimate: Estimate | None) -> dict[str, float | None] | None:
    return None if estimate is None else estimate.as_json()


def _figure(figure: Figure | None) -> dict[str, object] | None:
    return None if figure is None else figure.as_json()
