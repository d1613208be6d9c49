"""The mixture of a further training: new rows first, samples of the rest, own answers replayed."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from refine.benchmarks.formats import read_set
from refine.seed import corpus, further
from refine.seed.further import Quotas
from refine.stages.dataset import Example, Kind

QUOTAS = Quotas(
    new=60, requests=50, answers=40, long=10, words=20, public=0, own=4, replayed=3, rules=30
)
OWN = [
    {"request": "How do I fold a map?", "answer": "Along its old creases, one panel at a time."},
    {"request": "Name a river.", "answer": "The Danube is one that crosses ten countries."},
    {"request": "Sing!", "answer": "I'm sorry, but I can't help with that."},
    {"request": "Say la.", "answer": "la la la la la la la la la la la la la la la la la la la la"},
]


@pytest.fixture
def mixed(tmp_path: Path) -> list[Example]:
    """With the contrasts as the only part of the corpus that is not learned."""
    learned, answers = tmp_path / "learned", tmp_path / "own.jsonl"
    shutil.copytree(str(corpus._DATA), learned)
    (learned / "contrasts.jsonl").unlink()
    answers.write_text("".join(json.dumps({**row, "label": "harmless"}) + "\n" for row in OWN))
    return further.mixture(learned, [], read_set("jsonl", answers).rows, 0, QUOTAS)


def test_each_part_fills_its_quota_and_new_rows_are_those_not_learned(mixed: list[Example]) -> None:
    contrasts = {
        messages[-1]["content"]
        for pair in corpus.pairs("align")
        if pair.kind == "contrast"
        for messages in (pair.harmful, pair.benign)
    }
    kinds = Counter(example.kind for example in mixed)
    assert kinds[Kind.HELP] == 2
    assert sum(kinds[kind] for kind in (Kind.MISTAKE, Kind.SAFE, Kind.GUIDED, Kind.REVISION)) == 20
    assert kinds[Kind.CRITERION] == 30
    labels = [e for e in mixed if e.kind is not Kind.CRITERION]
    new = [e for e in labels if any(m["content"] in contrasts for m in e.prompt)]
    assert 40 <= len(new) <= 60
    assert len(mixed) == 60 + 50 + 40 + 10 + 20 + 4 + 2 + 30
