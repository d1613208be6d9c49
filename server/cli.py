"""The command `setback`. Owns the command line's names, tables, error lines and exit codes.

Exit codes: 0 done; 1 it could not be done, and the message says why; 2 wrong arguments or settings.
Imports nothing of vLLM or torch, so that every command but `serve` answers at once.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guard.errors import GuardError
from guard.store import migrate
from guard.store.database import without_driver
from guard.store.flags import FlagStore, StoredFlag
from guard.verdict import CATEGORIES
from refine.errors import RefineError
from server.settings import SettingsInvalid, load_settings

T = TypeVar("T")

LARGEST_ID = 2**63 - 1

app = typer.Typer(
    help="An OpenAI-compatible guard server that learns from its own mistakes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
db = typer.Typer(help="The database that keeps the flags.", no_args_is_help=True)
flags = typer.Typer(help="What the guard flagged.", no_args_is_help=True)
app.add_typer(db, name="db")
app.add_typer(flags, name="flags")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"setback {version('setback')}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print it and exit."
        ),
    ] = False,
) -> None:
    """Settings are read from SETBACK_* variables or setback.toml."""


@contextmanager
def reported_errors() -> Iterator[None]:
    """What the reader can mend becomes one message and an exit code, without a traceback."""
    try:
        yield
    except SettingsInvalid as error:
        fail(str(error), code=2)
    except (GuardError, RefineError) as error:
        fail(str(error), code=1)


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with `message` on standard error."""
    typer.echo(f"setback: {message}", err=True)
    raise typer.Exit(code)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def serve(context: typer.Context) -> None:
    """Serve a model with the guard: setback serve [MODEL] [vLLM's options]; see --help."""
    from server.serve import serve as run

    run(context.args)


@app.command()
def bench(
    clients: Annotated[int, typer.Option(min=1, help="How many ask at once.")] = 16,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens per answer.")] = 64,
    requests: Annotated[int, typer.Option(min=1, help="Requests per round.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds.")] = 5,
    stream: Annotated[bool, typer.Option(help="Stream the answers.")] = False,
) -> None:
    """Measure the guard's price: throughput as a ratio to bare vLLM, on the practice model."""
    from server import bench as benchmark

    load = benchmark.Load(clients, output_tokens, requests, stream)
    benchmark.print_rounds(load, benchmark.bench(load, rounds))


@app.command()
def refine(
    every: Annotated[
        str | None, typer.Option(help="Repeat, with this pause: 90s, 30m, 6h, 1d.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="The running server, not refine.server_url."),
    ] = None,
) -> None:
    """Turn flags into the next adapter: collect, analyse, dataset, train, gate, promote."""
    from refine.schedule import parse_duration
    from server.refine_job import refine as run

    try:
        pause = parse_duration(every) if every else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--every") from None
    with reported_errors():
        settings = load_settings()
        if server is not None:
            options = settings.refine.model_copy(update={"server_url": server})
            settings = settings.model_copy(update={"refine": options})
        finished = run(settings, pause, typer.echo)
    if finished is not None:
        typer.echo("\n".join(finished.reasons))


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the database to the newest schema; safe to repeat."""
    with reported_errors():
        url = load_settings().database_url
        revision = migrate.upgrade(url)
    typer.echo(f"{without_driver(url)} is at revision {revision}")


@flags.command("list")
def flags_list(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, newest first.")] = 20,
    before: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_ID, help="Only flags before this ID.")
    ] = None,
    category: Annotated[str | None, typer.Option(help="Only flags of this category.")] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Only flags of this request (its x-request-id).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List flags, newest first."""
    if category is not None and category not in CATEGORIES:
        known = ", ".join(CATEGORIES)
        raise typer.BadParameter(f"unknown category; use one of {known}", param_hint="--category")
    found = _ask_store(lambda store: store.list(limit, before, category, request_id))
    if as_json:
        typer.echo(json.dumps([_fields(flag) for flag in found], indent=2))
    elif found:
        Console().print(_table(found))
    else:
        typer.echo("No flags.")


@flags.command("show")
def flags_show(
    number: Annotated[int, typer.Argument(metavar="ID", min=1, max=LARGEST_ID)],
    as_json: AsJson = False,
) -> None:
    """Show one flag whole, with its conversation and answer."""
    flag = _ask_store(lambda store: store.get(number))
    if flag is None:
        fail(f"there is no flag {number}; `setback flags list` shows those there are", code=1)
    if as_json:
        typer.echo(json.dumps(_fields(flag), indent=2))
    else:
        typer.echo(_page(flag))


def _ask_store(question: Callable[[FlagStore], Awaitable[T]]) -> T:
    async def ask() -> T:
        store = FlagStore(load_settings().database_url)
        try:
            await store.check()
            return await question(store)
        finally:
            await store.close()

    with reported_errors():
        return asyncio.run(ask())


def _fields(flag: StoredFlag) -> dict[str, Any]:
    reviewed = flag.reviewed_at and flag.reviewed_at.isoformat()
    times = {"created_at": flag.created_at.isoformat(), "reviewed_at": reviewed}
    return {"id": flag.id, **asdict(flag), **times}


def _table(found: list[StoredFlag]) -> Table:
    table = Table("ID", "Time (UTC)", "Route", "Action", "Harm", "Categories", "Adapter", box=None)
    for flag in found:
        cells = (
            str(flag.id),
            f"{flag.created_at:%Y-%m-%d %H:%M:%S}",
            flag.route,
            flag.action.value,
            f"{flag.harm:.2f}",
            ", ".join(flag.categories),
            flag.adapter,
        )
        # As Text: a name in [brackets] is not markup.
        table.add_row(*(Text(_printable(cell)) for cell in cells))
    return table


def _page(flag: StoredFlag) -> str:
    scores = sorted(flag.category_scores.items(), key=lambda item: -item[1])
    head = {
        "flag": flag.id,
        "time": f"{flag.created_at:%Y-%m-%d %H:%M:%S} UTC",
        "request": f"{flag.request_id}, choice {flag.choice}, {flag.route}",
        "action": flag.action.value,
        "harm": f"{flag.harm:.3f}: {', '.join(flag.categories)}",
        "scores": ", ".join(f"{name} {score:.3f}" for name, score in scores),
        "model": f"{flag.model}, revision {flag.model_revision}, adapter {flag.adapter}",
        "judged by": f"policy {flag.policy_hash}, prompts {flag.prompt_version}",
        "user": flag.user_hash or "not named",
    }
    lines = [f"{name + ':':<11}{_printable(str(value))}" for name, value in head.items()]
    for message in flag.messages:
        lines += ["", f"--- {_printable(str(message.get('role')))}"]
        lines.append(_printable(_content(message)))
    return "\n".join([*lines, "", f"--- answer ({flag.action})", _printable(flag.answer)])


def _content(message: Any) -> str:
    others = {name: value for name, value in message.items() if name not in ("role", "content")}
    content = message.get("content")
    text = content if isinstance(content, str) else _readable(content)
    return text if not others else f"{text}\n{_readable(others)}"


def _readable(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _printable(text: str) -> str:
    """Escapes what would steer the terminal: the text was written by a model or an attacker."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text
    )
