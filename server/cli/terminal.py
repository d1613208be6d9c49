"""What every command of `setback` shares: error lines, exit codes, JSON and tables. Owns how they
look; knows no command.

Exit codes: 0 done; 1 it could not be done, and the message says why; 2 wrong arguments or settings.
"""

import asyncio
import getpass
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guard.errors import GuardError
from guard.store.runs import StoredRun
from guard.store.store import Store
from refine.errors import RefineError
from server.settings import SettingsInvalid, load_settings

T = TypeVar("T")
S = TypeVar("S", bound=Store)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="How many, newest first.")]


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


def operator() -> str:
    """Who runs this command, for the audit: the name of the user, or the number of one that has no
    name here, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def ask(
    kind: Callable[..., S], question: Callable[[S], Awaitable[T]], *, reported: bool = True
) -> T:
    """What a store of the settings' database answers; failures are reported, or raised."""

    async def asked() -> T:
        store = kind(load_settings().database_url)
        try:
            await store.check()
            return await question(store)
        finally:
            await store.close()

    with reported_errors() if reported else nullcontext():
        return asyncio.run(asked())


def print_end(run: StoredRun) -> None:
    """Why a run of the refine loop ended as it did; one that failed ends the command as failed."""
    if run.error is not None:
        fail(f"run {run.id} {run.status}: {run.error}", code=1)
    typer.echo("\n".join(run.reasons))


def print_json(value: object) -> None:
    """Indented JSON; times in ISO 8601."""
    typer.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows under their headings, without lines."""
    table = Table(*columns, box=None)
    for row in rows:
        # As Text: a name in [brackets] is not markup.
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)


def print_fields(fields: dict[str, Any]) -> None:
    """One line each, the names in a column."""
    width = max(map(len, fields)) + 2
    for name, value in fields.items():
        typer.echo(f"{name + ':':<{width}}{printable(str(value))}")


def when(time: datetime | None) -> str:
    """A time as tables show it; they say that it is UTC."""
    return f"{time:%Y-%m-%d %H:%M:%S}" if time else ""


def printable(text: str) -> str:
    """Escapes what would steer the terminal: the text was written by a model or an attacker."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text
    )
