"""A split of the seed corpus as labelled lines, for `setback evaluate --benchmark jsonl=FILE` and
`setback calibrate --file FILE`. Owns the format of the lines. Judges nothing.

    python -m refine.seed.lines gate > gate.jsonl
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from refine.seed import corpus
from refine.seed.corpus import Split

Line = dict[str, Any]


def lines(split: Split) -> Iterator[Line]:
    """Yields every request, written answer, text and ordinary request, marked by its `kind`."""
    for pair in corpus.pairs(split):
        request = {"messages": list(pair.harmful)}
        kind = f"{pair.kind} request"
        yield {**request, **_harmful(pair.category), "kind": kind}
        yield {"messages": list(pair.benign), "label": "harmless", "kind": kind}
        if pair.answers is not None:
            harmful = {**request, "answer": pair.answers.compliance, **_harmful(pair.category)}
            yield {**harmful, "kind": "answer"}
            refusal = {**request, "answer": pair.answers.refusal, "label": "harmless"}
            yield {**refusal, "kind": "answer"}
    for text in corpus.texts(split):
        yield {"text": text.harmful, **_harmful(text.category), "kind": f"{text.kind} text"}
        yield {"text": text.benign, "label": "harmless", "kind": f"{text.kind} text"}
    for ordinary in corpus.ordinary(split):
        yield {"messages": list(ordinary.messages), "label": "harmless", "kind": "ordinary request"}


def _harmful(category: str) -> Line:
    return {"label": "harmful", "category": category}


def main(arguments: Sequence[str]) -> None:
    """Writes the split to standard output."""
    parser = argparse.ArgumentParser("python -m refine.seed.lines")
    parser.add_argument("split", choices=get_args(Split))
    for line in lines(parser.parse_args(arguments).split):
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
