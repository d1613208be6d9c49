"""`setback policy try --labelled`: what a policy file does to labelled lines, beside the policy in
force. Owns what is read for it and its output. Does not count (refine/calibrate/policy_trial.py).
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from guard.policy import Action, Policy
from refine.benchmarks.formats import read_set
from refine.benchmarks.rows import BenchmarkRow
from refine.calibrate.policy_trial import (
    THRESHOLDS,
    AtThreshold,
    LabelledTrial,
    RuleTrial,
    labelled_line,
    try_on_lines,
)
from refine.critic import Critic
from refine.evaluation.figures import Figure
from refine.served import PolicyText, ServedVerdict
from server.cli.terminal import print_json, print_table, reported_errors
from server.jobs.critics import known_critics
from server.jobs.labelled_lines import read_verdicts
from server.jobs.model_access import served_model
from server.launch.policies_in_force import policies_in_force
from server.settings import Settings, load_settings, with_refine


@dataclass(frozen=True)
class _Compared:
    """critic: whose verdicts were decided on, with its calibration."""

    critic: str
    tried: LabelledTrial
    in_force: LabelledTrial


def try_on_labelled_lines(
    policy: Policy, text: str, files: Sequence[Path], server: str | None, *, as_json: bool
) -> None:
    """Prints what a policy does to the lines of the files. text: of the file that it is from."""
    with reported_errors():
        settings = with_refine(load_settings(), server_url=server)
        rows = [row for path in files for row in read_set("jsonl", path).rows]
        compared = asyncio.run(_compared(settings, policy, text, rows))
    if as_json:
        trials = {"tried": compared.tried, "in_force": compared.in_force}
        fields = {name: _trial_fields(trial) for name, trial in trials.items()}
        print_json({"lines": len(rows), "critic": compared.critic, **fields})
        return
    _print(compared, len(rows))


async def _compared(
    settings: Settings, policy: Policy, tried_text: str, rows: Sequence[BenchmarkRow]
) -> _Compared:
    """Compares a policy of a file with the one of its name in force, or else the default one."""
    text, policies = await policies_in_force(settings.policy_file, settings.database_url)
    current = policies.find(policy.name) or policies.default
    tried, in_force = PolicyText(tried_text, policy.name), PolicyText(text, current.name)
    async with served_model(settings) as model:
        info = await model.info()
        critic = (await known_critics(settings, info)).of(info.active)
        verdicts = await read_verdicts(model, rows, critic.adapter, tried)
        others = verdicts
        if not {*current.criteria} <= {*policy.criteria}:
            others = await read_verdicts(model, rows, critic.adapter, in_force)
    return _Compared(
        critic.name,
        _trial(policy, critic, rows, verdicts),
        _trial(current, critic, rows, others),
    )


def _trial(
    policy: Policy,
    critic: Critic,
    rows: Sequence[BenchmarkRow],
    verdicts: Sequence[ServedVerdict],
) -> LabelledTrial:
    scales = critic.scales
    lines = [
        labelled_line(row, one, scales.of(is_answer=row.kind == "answer").apply(one.harm), policy)
        for row, one in zip(rows, verdicts, strict=True)
    ]
    return try_on_lines(policy, lines)


def _print(compared: _Compared, lines: int) -> None:
    tried, in_force = compared.tried, compared.in_force
    typer.echo(
        f"Policy {tried.policy.name} ({tried.policy.hash}) on {lines} labelled lines, beside "
        f"{in_force.policy.name} ({in_force.policy.hash}), which is in force; verdicts of "
        f"{compared.critic}."
    )
    print_table(("", "Tried", "In force"), _whole(tried, in_force))
    for heading, trial in (("tried", tried), ("in force", in_force)):
        columns = ("Caught (95%)", "False alarms (95%)")
        print_table((f"Rule {heading}", "From", "Action", *columns), _rules(trial))
    typer.echo("Caught / false alarms of the rules tried, at other thresholds:")
    print_table(("Rule", *(f"{one:g}" for one in THRESHOLDS)), _thresholds(tried))
    for name in tried.untried:
        typer.echo(f"The criterion {name} was not tried: no line is of a kind that it applies to.")


def _whole(tried: LabelledTrial, in_force: LabelledTrial) -> Iterator[tuple[str, str, str]]:
    yield "caught", _share(tried.caught), _share(in_force.caught)
    yield "false alarms", _share(tried.false_alarms), _share(in_force.false_alarms)
    for action in Action:
        one, other = tried.actions[action], in_force.actions[action]
        if any((*one, *other)):
            yield action.value, _by_label(one), _by_label(other)


def _by_label(counts: tuple[int, int]) -> str:
    right, wrong = counts
    return f"{right} to be flagged, {wrong} others"


def _rules(trial: LabelledTrial) -> Iterator[tuple[str, ...]]:
    for one in filter(_is_shown, trial.rules):
        caught, alarms = one.figures.caught, one.figures.false_alarms
        yield (
            one.name,
            f"{one.rule.threshold:g}" if one.others else "found",
            one.rule.action.value,
            _share(caught) if caught else "no labelled line",
            _share(alarms),
        )


def _thresholds(trial: LabelledTrial) -> Iterator[tuple[str, ...]]:
    for one in filter(_is_shown, trial.rules):
        if one.others:
            yield one.name, *map(_counts, one.others)


def _is_shown(one: RuleTrial) -> bool:
    """Whether lines have the rule's label, or it applies to any at some threshold."""
    return any(at.caught is not None or at.false_alarms.hits for at in (one.figures, *one.others))


def _counts(at: AtThreshold) -> str:
    return f"{at.caught.hits if at.caught else '-'}/{at.false_alarms.hits}"


def _share(figure: Figure) -> str:
    if not figure.n:
        return "no labelled line"
    low, high = figure.interval
    return f"{figure.hits} of {figure.n} ({low:.0%} to {high:.0%})"


def _trial_fields(trial: LabelledTrial) -> dict[str, Any]:
    return {
        "policy": trial.policy.name,
        "hash": trial.policy.hash,
        "caught": _figure_fields(trial.caught),
        "false_alarms": _figure_fields(trial.false_alarms),
        "actions": {
            action.value: {"to_be_flagged": right, "others": wrong}
            for action, (right, wrong) in trial.actions.items()
        },
        "rules": [
            {
                "rule": one.name,
                "action": one.rule.action,
                **_at_fields(one.figures),
                "thresholds": [_at_fields(at) for at in one.others],
            }
            for one in trial.rules
        ],
        "untried": trial.untried,
    }


def _at_fields(at: AtThreshold) -> dict[str, Any]:
    return {
        "threshold": at.threshold,
        "caught": _figure_fields(at.caught) if at.caught else None,
        "false_alarms": _figure_fields(at.false_alarms),
    }


def _figure_fields(figure: Figure) -> dict[str, Any]:
    fields = figure.as_json()
    return {name: fields[name] for name in ("hits", "n", "share", "low", "high")}
