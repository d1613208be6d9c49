"""`setback runs` and `setback adapters`: what the refine loop did, and which adapter is in force.
Owns these commands' output; servers take an activation within adapter_poll_s.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Annotated, Any

import typer

from guard.store.adapters import Activation, AdapterStore, StoredAdapter
from guard.store.leases import Leases
from guard.store.runs import Lineage, RunStore, StoredRun
from guard.store.tables import LARGEST_ID
from refine.cancel import cancel_run
from refine.evaluation.figures import side_by_side
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

runs = typer.Typer(help="What the refine loop did.", no_args_is_help=True)
adapters = typer.Typer(help="What was learned, and which of it is in force.", no_args_is_help=True)

Number = Annotated[int, typer.Argument(metavar="N", min=1, max=LARGEST_ID)]
Reason = Annotated[str, typer.Option(help="Why; kept in the history.")]
_HISTORY = 20
_BASE = "base"
_USES_TOLD = {"learned from": "train", "held out": "held_out", "repeats": "repeat"}


@runs.command("list")
def runs_list(limit: Limit = 20, as_json: AsJson = False) -> None:
    """List runs, newest first."""
    found = ask(RunStore, lambda store: store.list(limit))
    if as_json:
        print_json([asdict(run) for run in found])
    elif found:
        columns = "Run", "Began (UTC)", "Ended (UTC)", "Status", "Stage", "From", "Reason"
        print_table(columns, map(_run_row, found))
    else:
        typer.echo("No runs.")


@runs.command("show")
def runs_show(number: Number, as_json: AsJson = False) -> None:
    """Show one run: what it took, what its gate measured and why it ended so."""

    async def found(store: RunStore) -> tuple[StoredRun | None, dict[int, Any]]:
        return await store.get(number), dict(await store.flags_of(number))

    run, used = ask(RunStore, found)
    if run is None:
        fail(f"there is no run {number}; `setback runs list` shows those there are", code=1)
    if as_json:
        print_json({**asdict(run), "flags": used})
    else:
        _print_run(run, used)


@runs.command("cancel")
def runs_cancel(number: Number, as_json: AsJson = False) -> None:
    """End a run that is under way, or that cannot go on; its flags wait for the next."""
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
    """List adapters, newest first; the one in force is marked."""

    async def found(store: AdapterStore) -> tuple[list[StoredAdapter], int | None]:
        return await store.list(limit), await store.active()

    listed, active = ask(AdapterStore, found)
    if as_json:
        print_json([{**asdict(one), "active": one.version == active} for one in listed])
    elif listed:
        columns = "Adapter", "Made (UTC)", "Status", "From", "Active"
        print_table(columns, (_adapter_row(one, active) for one in listed))
    else:
        typer.echo("No adapters; the base alone is in force.")


@adapters.command("show")
def adapters_show(number: Number, as_json: AsJson = False) -> None:
    """Show one adapter: its lineage back to the flags, its gate's figures, when it was in force."""
    adapter, history = _adapter(number)
    run, lineage = _origin(number)
    if as_json:
        told = [asdict(entry) for entry in history]
        origin = {"run": run and asdict(run), "lineage": asdict(lineage)}
        print_json({**asdict(adapter), **origin, "activations": told})
        return
    print_fields(
        {
            "adapter": adapter.version,
            "status": adapter.status,
            "made": f"{when(adapter.created_at)} UTC",
            "base revision": adapter.model_revision,
            "manifest": adapter.sha256,
            "from": " <- ".join([*map(str, lineage.runs), _BASE]),
            "learned from": _flags_told(lineage.flags),
        }
    )
    for entry in history:
        typer.echo(f"{when(entry.created_at)} UTC: in force, by {_why(entry)}")
    if run is not None:
        _print_gate(run)


@adapters.command("promote")
def adapters_promote(number: Number, reason: Reason = "", as_json: AsJson = False) -> None:
    """Put an adapter in force, whatever its gate said; a rejected one never."""
    by = operator()
    done = ask(AdapterStore, lambda store: store.activate(number, by=by, reason=reason))
    _print_activation(done, as_json)


@adapters.command("rollback")
def adapters_rollback(reason: Reason = "", as_json: AsJson = False) -> None:
    """Go back to what was in force before the present adapter; repeated, further back."""
    by = operator()
    done = ask(AdapterStore, lambda store: store.rollback(by=by, reason=reason))
    _print_activation(done, as_json)


def _adapter(number: int) -> tuple[StoredAdapter, list[Activation]]:
    async def found(store: AdapterStore) -> tuple[StoredAdapter | None, list[Activation]]:
        return await store.get(number), await store.history(_HISTORY, number)

    adapter, history = ask(AdapterStore, found)
    if adapter is None:
        fail(f"there is no adapter {number}; `setback adapters list` shows those there are", code=1)
    return adapter, history


def _origin(number: int) -> tuple[StoredRun | None, Lineage]:
    async def found(store: RunStore) -> tuple[StoredRun | None, Lineage]:
        return await store.get(number), await store.learned_from(number)

    return ask(RunStore, found)


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


def _print_run(run: StoredRun, used: Mapping[int, str]) -> None:
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
                told: _flags_told([flag for flag, its_use in used.items() if its_use == use])
                for told, use in _USES_TOLD.items()
            },
            **({"error": run.error} if run.error else {}),
        }
    )
    if run.counts:
        print_table(("Count", ""), ((name, str(n)) for name, n in run.counts.items()))
    _print_gate(run)


def _print_gate(run: StoredRun) -> None:
    """The figures of each adapter that the gate measured, side by side, and its reasons."""
    figures = side_by_side(run.measures)
    roles = list(dict.fromkeys(role for told in figures.values() for role in told))
    if figures:
        rows = ((name, *(told.get(role, "") for role in roles)) for name, told in figures.items())
        print_table(("Figure (95% interval)", *roles), rows)
    for reason in run.reasons:
        typer.echo(f"- {printable(reason)}")


def _print_activation(done: Activation, as_json: bool) -> None:
    if as_json:
        print_json(asdict(done))
    else:
        typer.echo(f"In force: {'base' if done.version is None else f'adapter {done.version}'}.")


def _why(entry: Activation) -> str:
    return printable(f"{entry.by}: {entry.reason}" if entry.reason else entry.by)


def _flags_told(numbers: tuple[int, ...] | list[int]) -> str:
    count = f"{len(numbers)} flag{'' if len(numbers) == 1 else 's'}"
    return f"{count}: {', '.join(map(str, sorted(numbers)))}" if numbers else count
