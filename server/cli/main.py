"""The command `setback`. Owns the names of its commands. The groups have files of their own, and
terminal.py defines how output looks.

Imports neither vLLM nor torch, so that all commands but `serve` start fast.
"""

from importlib.metadata import version
from typing import Annotated

import typer

from guard.store import migrate
from guard.store.url import without_driver
from server.cli import policy
from server.cli.align import align
from server.cli.bench import bench
from server.cli.calibrate import calibrate
from server.cli.compare import compare
from server.cli.doctor import doctor
from server.cli.evaluate import evaluate
from server.cli.export import export_adapter, export_run
from server.cli.flags import flags
from server.cli.keys import audit, keys
from server.cli.refine import adapters, runs
from server.cli.terminal import print_end, reported_errors
from server.settings import load_settings, with_refine

app = typer.Typer(
    help="An OpenAI-compatible guard server that learns from its own mistakes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
db = typer.Typer(help="The database.", no_args_is_help=True)
app.add_typer(db, name="db")
app.add_typer(flags, name="flags")
app.add_typer(policy.app, name="policy")
app.add_typer(runs, name="runs")
app.add_typer(adapters, name="adapters")
app.add_typer(keys, name="keys")
adapters.command("export")(export_adapter)
runs.command("export")(export_run)
app.command()(align)
app.command()(audit)
app.command()(bench)
app.command()(calibrate)
app.command()(compare)
app.command()(doctor)
app.command()(evaluate)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"setback {version('setback')}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Settings are read from SETBACK_* variables or setback.toml."""


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def serve(context: typer.Context) -> None:
    """Serve a model with the guard: setback serve [MODEL] [vLLM's options]; see --help."""
    from server.launch.serve import serve as run

    run(context.args)


@app.command()
def refine(
    every: Annotated[
        str | None, typer.Option(help="Repeat with this pause: 90s, 30m, 6h, 1d.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="The running server; overrides refine.server_url."),
    ] = None,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Train the next adapter from flags: collect, analyse, dataset, train, gate, promote."""
    from refine.schedule import parse_duration
    from server.jobs.refine import refine as run

    try:
        pause = parse_duration(every) if every else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--every") from None
    with reported_errors():
        settings = with_refine(load_settings(), server_url=server)
        finished = run(settings, pause, typer.echo, parent)
    if finished is not None:
        print_end(finished)


@db.command("upgrade")
def db_upgrade() -> None:
    """Migrate the database to the newest schema. Safe to repeat."""
    with reported_errors():
        url = load_settings().database_url
        revision = migrate.upgrade(url)
    typer.echo(f"{without_driver(url)} is at revision {revision}")


if __name__ == "__main__":
    app()
