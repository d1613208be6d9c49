"""`setback calibrate`: fits what the served model says of harm to labelled lines, keeps the fit
with the adapter, and proposes thresholds. Owns the command's arguments and output; the fit and the
rule are refine/calibrate's.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from guard.policy import load_policy
from guard.store.calibrations import CalibrationStore
from guard.verdict import Verdict
from refine.benchmarks.formats import read_set
from refine.benchmarks.rows import BenchmarkRow
from refine.calibrate.fit import Fit, LabelledVerdict, fit
from refine.calibrate.plot import save_plot
from refine.calibrate.thresholds import Proposals, policy_text, propose
from refine.evaluation.figures import Figure
from refine.served import Adapter, ServedInfo, ServedModel, ServedVerdict
from server.cli.terminal import operator, print_fields, print_table, reported_errors
from server.jobs.model_access import served_model
from server.settings import Settings, load_settings, with_refine


@dataclass(frozen=True)
class _Read:
    """What the served model says of the labelled lines. adapter: None for the base alone."""

    info: ServedInfo
    adapter: int | None
    verdicts: tuple[LabelledVerdict, ...]


def calibrate(
    file: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            help='JSON lines that nothing was learned from: {"text", or "request" or "messages" '
            'with "answer" or without, "label", "category" (optional)}; again for more files.',
        ),
    ],
    max_false_alarms: Annotated[
        str, typer.Option(metavar="SHARE", help="What thresholds may cost, as 2% or 0.02.")
    ] = "2%",
    base: Annotated[
        bool, typer.Option("--base", help="Calibrate the base alone, not the adapter in force.")
    ] = False,
    policy: Annotated[
        Path | None,
        typer.Option(help="Gets a policy file with the thresholds and the policy's own actions."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Gets the reliability before and after (png, svg, pdf).")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="The running server, not refine.server_url.")
    ] = None,
) -> None:
    """Fit verdicts to labelled lines; the fit is in force within seconds, a policy only written."""
    share = _share(max_false_alarms)
    with reported_errors():
        settings = with_refine(load_settings(), server_url=server)
        rows = [row for path in file for row in read_set("jsonl", path).rows]
        read = asyncio.run(_read(settings, rows, base=base))
        fitted = fit(read.verdicts)
        asyncio.run(_keep(settings, read, fitted))
    proposals = propose(
        read.verdicts, [fitted.calibration.apply(v.harm) for v in read.verdicts], share
    )
    _tell(read, fitted, proposals)
    if plot is not None:
        save_plot(fitted, _named(read), plot)
    if policy is not None:
        thresholds = {each.category: each.threshold for each in proposals.by_category}
        policy.write_text(policy_text(load_policy(settings.policy_file), thresholds), "utf-8")
        typer.echo(
            f"{policy} holds these thresholds; SETBACK_POLICY_FILE={policy} puts them in force"
        )


def _share(text: str) -> float:
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = -1
    share = number / 100 if text.endswith("%") else number
    if not 0 <= share < 1:
        raise typer.BadParameter(
            f"{text!r} is no share; write 2% or 0.02", param_hint="--max-false-alarms"
        )
    return share


async def _read(settings: Settings, rows: Sequence[BenchmarkRow], *, base: bool) -> _Read:
    async with served_model(settings) as model:
        info = await model.info()
        version = None if base else info.active
        said = await _verdicts(model, rows, "base" if version is None else version)
    found = [
        LabelledVerdict(
            verdict.harm,
            row.harmful,
            Verdict(verdict.harm, verdict.category_scores).named,
            row.category,
        )
        for row, verdict in zip(rows, said, strict=True)
    ]
    return _Read(info, version, tuple(found))


async def _verdicts(
    model: ServedModel, rows: Sequence[BenchmarkRow], adapter: Adapter
) -> list[ServedVerdict]:
    """In the order of the rows: answers in their conversations, all else by its last turn."""
    answers = [list(row.messages) for row in rows if row.kind == "answer"]
    texts = [row.messages[-1]["content"] for row in rows if row.kind != "answer"]
    on_answers = iter(await model.verdicts("conversations", answers, adapter=adapter))
    on_texts = iter(await model.verdicts("texts", texts, adapter=adapter))
    return [next(on_answers if row.kind == "answer" else on_texts) for row in rows]


async def _keep(settings: Settings, read: _Read, fitted: Fit) -> None:
    store = CalibrationStore(settings.database_url)
    try:
        await store.add(
            adapter=read.adapter,
            model_revision=read.info.model_revision,
            calibration=fitted.calibration,
            rows=len(read.verdicts),
            by=operator(),
        )
    finally:
        await store.close()


def _named(read: _Read) -> str:
    return f"{read.info.model}, {'the base' if read.adapter is None else f'adapter {read.adapter}'}"


def _tell(read: _Read, fitted: Fit, proposals: Proposals) -> None:
    scale = fitted.calibration
    errors = [scores.calibration_error for scores in (fitted.before, fitted.after)]
    print_fields(
        {
            "calibrated": f"{_named(read)}, on {len(read.verdicts)} lines",
            "temperature": f"{1 / scale.slope:.3f}",
            "bias": f"{scale.intercept:+.3f}",
            **{
                f"calibration error {when}": (
                    f"{error.value:.3f} ({error.low:.3f} to {error.high:.3f})"
                )
                for when, error in zip(("before", "after"), errors, strict=True)
                if error is not None
            },
            "false alarms at the thresholds": _told(proposals.false_alarms),
            "caught at the thresholds": _told(proposals.caught),
        }
    )
    print_table(
        ("Category", "Threshold", "False alarms (95% interval)", "Caught (95% interval)"),
        (
            (
                each.category,
                f"{each.threshold:g}",
                _told(each.false_alarms),
                _told(each.caught) if each.caught else "no labelled line",
            )
            for each in proposals.by_category
        ),
    )


def _told(figure: Figure) -> str:
    low, high = figure.interval
    return f"{figure.share:.1%} ({low:.1%} to {high:.1%}, n={figure.n})"
