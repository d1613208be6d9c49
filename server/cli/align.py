"""`setback align`: trains the first adapter of a base model, before any traffic. Owns the command's
arguments and output. Does not run the job (jobs/refine.py) or choose the training data
(refine/align.py).
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from refine.benchmarks.formats import read_set
from refine.benchmarks.rows import BenchmarkRow
from server.cli.terminal import print_end, print_table, reported_errors
from server.settings import load_settings, with_refine


def align(
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help='JSON lines of your own to train on as well: {"text", or "request" or '
            '"messages" with or without "answer", "label": "harmful" or "harmless", "category" '
            "(optional)}; repeat the option for more files.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be trained on, and stop.")
    ] = False,
    server: Annotated[
        str | None, typer.Option(help="The running server; overrides refine.server_url.")
    ] = None,
) -> None:
    """Train the first adapter of the served base model, on its own mistakes and a corpus."""
    with reported_errors():
        rows = [row for path in data or () for row in read_set("jsonl", path).rows]
        if dry_run:
            _print_plan(rows)
            return
        settings = with_refine(load_settings(), server_url=server)
        from server.jobs.refine import align as run

        finished = run(settings, rows, typer.echo)
    print_end(finished)


def _print_plan(rows: Sequence[BenchmarkRow]) -> None:
    """Prints what is known before any request to the base model."""
    from refine.seed import corpus, examples

    examples_by_kind = Counter(example.kind for example in examples.of_corpus(seed=0))
    requests = {
        "asked with a hint, for mistakes of the base's own": len(corpus.pairs("align")),
        "asked for ordinary answers": len(examples.requests_to_answer(rows, seed=0)),
    }
    counts = {
        **{
            f"examples of the seed corpus: {kind}": n
            for kind, n in sorted(examples_by_kind.items())
        },
        **requests,
        **{
            f"your lines: {kind}, {label}": sum(
                row.kind == kind and row.harmful is (label == "harmful") for row in rows
            )
            for kind in ("text", "request", "answer")
            for label in ("harmful", "harmless")
            if rows
        },
    }
    print_table(("What", ""), ((name, str(n)) for name, n in counts.items()))
