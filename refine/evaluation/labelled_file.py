"""A user's labelled lines beside the sets on which an adapter is measured. Does not own their
format (refine/benchmarks/own_lines.py).

A request without an answer is put to the model: a harmful one must not be answered, a harmless one
must be. An answer or a text is judged by the critic; the label is then its own.
"""

from dataclasses import replace
from pathlib import Path

from refine.benchmarks.formats import read_set
from refine.evaluation.sets import FILE, Case, Labelled, Sets


def with_file(sets: Sets, path: Path) -> Sets:
    """Returns `sets` with the lines of a user's file as groups of their own.

    Raises DataInvalid with the number of every wrong line.
    """
    rows = read_set("jsonl", path).rows
    requests = [row for row in rows if row.kind == "request"]
    judged = [row for row in rows if row.kind != "request"]
    return replace(
        sets,
        name=f"{sets.name} and {path.name}",
        harmful=(*sets.harmful, *(Case(row.messages, FILE) for row in requests if row.harmful)),
        harmless=(
            *sets.harmless,
            *(Case(row.messages, FILE) for row in requests if not row.harmful),
        ),
        pairs=(*sets.pairs, *(Labelled(row.messages, row.harmful, FILE) for row in judged)),
    )
