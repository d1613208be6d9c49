"""`setback policy`: checks a policy file, and tries it on stored flags. Owns the commands' options
and output. Decides nothing (guard/policy_trial.py).
"""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from guard.policy_file import load_policy
from guard.policy_trial import Trial, try_policy
from guard.store.review import Filter, ReviewStore
from refine.schedule import parse_duration
from server.cli.terminal import AsJson, ask, print_json, print_table, reported_errors, when

policy = typer.Typer(help="The policy: what is done about which harm.", no_args_is_help=True)

PolicyFile = Annotated[
    Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A policy file.")
]
_MOST_FLAGS = 100_000
_SHOWN_NUMBERS = 8


@policy.command("check")
def policy_check(file: PolicyFile, as_json: AsJson = False) -> None:
    """Read a policy file and print its rules, or what is wrong with it."""
    with reported_errors():
        read = load_policy(file)
    if as_json:
        print_json(asdict(read))
        return
    typer.echo(f"Policy {read.hash}: {len(read.criteria)} criteria beside the categories.")
    rules = (
        (name, f"{read.rules[name].threshold:.2f}", read.rules[name].action.value)
        for name in read.names
    )
    print_table(("Rule", "From", "Action"), rules)


@policy.command("try")
def policy_try(
    file: PolicyFile,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="How far back: 12h, 30d, 90d.")
    ] = "30d",
    as_json: AsJson = False,
) -> None:
    """Say what a policy file would have done to the flags that are stored."""
    with reported_errors():
        tried = load_policy(file)
    try:
        begin = datetime.now(UTC) - parse_duration(since)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(str(error), param_hint="--since") from None
    which = Filter(since=begin)
    trial = try_policy(tried, ask(ReviewStore, lambda store: store.page(which, _MOST_FLAGS)))
    if as_json:
        print_json({"policy": tried.hash, "since": begin, **_trial_fields(trial)})
        return
    typer.echo(f"Policy {tried.hash} on {trial.flags} flags since {when(begin)} UTC.")
    if trial.flags:
        columns = "Was", "Would be", "Flags", "Confirmed", "Dismissed", "Such as"
        print_table(columns, _rows(trial))
    for name, count in trial.unread.items():
        typer.echo(f"The criterion {name} was not read then in {count} of them: it counts as no.")


def _rows(trial: Trial) -> list[tuple[str, ...]]:
    return [
        (
            was.value,
            "the same" if was is then else then.value,
            str(len(change.flags)),
            str(change.confirmed),
            str(change.dismissed),
            ", ".join(map(str, change.flags[:_SHOWN_NUMBERS])),
        )
        for (was, then), change in sorted(trial.changes.items())
    ]


def _trial_fields(trial: Trial) -> dict[str, Any]:
    changes = [
        {"was": was, "would_be": then, **asdict(change)}
        for (was, then), change in sorted(trial.changes.items())
    ]
    return {"changes": changes, "unread": trial.unread}
