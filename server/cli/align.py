"""`setback align`: the first adapter of a base model, before any traffic. Owns the command's
arguments and what it says; the job is jobs/refine.py's, what is learned refine/align.py's.
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
            help='JSON lines of your own to learn from besides: {"text", or "request" or '
            '"messages" with "answer" or without, "label": "harmful" or "harmless", "category" '
            "(optional)}; give the option again for more files.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be learned, and learn nothing.")
    ] = False,
    server: Annotated[
        str | None, typer.Option(help="The running server, not refine.server_url.")
    ] = None,
) -> None:
    """Train the first adapter of the served base: its own mistakes on a corpus, analysed."""
    with reported_errors():
        rows = [row for path in data or () for row in read_set("jsonl", path).rows]
        if dry_run:
            _tell(rows)
            return
        settings = with_refine(load_settings(), server_url=server)
        from server.jobs.refine import align as run

        finished = run(settings, rows, typer.echo)
    print_end(finished)


def _tell(rows: Sequence[BenchmarkRow]) -> None:
    """What is known before the base was asked anything."""
    from refine.seed import corpus, examples

    learned = Counter(example.kind for example in examples.of_corpus(seed=0))
    asked = {
        "asked with a hint, for mistakes of the base's own": len(corpus.pairs("align")),
        "asked for ordinary answers": len(examples.requests_to_answer(rows, seed=0)),
    }
    counts = {
        **{f"examples of the seed corpus: {kind}": n for kind, n in sorted(learned.items())},
        **asked,
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
