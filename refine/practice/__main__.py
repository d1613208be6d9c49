"""The command line of the practice world: train, evaluate, compare, guarded, bypass, traffic and
requests."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from guard.store.url import parse_url
from refine.evaluation.figures import Section, table
from refine.practice.recipe import MODEL_DIR, TRAINING
from refine.practice.world import SPLITS, Kind, Split, requests

app = typer.Typer(help=__doc__, no_args_is_help=True)
_FLAGS = (10, 30, 100, 300)


@app.command()
def train(
    seed: Annotated[
        int, typer.Option(help="The seed of all random draws in training.")
    ] = TRAINING.seed,
    out: Annotated[Path, typer.Option(help="Where the model goes.")] = MODEL_DIR,
) -> None:
    """Train the practice model from scratch."""
    from refine.practice.train import train as run

    run(out, seed, report=typer.echo)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="The model's directory.")] = MODEL_DIR,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the cases, for a quick look.")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Measure a practice model on held-out requests, with and without guided answering."""
    from refine.practice.evaluate import Sizes
    from refine.practice.evaluate import evaluate as run

    _print(run(model, Sizes().share(share)), as_json)


@app.command()
def guarded(
    base_url: Annotated[
        str, typer.Option(help="The running server's base URL, as for OpenAI's client.")
    ] = "http://127.0.0.1:8000/v1",
    n: Annotated[int, typer.Option("-n", min=1, help="Requests per set.")] = 120,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Measure a running guarded server. DATABASE_URL names its flag store."""
    from refine.practice.guarded import measure

    database = parse_url(os.environ.get("DATABASE_URL", "sqlite:///data/setback.db"))
    with _reaching(base_url):
        figures = measure(base_url, database, n)
    _print(figures, as_json)


@app.command()
def bypass(
    base_url: Annotated[
        str, typer.Option(help="The running server's base URL, as for OpenAI's client.")
    ] = "http://127.0.0.1:8000/v1",
    kind: Annotated[
        Kind, typer.Option(help="The kind of request; for harmless ones, withheld answers count.")
    ] = Kind.HARMFUL,
    n: Annotated[int, typer.Option("-n", min=1, help="Requests by each way.")] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Try to bypass a running guarded server by request options and request formats."""
    from refine.practice.bypass import measure

    with _reaching(base_url):
        figures = measure(base_url, n, kind)
    _print(figures, as_json)


@contextmanager
def _reaching(base_url: str) -> Iterator[None]:
    """Ends the command with one line when no server answers."""
    from httpx import ConnectError
    from openai import APIConnectionError

    try:
        yield
    except (APIConnectionError, ConnectError):
        sys.exit(
            f"refine.practice: no server answers at {base_url}; start one with `make serve`, or "
            "name another with --base-url"
        )


def _print(sections: Sequence[Section], as_json: bool) -> None:
    if as_json:
        report = {s.title: [figure.as_json() for figure in s.figures] for s in sections}
        typer.echo(json.dumps(report, indent=2))
    else:
        typer.echo(table(sections))


@app.command()
def traffic(
    base_url: Annotated[
        str, typer.Option(help="The running server's base URL, as for OpenAI's client.")
    ] = "http://127.0.0.1:8000/v1",
    kind: Annotated[Kind, typer.Option(help="What kind of request.")] = Kind.HARMFUL,
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 200,
    seed: Annotated[int, typer.Option(help="Which ones.")] = 0,
    without: Annotated[
        list[str] | None, typer.Option(help="A category to leave out; repeatable.")
    ] = None,
) -> None:
    """Send requests to a running server, so that it has something to flag."""
    from refine.practice.traffic import send

    with _reaching(base_url):
        withheld = send(base_url, kind, n, seed, without or ())
    typer.echo(f"{n} {kind} requests sent, {withheld} answers withheld")


@app.command()
def compare(
    out: Annotated[
        Path, typer.Option(help="Stores every result; an interrupted run resumes from it.")
    ] = Path("data/compare"),
    model: Annotated[Path, typer.Option(help="The model's directory.")] = MODEL_DIR,
    flags: Annotated[
        list[int] | None, typer.Option(min=1, max=300, help="Flags to learn from; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings per row.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Of every training.")] = 150,
    replay: Annotated[int, typer.Option(min=1, help="Ordinary requests in every training.")] = 500,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
) -> None:
    """Train every method from the same flags and print the paper's table (over an hour)."""
    import asyncio

    from refine.compare.cells import Cells
    from refine.compare.lab import Lab
    from refine.compare.table import as_json as rows
    from refine.compare.table import table as paper_table
    from refine.options import RefineOptions
    from refine.practice.compare.trial import PracticeTrial, practice_start

    async def run() -> None:
        start = practice_start(model)
        trial = PracticeTrial(start.model)
        lab = Lab(start, out, RefineOptions(replay=replay), steps)
        cells = Cells(lab, trial, lambda line: typer.echo(line, err=True))
        wrapped = await cells.wrappers(range(seeds))
        by_method = await cells.methods(flags or _FLAGS, range(seeds))
        if as_json:
            typer.echo(
                json.dumps({"methods": rows(by_method), "wrappers": rows(wrapped)}, indent=2)
            )
            return
        title = f"Learned from so many flags: mean of {seeds} seeds (least to most), in percent"
        typer.echo(paper_table(title, by_method, trial.columns))
        title = "One flag per jailbreak wrapper: harmful requests in a wrapper that are obeyed"
        typer.echo(paper_table(title, wrapped, trial.wrapper_columns))

    asyncio.run(run())


@app.command("requests")
def print_requests(
    kind: Annotated[Kind, typer.Option(help="What kind of request.")],
    split: Annotated[str, typer.Option(help=f"One of {', '.join(SPLITS)}.")] = "held-out",
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 100,
    seed: Annotated[int, typer.Option(help="Which ones.")] = 0,
) -> None:
    """Print requests as JSON lines, with messages and ground truth."""
    for request in requests(kind, _split(split), n, seed):
        typer.echo(json.dumps(request.as_json(), ensure_ascii=False))


def _split(name: str) -> Split:
    for split in SPLITS:
        if split == name:
            return split
    raise typer.BadParameter(f"{name!r} is not one of {', '.join(SPLITS)}", param_hint="--split")


if __name__ == "__main__":
    app()
