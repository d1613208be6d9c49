"""`setback policy`: checks a policy file, tries it on stored flags or labelled lines, and activates
it. Owns the commands' options, and the output for flags. Decides nothing (guard/policy_trial.py).
"""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from guard.criteria import Place
from guard.policy import DEFAULT_POLICY, Policy
from guard.policy_file import load_policies, parse_policies, read_text
from guard.policy_trial import Trial, try_policy
from guard.store.policies import PolicyStore
from guard.store.review import Filter, ReviewStore
from refine.schedule import parse_duration
from server.cli.terminal import (
    AsJson,
    ask,
    operator,
    print_json,
    print_table,
    reported_errors,
    when,
)

app = typer.Typer(help="The policy: what is done about which harm.", no_args_is_help=True)

PolicyFile = Annotated[
    Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A policy file.")
]
_MOST_FLAGS = 100_000
_SHOWN_NUMBERS = 8


@app.command("check")
def policy_check(file: PolicyFile, as_json: AsJson = False) -> None:
    """Read a policy file and print its rules, or what is wrong with it."""
    with reported_errors():
        policies = load_policies(file)
    if as_json:
        print_json([asdict(policy) for policy in policies])
        return
    for policy in policies:
        typer.echo(
            f"Policy {policy.name} ({policy.hash}): {len(policy.criteria)} criteria beside the "
            f"categories{', in shadow' if policy.shadow else ''}."
        )
        print_table(("Rule", "From", "Action"), _rules(policy))


@app.command("activate")
def policy_activate(file: PolicyFile) -> None:
    """Put a policy file in force for all servers of the database that have none set."""
    with reported_errors():
        text = read_text(file)
        parse_policies(text, str(file))
    ask(PolicyStore, lambda store: store.activate(text, by=operator()))
    typer.echo("Servers without SETBACK_POLICY_FILE follow within seconds.")


@app.command("try")
def policy_try(
    file: PolicyFile,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Flags: how far back, as 12h, 30d or 90d; default 30d."),
    ] = None,
    name: Annotated[
        str,
        typer.Option("--policy", metavar="NAME", help="The one of the file's to try."),
    ] = DEFAULT_POLICY,
    labelled: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Try it on labelled JSON lines instead, which the running server reads: those of "
            'calibrate, with "criterion" (optional); repeatable.',
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="Labelled lines: the running server; overrides refine.server_url."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a policy file does to the flags that are stored, or to labelled lines."""
    with reported_errors():
        text = read_text(file)
        tried = parse_policies(text, str(file)).find(name)
    if tried is None:
        raise typer.BadParameter(f"the file has no policy {name!r}", param_hint="--policy")
    if labelled:
        if since is not None:
            raise typer.BadParameter("it is for flags; leave out --labelled", param_hint="--since")
        # Imported here because it imports vLLM's metrics, which other commands do not need.
        from server.cli.labelled_trial import try_on_labelled_lines

        try_on_labelled_lines(tried, text, labelled, server, as_json=as_json)
        return
    if server is not None:
        raise typer.BadParameter("it needs --labelled", param_hint="--server")
    _try_on_flags(tried, since or "30d", as_json=as_json)


def _try_on_flags(tried: Policy, since: str, *, as_json: bool) -> None:
    try:
        begin = datetime.now(UTC) - parse_duration(since)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(str(error), param_hint="--since") from None
    which = Filter(since=begin, place=Place.OUTPUT)
    trial = try_policy(tried, ask(ReviewStore, lambda store: store.page(which, _MOST_FLAGS)))
    if as_json:
        print_json({"policy": tried.hash, "since": begin, **_trial_fields(trial)})
        return
    typer.echo(
        f"Policy {tried.name} ({tried.hash}) on {trial.flags} flags since {when(begin)} UTC."
    )
    if trial.flags:
        columns = "Was", "Would be", "Flags", "Confirmed", "Dismissed", "Such as"
        print_table(columns, _rows(trial))
    for name, count in trial.unread.items():
        typer.echo(f"The criterion {name} was not read then in {count} of them: it counts as no.")


def _rules(policy: Policy) -> Iterator[tuple[str, str, str]]:
    for name in policy.names:
        rule, criterion = policy.rules[name], policy.criterion(name)
        is_read = criterion is None or criterion.is_read
        yield name, f"{rule.threshold:.2f}" if is_read else "found", rule.action.value


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
