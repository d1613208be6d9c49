"""`setback compare`: the paper's methods side by side on the served base. Owns the command's
arguments and output; the job is server/jobs/compare.py's.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from server.cli.terminal import reported_errors
from server.settings import load_settings, with_refine


def compare(
    out: Annotated[
        Path, typer.Option(help="A folder for results; a comparison resumes from it.")
    ] = Path("data/compare"),
    flags: Annotated[
        list[int] | None, typer.Option(min=1, help="Flags to learn from; repeatable. Default: 100.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings per row.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Of every training.")] = 150,
    dpo: Annotated[
        bool, typer.Option("--dpo", help="Direct preference optimisation too; needs trl.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    server: Annotated[
        str | None, typer.Option(help="The running server, not refine.server_url.")
    ] = None,
) -> None:
    """Train the paper's methods from the same flags of the seed corpus and compare them (hours).

    The first adapter that was active on this base model decides which answers are harmful. Use a
    separate database, because every training is recorded as a run.
    """
    from refine.compare.corpus_trial import CorpusTrial
    from refine.compare.methods import DPO, METHODS
    from refine.compare.table import as_json as rows
    from refine.compare.table import table
    from server.jobs.compare import Comparison
    from server.jobs.compare import compare as run

    methods = (*METHODS, DPO) if dpo else METHODS
    with reported_errors():
        settings = with_refine(load_settings(), server_url=server)
        comparison = Comparison(methods, flags or (100,), seeds, steps)
        compared = run(settings, comparison, out, lambda line: typer.echo(line, err=True))
    if as_json:
        tables = {"methods": rows(compared.methods), "wrappers": rows(compared.wrappers)}
        typer.echo(json.dumps(tables, indent=2))
        return
    title = f"Learned from so many flags: mean of {seeds} seeds (least to most), in percent"
    typer.echo(table(title, compared.methods, CorpusTrial.columns))
    title = "One flag per jailbreak wrapper: harmful requests in a wrapper that are obeyed"
    typer.echo(table(title, compared.wrappers, CorpusTrial.wrapper_columns))
