"""Lines of files as people make them: no reader splits lines at other separators of Unicode."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from guard.prompts import CritiqueStyle
from refine.critic import Critic
from refine.evaluation.labelled_file import with_file
from refine.evaluation.sets import Sets
from refine.evaluation_data import load_evaluation_data
from refine.files import read_lines
from refine.options import RefineOptions
from refine.served import ServedInfo
from refine.stages.dataset import Example, Kind, earlier_examples, read_examples, write_dataset
from tests.refine.scripted_model import ScriptedModel

ODD = "one\u2028two\u2029three\x85four\x0bfive\x1csix"
"""Each of these ends a line for str.splitlines()."""

INFO = ServedInfo("model", "base", "revision", 1024, 16, None, CritiqueStyle.YES_NO)


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(f"{ODD}\n\nlast\n", encoding="utf-8")
    assert read_lines(path) == [ODD, "", "last"]


@pytest.mark.parametrize("bytes_", [b"\xef\xbb\xbfa\r\nb\r\n", b"a\nb", b"\xef\xbb\xbfa\nb\n"])
def test_a_byte_order_mark_and_crlf_are_ignored(tmp_path: Path, bytes_: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes_)
    assert read_lines(path) == ["a", "b"]


def test_a_runs_examples_are_read_back_whatever_their_text(tmp_path: Path) -> None:
    example = Example(Kind.SAFE, ({"role": "user", "content": ODD},), ODD, flag_id=1)
    written = write_dataset(tmp_path, [example, replace(example, flag_id=2)], {})
    assert read_examples(written.path) == [example, replace(example, flag_id=2)]
    assert earlier_examples([tmp_path], {1: None, 2: None}, None, 0) == read_examples(written.path)


def test_a_gate_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gate.jsonl"
    rows = [{"request": ODD, "label": "harmless"}, {"request": "b", "label": "harmful"}]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    sets = with_file(Sets("none", (), (), (), ()), path)
    assert [case.messages[-1]["content"] for case in (*sets.harmless, *sets.harmful)] == [ODD, "b"]


async def test_a_replay_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ordinary.txt"
    path.write_bytes(b"\xef\xbb\xbf" + f"{ODD}\r\nHow do I knit?\r\n".encode())
    evaluation_data = await load_evaluation_data(
        INFO, ScriptedModel(), RefineOptions(work_dir=tmp_path, replay_file=path), [Critic()]
    )
    assert set(evaluation_data.ordinary(2, 0)) == {ODD, "How do I knit?"}
