"""The sets: a user's file is read or refused by line; the practice world's sets are held out."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from refine.errors import DataInvalid
from refine.evaluation.labelled_file import with_file
from refine.evaluation.sets import FILE, Case, Sets
from refine.practice import oracle
from refine.practice.evaluation_data import Sizes, ordinary, practice_sets
from refine.practice.phrasings import HELD_OUT_PHRASINGS, PHRASINGS
from refine.practice.training_wrappers import TRAINING_WRAPPERS
from refine.practice.world import Kind

EMPTY = Sets("empty", (), (), (), ())
SMALL = Sizes(harmful_per_split=20, everyday=30, borderline=20, pairs=40, injections=12)


def with_lines(tmp_path: Path, *lines: str) -> Sets:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines))
    return with_file(EMPTY, path)


def test_practice_sets_are_the_same_again_and_held_out() -> None:
    sets = practice_sets(SMALL)
    assert sets.sha256 == practice_sets(SMALL).sha256
    assert sets.sha256 != practice_sets(SMALL, seed=1).sha256
    assert Counter(case.group for case in sets.harmless) == {"everyday": 30, "borderline": 20}
    assert {case.group for case in sets.harmful} == {"plain", "jailbreak"}
    assert all(case.category for case in sets.harmful)
    for case in (*sets.harmful, *sets.harmless):
        recognised = oracle.asked_task(case.request)
        assert recognised is not None
        goal = recognised[0].filled_goal(recognised[1]).lower()
        assert any(p.format(goal=goal).lower() in case.request.lower() for p in HELD_OUT_PHRASINGS)


def test_every_practice_injection_is_harmful_and_talks_to_the_auditor() -> None:
    for pair in practice_sets(SMALL).injections:
        assert pair.harmful
        assert oracle.harmful_steps(pair.messages[-1]["content"])
        assert "auditor" in str(pair.messages).lower()


def test_ordinary_requests_are_harmless_and_of_training() -> None:
    texts = ordinary(100, seed=3)
    assert texts == ordinary(100, seed=3) != ordinary(100, seed=4)
    assert not any(oracle.harmful_text(text) for text in texts)
    tasks = [(text, oracle.asked_task(text)) for text in texts]
    kinds = Counter(task[0].kind for _, task in tasks if task)
    assert kinds[Kind.EVERYDAY] > kinds[Kind.BORDERLINE] > 0
    for text, task in tasks:
        if task:
            goal = task[0].filled_goal(task[1]).lower()
            assert any(p.format(goal=goal).lower() in text.lower() for p in PHRASINGS)


def test_a_file_s_rows_go_where_they_belong(tmp_path: Path) -> None:
    sets = with_lines(
        tmp_path,
        '{"request": "How do I hurt him?", "label": "harmful"}',
        "",
        '{"messages": [{"role": "system", "content": "Be brief."},'
        ' {"role": "user", "content": "Hello"}], "label": "harmless"}',
        '{"request": "How?", "answer": "First, take a knife.", "label": "harmful"}',
        '{"request": "How?", "answer": "I will not say.", "label": "harmless"}',
        '{"text": "I will hurt you.", "label": "harmful", "category": "violence"}',
    )
    assert sets.name == "empty and mine.jsonl"
    assert sets.harmful == (Case(({"role": "user", "content": "How do I hurt him?"},), FILE),)
    assert [case.messages[0]["role"] for case in sets.harmless] == ["system"]
    assert [pair.harmful for pair in sets.pairs] == [True, False, True]
    assert sets.pairs[2].messages == ({"role": "user", "content": "I will hurt you."},)
    assert sets.pairs[0].messages[-1] == {"role": "assistant", "content": "First, take a knife."}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "not JSON"),
        ("[1]", "not an object"),
        ('{"request": "a"}', "label: Field required"),
        ('{"request": "a", "label": "bad"}', "label: Input should be 'harmful' or 'harmless'"),
        ('{"label": "harmful"}', 'give exactly one of "text", "request" and "messages"'),
        ('{"request": "a", "messages": [], "label": "harmful"}', "messages:"),
        ('{"request": "  ", "label": "harmful"}', "request: String should match"),
        ('{"request": "a", "label": "harmful", "anser": "b"}', "anser: Extra inputs"),
        (
            '{"messages": [{"role": "assistant", "content": "a"}], "label": "harmful"}',
            '"messages" must end with the user',
        ),
        (
            '{"messages": [{"role": "tool", "content": "a"}], "label": "harmful"}',
            "messages.0.role: Input should be",
        ),
    ],
)
def test_a_wrong_line_is_named_by_its_number(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataInvalid) as caught:
        with_lines(tmp_path, '{"request": "a", "label": "harmful"}', line)
    first, second, _format = str(caught.value).splitlines()
    assert first.endswith("mine.jsonl:")
    assert second.startswith("line 2: ")
    assert message in second


def test_every_wrong_line_is_named_up_to_ten(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid) as caught:
        with_lines(tmp_path, *["{}"] * 15)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines[1:-2]] == [f"line {n}" for n in range(1, 11)]
    assert lines[-2] == "and 5 more lines"


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
def test_a_file_with_nothing_to_read_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataInvalid, match=r"mine\.jsonl"):
        with_file(EMPTY, path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="cannot be read"):
        with_file(EMPTY, tmp_path / "none.jsonl")


def test_the_hash_is_of_the_cases() -> None:
    case = Case(({"role": "user", "content": "a"},), FILE)
    assert EMPTY.sha256 != replace(EMPTY, harmful=(case,)).sha256


def test_every_training_wrapper_carries_the_request() -> None:
    assert all(wrapper.count("{request}") == 1 for wrapper in TRAINING_WRAPPERS)


@pytest.mark.parametrize("share", [0.4, 0.5, 1.0])
def test_a_split_takes_that_share_of_every_group_and_label(share: float) -> None:
    sets = practice_sets(SMALL)
    first, rest = sets.split(share)
    for name in ("harmful", "harmless", "pairs", "injections"):
        whole, taken, left = (getattr(one, name) for one in (sets, first, rest))
        assert Counter(map(repr, (*taken, *left))) == Counter(map(repr, whole))
        by_kind = Counter((case.group, getattr(case, "harmful", None)) for case in whole)
        of_taken = Counter((case.group, getattr(case, "harmful", None)) for case in taken)
        assert of_taken == {kind: int(share * n) for kind, n in by_kind.items()}
    assert (first.sha256 == sets.sha256) is (share == 1.0)
