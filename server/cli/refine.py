"""`setback runs` and `setback adapters`: the refine loop's runs, and which adapter is active. Owns
these commands' output. Servers pick up an activation within adapter_poll_s. Rollouts are in
rollouts.py.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Annotated, Any

import typer

from guard.store.adapters import Activation, AdapterStore, StoredAdapter
from guard.store.base import LARGEST_ID
from guard.store.leases import Leases
from guard.store.runs import Lineage, RunStore, StoredRun
from refine.cancel import cancel_run
from refine.evaluation.figures import side_by_side
from server.cli.rollouts import Share, rollout, start_rollout
from server.cli.terminal import (
    AsJson,
    Limit,
    ask,
    fail,
    operator,
    print_fields,
    print_json,
    print_table,
    printable,
    reported_errors,
    when,
)
from server.settings import load_settings

runs = typer.Typer(help="Runs of the refine loop.", no_args_is_help=True)
adapters = typer.Typer(help="Trained adapters, and which one is active.", no_args_is_help=True)

adapters.add_typer(rollout, name="rollout")

Number = Annotated[int, typer.Argument(metavar="N", min=1, max=LARGEST_ID)]
Reason = Annotated[str, typer.Option(help="The reason; kept in the history.")]
_MAX_ACTIVATIONS = 20
_BASE = "base"
_USE_NAMES = {"learned from": "train", "held out": "held_out", "repeats": "repeat"}


@runs.command("list")
def runs_list(limit: Limit = 20, as_json: AsJson = False) -> None:
    """List runs, newest first."""
    rows = ask(RunStore, lambda store: store.list(limit))
    if as_json:
        print_json([asdict(run) for run in rows])
    elif rows:
        columns = "Run", "Began (UTC)", "Ended (UTC)", "Status", "Stage", "From", "Reason"
        print_table(columns, map(_run_row, rows))
    else:
        typer.echo("No runs.")


@runs.command("show")
def runs_show(number: Number, as_json: AsJson = False) -> None:
    """Show one run: the flags it used, its gate's figures and why it ended."""

    async def query(store: RunStore) -> tuple[StoredRun | None, dict[int, Any]]:
        return await store.get(number), dict(await store.flags_of(number))

    run, uses = ask(RunStore, query)
    if run is None:
        fail(f"there is no run {number}; `setback runs list` lists them", code=1)
    if as_json:
        print_json({**asdict(run), "flags": uses})
    else:
        _print_run(run, uses)


@runs.command("cancel")
def runs_cancel(number: Number, as_json: AsJson = False) -> None:
    """Cancel a run that is running or cannot go on. Its flags are used by the next run."""
    run = asyncio.run(_cancel(number))
    if as_json:
        print_json(asdict(run))
    elif run.status == "running":
        typer.echo(f"Run {number} will end within seconds.")
    else:
        typer.echo(f"Run {number} is cancelled.")


async def _cancel(number: int) -> StoredRun:
    with reported_errors():
        url = load_settings().database_url
        async with AsyncExitStack() as stack:
            stores = RunStore(url), AdapterStore(url), Leases(url)
            for store in stores:
                stack.push_async_callback(store.close)
            runs_, adapters_, leases = stores
            await runs_.check()
            return await cancel_run(
                number, operator(), runs=runs_, adapters=adapters_, leases=leases
            )


@adapters.command("list")
def adapters_list(limit: Limit = 20, as_json: AsJson = False) -> None:
    """List adapters, newest first; the active one is marked."""

    async def query(store: AdapterStore) -> tuple[list[StoredAdapter], int | None]:
        return await store.list(limit), await store.active()

    rows, active = ask(AdapterStore, query)
    if as_json:
        print_json([{**asdict(adapter), "active": adapter.version == active} for adapter in rows])
    elif rows:
        columns = "Adapter", "Created (UTC)", "Status", "From", "Active"
        print_table(columns, (_adapter_row(adapter, active) for adapter in rows))
    else:
        typer.echo("No adapters; the base alone is in force.")


@adapters.command("show")
def adapters_show(number: Number, as_json: AsJson = False) -> None:
    """Show one adapter: its lineage back to the flags, its gate's figures and its activations."""
    adapter, history = _adapter(number)
    run, lineage = origin(number)
    if as_json:
        activations = [asdict(entry) for entry in history]
        learned = {"run": run and asdict(run), "lineage": asdict(lineage)}
        print_json({**asdict(adapter), **learned, "activations": activations})
        return
    print_fields(
        {
            "adapter": adapter.version,
            "status": adapter.status,
            "created": f"{when(adapter.created_at)} UTC",
            "base revision": adapter.model_revision,
            "manifest": adapter.sha256,
            "from": " <- ".join([*map(str, lineage.runs), _BASE]),
            "learned from": _flag_list(lineage.flags),
        }
    )
    for entry in history:
        typer.echo(f"{when(entry.created_at)} UTC: in force, by {_why(entry)}")
    if run is not None:
        _print_gate(run)


@adapters.command("promote")
def adapters_promote(
    number: Number, reason: Reason = "", share: Share = None, as_json: AsJson = False
) -> None:
    """Activate an adapter, whatever its gate said, unless it was rejected."""
    by = operator()
    if share is not None:
        start_rollout(number, share, by, reason, as_json)
        return
    activation = ask(AdapterStore, lambda store: store.activate(number, by=by, reason=reason))
    _print_activation(activation, as_json)


@adapters.command("rollback")
def adapters_rollback(reason: Reason = "", as_json: AsJson = False) -> None:
    """Activate what was active before the current adapter. Repeated calls go further back."""
    by = operator()
    activation = ask(AdapterStore, lambda store: store.rollback(by=by, reason=reason))
    _print_activation(activation, as_json)


def _adapter(number: int) -> tuple[StoredAdapter, list[Activation]]:
    async def query(store: AdapterStore) -> tuple[StoredAdapter | None, list[Activation]]:
        return await store.get(number), await store.history(_MAX_ACTIVATIONS, number)

    adapter, history = ask(AdapterStore, query)
    if adapter is None:
        fail(f"there is no adapter {number}; `setback adapters list` lists them", code=1)
    return adapter, history


def origin(number: int) -> tuple[StoredRun | None, Lineage]:
    """Returns the run of that number and the flags behind its adapter."""

    async def query(store: RunStore) -> tuple[StoredRun | None, Lineage]:
        return await store.get(number), await store.learned_from(number)

    return ask(RunStore, query)


def _run_row(run: StoredRun) -> tuple[str, ...]:
    return (
        str(run.id),
        when(run.created_at),
        when(run.finished_at),
        run.status,
        run.stage,
        str(run.parent or _BASE),
        (run.error or next(iter(run.reasons), "")).split("\n")[0],
    )


def _adapter_row(adapter: StoredAdapter, active: int | None) -> tuple[str, ...]:
    return (
        str(adapter.version),
        when(adapter.created_at),
        adapter.status,
        str(adapter.parent or _BASE),
        "active" if adapter.version == active else "",
    )


def _print_run(run: StoredRun, uses: Mapping[int, str]) -> None:
    print_fields(
        {
            "run": run.id,
            "status": f"{run.status}, stage {run.stage}",
            "began": f"{when(run.created_at)} UTC",
            "ended": f"{when(run.finished_at)} UTC" if run.finished_at else "not yet",
            "model": f"{run.model}, revision {run.model_revision}",
            "from": run.parent or _BASE,
            "seed": run.seed,
            "dataset": run.dataset_sha256 or "none",
            **{
                name: _flag_list([flag for flag, flag_use in uses.items() if flag_use == use])
                for name, use in _USE_NAMES.items()
            },
            **({"error": run.error} if run.error else {}),
        }
    )
    if run.counts:
        print_table(("Count", ""), ((name, str(n)) for name, n in run.counts.items()))
    _print_gate(run)


def _print_gate(run: StoredRun) -> None:
    """Prints the figures of each adapter that the gate measured, side by side, and its reasons."""
    figures = side_by_side(run.measures)
    roles = list(dict.fromkeys(role for by_role in figures.values() for role in by_role))
    if figures:
        rows = (
            (name, *(by_role.get(role, "") for role in roles)) for name, by_role in figures.items()
        )
        print_table(("Figure (95% interval)", *roles), rows)
    for reason in run.reasons:
        typer.echo(f"- {printable(reason)}")


def _print_activation(activation: Activation, as_json: bool) -> None:
    if as_json:
        print_json(asdict(activation))
    else:
        version = activation.version
        typer.echo(f"In force: {'base' if version is None else f'adapter {version}'}.")


def _why(entry: Activation) -> str:
    return printable(f"{entry.by}: {entry.reason}" if entry.reason else entry.by)


def _flag_list(numbers: tuple[int, ...] | list[int]) -> str:
    count = f"{len(numbers)} flag{'' if len(numbers) == 1 else 's'}"
    return f"{count}: {', '.join(map(str, sorted(numbers)))}" if numbers else count
