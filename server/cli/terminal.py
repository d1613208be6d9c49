"""What all commands of `setback` share: error messages, exit codes, JSON and tables. Owns how they
look. Knows no command.

Exit codes: 0 success; 1 failure, which the message explains; 2 wrong arguments or settings.
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

from guard.errors import GuardError, PolicyInvalid
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
    """Turns errors that the user can fix into a message and an exit code, without a traceback."""
    try:
        yield
    except (SettingsInvalid, PolicyInvalid) as error:
        fail(str(error), code=2)
    except (GuardError, RefineError) as error:
        fail(str(error), code=1)


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with `message` on standard error."""
    typer.echo(f"setback: {message}", err=True)
    raise typer.Exit(code)


def operator() -> str:
    """Returns the user who runs this command, for the audit trail: the user's name, or the number
    if there is no name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def ask(
    kind: Callable[..., S], question: Callable[[S], Awaitable[T]], *, reported: bool = True
) -> T:
    """Returns a store's answer from the settings' database. Errors are reported, or raised."""

    async def query() -> T:
        store = kind(load_settings().database_url)
        try:
            await store.check()
            return await question(store)
        finally:
            await store.close()

    with reported_errors() if reported else nullcontext():
        return asyncio.run(query())


def print_end(run: StoredRun) -> None:
    """Prints why a run of the refine loop ended. A failed run ends the command with exit code 1."""
    if run.error is not None:
        fail(f"run {run.id} {run.status}: {run.error}", code=1)
    typer.echo("\n".join(run.reasons))


def print_json(value: object) -> None:
    """Prints indented JSON, with times in ISO 8601."""
    typer.echo(json.dumps(value, indent=2, default=_json_default))


def _json_default(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows under their headings, without lines."""
    table = Table(*columns, box=None)
    for row in rows:
        # As Text, so that a name in [brackets] is not read as markup.
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)


def print_fields(fields: dict[str, Any]) -> None:
    """Prints a line for each field, with aligned values."""
    width = max(map(len, fields)) + 2
    for name, value in fields.items():
        typer.echo(f"{name + ':':<{width}}{printable(str(value))}")


def when(time: datetime | None) -> str:
    """Returns a time as tables show it, in UTC."""
    return f"{time:%Y-%m-%d %H:%M:%S}" if time else ""


def printable(text: str) -> str:
    """Escapes control characters: a model or an attacker may have written the text."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text
    )
