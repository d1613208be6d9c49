"""The examples of a further training of the shipped adapter, which was trained in several rounds
(docs/align.md). Owns their mixture: what the corpus has that the adapter has not seen, and samples
of the rest, so that it is not forgotten. Trains nothing (refine/stages/train.py), asks no model.

    git archive REVISION refine/seed/data | tar -x -C LEARNED
    python -m refine.seed.further LEARNED PUBLIC ANSWERS OUT --seed 3

LEARNED holds the corpus of an earlier revision, PUBLIC the public sets, as for public.py. ANSWERS
are lines as for `setback align --data`: the base model's own answers to harmless requests of the
align split.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refine.benchmarks.formats import read_set
from refine.benchmarks.rows import BenchmarkRow
from refine.seed import criteria, examples, public
from refine.stages.dataset import Example, Kind, write_dataset
from refine.usable import helps

_CUT_SHARE = 0.4
_MIN_CUT_WORDS = 8
_LONG_WORDS = 90
_TEXT_FIELDS = frozenset(
    {"harmful", "benign", "request", "text", "messages", "content", "refusal", "compliance"}
)


@dataclass(frozen=True)
class Quotas:
    """The most examples of each part. new: labels of rows that were not learned. requests, answers,
    long: labels of the others, by what is judged. words: analyses, safe answers and revisions.
    public: labels of the public sets. own: labels of the base's answers. replayed: such answers.
    rules: criteria in words.
    """

    new: int = 8600
    requests: int = 6000
    answers: int = 2200
    long: int = 500
    words: int = 900
    public: int = 2600
    own: int = 1300
    replayed: int = 1000
    rules: int = 6000


def mixture(
    learned: Path,
    public_examples: Sequence[Example],
    own_rows: Sequence[BenchmarkRow],
    seed: int,
    quotas: Quotas,
) -> list[Example]:
    """Returns the examples, shuffled by the seed. own_rows: the base model's answers."""
    rng = random.Random(f"further {seed}")
    parts: dict[str, Sequence[Example]] = {
        **_of_corpus(_texts_in(learned), seed),
        "public": public_examples,
        "own": list(_labels(own_rows, rng)),
        "replayed": _replayed(own_rows),
        "rules": criteria.of_corpus(quotas.rules, seed),
    }
    mixed = [
        example
        for name, part in parts.items()
        for example in rng.sample(part, min(len(part), getattr(quotas, name)))
    ]
    rng.shuffle(mixed)
    return mixed


def _of_corpus(learned: frozenset[str], seed: int) -> dict[str, list[Example]]:
    parts: dict[str, list[Example]] = {
        name: [] for name in ("new", "requests", "answers", "long", "words")
    }
    for example in examples.of_corpus(seed):
        parts[_part(example, learned)].append(example)
    return parts


def _part(example: Example, learned: frozenset[str]) -> str:
    if example.kind is not Kind.LABEL:
        return "words"
    turns = [message["content"] for message in example.prompt if message["role"] != "system"]
    if learned.isdisjoint(turns):
        return "new"
    if example.prompt[-1]["role"] == "assistant":
        return "answers"
    return "long" if len(turns[-1].split()) > _LONG_WORDS else "requests"


def _texts_in(folder: Path) -> frozenset[str]:
    """Returns all texts of a corpus' data files."""
    lines = (
        line
        for file in folder.rglob("*.jsonl")
        for line in file.read_text("utf-8").split("\n")
        if line
    )
    return frozenset(text for line in lines for text in _texts_of(json.loads(line)))


def _texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name in _TEXT_FIELDS & value.keys():
            yield from _texts_of(value[name])
    elif isinstance(value, Iterable):
        for item in value:
            yield from _texts_of(item)


def _of_public(folder: Path) -> list[Example]:
    with tempfile.TemporaryDirectory() as temporary:
        lines = Path(temporary) / "public.jsonl"
        rows = public.chosen(folder)
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return examples.of_rows(_rows(lines))


def _labels(rows: Sequence[BenchmarkRow], rng: random.Random) -> Iterator[Example]:
    """Yields the label of every answer, some of them cut, because streams are judged before their
    answers end."""
    for example in examples.of_rows(rows):
        yield _cut(example, rng) if rng.random() < _CUT_SHARE else example


def _cut(example: Example, rng: random.Random) -> Example:
    *before, last = example.prompt
    words = last["content"].split(" ")
    end = rng.randint(min(_MIN_CUT_WORDS, len(words)), len(words))
    return replace(example, prompt=(*before, {**last, "content": " ".join(words[:end])}))


def _replayed(rows: Sequence[BenchmarkRow]) -> list[Example]:
    """Returns the usable answers, whose distribution is kept."""
    return [
        Example(Kind.HELP, row.messages[:-1], answer)
        for row in rows
        if helps(answer := row.messages[-1]["content"])
    ]


def _rows(path: Path) -> Sequence[BenchmarkRow]:
    return read_set("jsonl", path).rows


def main(arguments: Sequence[str]) -> None:
    """Writes the dataset into a folder."""
    parser = argparse.ArgumentParser("python -m refine.seed.further")
    for name in ("learned", "public", "answers", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    mixed = mixture(
        options.learned,
        _of_public(options.public),
        _rows(options.answers),
        options.seed,
        Quotas(),
    )
    write_dataset(options.out, mixed, {"seed": options.seed})


if __name__ == "__main__":
    main(sys.argv[1:])
