"""`setback calibrate`: fits the served model's verdicts to labelled lines, stores the fit for the
adapter, and proposes thresholds. Owns the command's arguments and output. Does not fit or choose
thresholds (refine/calibrate).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from guard.calibration import Calibration
from guard.policy_file import load_policy
from guard.store.calibrations import CalibrationStore
from guard.verdict import Verdict
from refine.benchmarks.formats import read_set
from refine.benchmarks.rows import BenchmarkRow
from refine.calibrate.fit import Fit, LabelledVerdict, fit
from refine.calibrate.plot import save_plot
from refine.calibrate.thresholds import Proposals, policy_text, propose
from refine.evaluation.figures import Figure
from refine.served import ServedInfo
from server.cli.terminal import operator, print_fields, print_table, reported_errors
from server.jobs.labelled_lines import read_verdicts
from server.jobs.model_access import served_model
from server.settings import Settings, load_settings, with_refine


@dataclass(frozen=True)
class _Verdicts:
    """The served model's verdicts on the labelled lines. adapter: None for the base model."""

    info: ServedInfo
    adapter: int | None
    verdicts: tuple[LabelledVerdict, ...]


def calibrate(
    file: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            help='JSON lines that were not trained on: {"text", or "request" or "messages" '
            'with or without "answer", "label", "category" (optional)}; repeatable.',
        ),
    ],
    max_false_alarms: Annotated[
        str, typer.Option(metavar="SHARE", help="The most false alarms allowed: 2% or 0.02.")
    ] = "2%",
    base: Annotated[
        bool, typer.Option("--base", help="Calibrate the base model, not the active adapter.")
    ] = False,
    policy: Annotated[
        Path | None,
        typer.Option(help="Write a policy file with the thresholds and the policy's own actions."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Plot the reliability before and after (png, svg, pdf).")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="The running server; overrides refine.server_url.")
    ] = None,
) -> None:
    """Fit verdicts to labelled lines. The fit applies within seconds; a policy is only written."""
    share = _share(max_false_alarms)
    with reported_errors():
        settings = with_refine(load_settings(), server_url=server)
        rows = [row for path in file for row in read_set("jsonl", path).rows]
        collected = asyncio.run(_collect_verdicts(settings, rows, base=base))
        fit_ = fit(collected.verdicts)
        asyncio.run(_store_calibration(settings, collected, fit_))
    proposals = propose(
        collected.verdicts,
        [fit_.apply(verdict) for verdict in collected.verdicts],
        share,
    )
    _print_result(collected, fit_, proposals)
    if plot is not None:
        save_plot(fit_, _model_name(collected), plot)
    if policy is not None:
        thresholds = {proposal.category: proposal.threshold for proposal in proposals.by_category}
        policy.write_text(policy_text(load_policy(settings.policy_file), thresholds), "utf-8")
        typer.echo(f"{policy} has these thresholds; set SETBACK_POLICY_FILE={policy} to use them")


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1
    share = value / 100 if text.endswith("%") else value
    if not 0 <= share < 1:
        raise typer.BadParameter(
            f"{text!r} is not a share; write 2% or 0.02", param_hint="--max-false-alarms"
        )
    return share


async def _collect_verdicts(
    settings: Settings, rows: Sequence[BenchmarkRow], *, base: bool
) -> _Verdicts:
    async with served_model(settings) as model:
        info = await model.info()
        version = None if base else info.active
        verdicts = await read_verdicts(model, rows, "base" if version is None else version)
    labelled = [
        LabelledVerdict(
            verdict.harm,
            row.harmful,
            Verdict(verdict.harm, verdict.category_scores).named,
            row.category,
            is_answer=row.kind == "answer",
        )
        for row, verdict in zip(rows, verdicts, strict=True)
    ]
    return _Verdicts(info, version, tuple(labelled))


async def _store_calibration(settings: Settings, collected: _Verdicts, fit_: Fit) -> None:
    store = CalibrationStore(settings.database_url)
    try:
        await store.add(
            adapter=collected.adapter,
            model_revision=collected.info.model_revision,
            scales=fit_.scales,
            rows=len(collected.verdicts),
            by=operator(),
        )
    finally:
        await store.close()


def _model_name(collected: _Verdicts) -> str:
    adapter = "the base" if collected.adapter is None else f"adapter {collected.adapter}"
    return f"{collected.info.model}, {adapter}"


def _print_result(collected: _Verdicts, fit_: Fit, proposals: Proposals) -> None:
    errors = [scores.calibration_error for scores in (fit_.before, fit_.after)]
    print_fields(
        {
            "calibrated": f"{_model_name(collected)}, on {len(collected.verdicts)} lines",
            "scale of answers": _scale(fit_.scales.answers),
            "scale of texts": _scale(fit_.scales.texts),
            **{
                f"calibration error {moment}": (
                    f"{error.value:.3f} ({error.low:.3f} to {error.high:.3f})"
                )
                for moment, error in zip(("before", "after"), errors, strict=True)
                if error is not None
            },
            "false alarms at the thresholds": _interval(proposals.false_alarms),
            "caught at the thresholds": _interval(proposals.caught),
        }
    )
    print_table(
        ("Category", "Threshold", "False alarms (95% interval)", "Caught (95% interval)"),
        (
            (
                proposal.category,
                f"{proposal.threshold:g}",
                _interval(proposal.false_alarms),
                _interval(proposal.caught) if proposal.caught else "no labelled line",
            )
            for proposal in proposals.by_category
        ),
    )


def _scale(calibration: Calibration) -> str:
    return f"temperature {1 / calibration.slope:.3f}, bias {calibration.intercept:+.3f}"


def _interval(figure: Figure) -> str:
    low, high = figure.interval
    return f"{figure.share:.1%} ({low:.1%} to {high:.1%}, n={figure.n})"
