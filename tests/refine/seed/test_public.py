"""The public rows of the shipped adapter's recipe are in the format of `setback align --data`."""

import json
from collections import Counter
from pathlib import Path

import pytest

from refine.benchmarks.formats import read_set
from refine.seed.public import chosen

FOLDER = Path(__file__).parents[4] / "shared" / "data" / "train"


@pytest.fixture(scope="module")
def chosen_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not FOLDER.is_dir():
        pytest.skip("the public data are not on this machine")
    path = tmp_path_factory.mktemp("public") / "public.jsonl"
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in chosen(FOLDER))
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_every_row_is_one_that_align_reads(chosen_file: Path) -> None:
    rows = read_set("jsonl", chosen_file)
    assert not rows.left_out
    kinds = Counter((row.kind, row.harmful) for row in rows.rows)
    assert len(kinds) == 6
    assert min(kinds.values()) > 400


def test_rows_with_labels_of_ours_have_them(chosen_file: Path) -> None:
    lines = [json.loads(line) for line in chosen_file.read_text("utf-8").split("\n") if line]
    conversations = [line for line in lines if "messages" in line]
    assert all(line["messages"][-1]["role"] == "user" and line["answer"] for line in conversations)
    assert {line["label"] for line in conversations} == {"harmful", "harmless"}
    assert all(line["category"] for line in conversations if line["label"] == "harmful")
