"""`setback adapters rollout`: the staged rollout of an adapter. Owns these commands' output.
Servers pick a rollout up within adapter_poll_s and decide on it (server/jobs/rollouts.py).
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from guard.store.rollouts import RolloutStore, StoredRollout, parse_share
from server.cli.terminal import (
    AsJson,
    ask,
    fail,
    operator,
    print_fields,
    print_json,
    printable,
    reported_errors,
    when,
)
from server.jobs.rollout_decision import Standing, margins_of, standing
from server.settings import load_settings

rollout = typer.Typer(help="The staged rollout of an adapter.", no_args_is_help=True)

Share = Annotated[
    str | None,
    typer.Option(
        help="Give it only this share of requests at first, such as 5%, until a comparison with "
        "the active one completes or reverts that."
    ),
]


def start_rollout(number: int, share: str, by: str, reason: str, as_json: bool) -> None:
    """Starts a rollout and prints it."""
    try:
        parsed = parse_share(share)
    except ValueError as error:
        fail(f"--share: {error}", code=2)
    started = ask(
        RolloutStore, lambda store: store.start(number, share=parsed, by=by, reason=reason)
    )
    if as_json:
        print_json(asdict(started))
    else:
        typer.echo(f"{_named(started)}. `setback adapters rollout show` shows how it stands.")


@rollout.command("show")
def rollout_show(as_json: AsJson = False) -> None:
    """Show the newest rollout: how the new adapter does beside the old one, and how it ended."""
    with reported_errors():
        margins = margins_of(load_settings())

    async def query(store: RolloutStore) -> Sequence[Standing]:
        return await standing(store, margins, limit=1)

    newest = ask(RolloutStore, query)
    if not newest:
        fail("there was no rollout; `setback adapters promote N --share 5%` starts one", code=1)
    if as_json:
        print_json(asdict(newest[0]))
    else:
        _print(newest[0])


@rollout.command("stop")
def rollout_stop(
    reason: Annotated[str, typer.Option(help="The reason; kept in the history.")] = "",
    as_json: AsJson = False,
) -> None:
    """Stop the running rollout. The active adapter answers everything again."""
    by = operator()
    stopped = ask(RolloutStore, lambda store: store.stop(by=by, reason=reason))
    if as_json:
        print_json(asdict(stopped))
    else:
        typer.echo(f"Rollout {stopped.id} is stopped.")


def _print(newest: Standing) -> None:
    one, counts = newest.rollout, newest.counts
    shadow = counts.shadow
    print_fields(
        {
            "rollout": _named(one),
            "status": one.status,
            "began": f"{when(one.created_at)} UTC, by {one.by}",
            **({"reason": one.reason} if one.reason else {}),
            **({"ended": f"{when(one.finished_at)} UTC: {one.outcome}"} if one.outcome else {}),
            "answers": f"{counts.old.answers} old, {counts.new.answers} new",
            "shadow": f"{shadow.judged} judged, flagged by both {shadow.both}, "
            f"by the new one alone {shadow.only_new}, by the old one alone {shadow.only_old}",
        }
    )
    for figure in newest.figures:
        typer.echo(f"- {printable(str(figure))}")


def _named(one: StoredRollout) -> str:
    old = "the base" if one.compared_with is None else f"adapter {one.compared_with}"
    share = f"{100 * one.share:.3g}%"
    return f"Rollout {one.id}: adapter {one.version} for {share} of requests beside {old}"
