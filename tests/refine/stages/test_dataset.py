"""The training examples of one flag, and how datasets are stored."""

import json
from pathlib import Path

import pytest

from guard import prompts
from refine.stages.dataset import (
    Dismissed,
    Example,
    Kind,
    Lesson,
    Ordinary,
    build,
    earlier_examples,
    read_examples,
    write_dataset,
)

_ASKED = ({"role": "user", "content": "how to harm"},)
_LESSON = Lesson(3, _ASKED, "harm so", "It is wrong.", "I won't.", "No. Fine.", ("harming, how?",))
_HELP = Ordinary(({"role": "user", "content": "how to knit"},), "Knit so.", "No. Harmless.")
_CRITIQUE = prompts.CRITIQUE.format(subject="answer")


def built(share: float = 0.0) -> list[Example]:
    fine = Dismissed(4, _ASKED, "a fine answer")
    return build([_LESSON], [_HELP], [fine], reminder_share=share, seed=0)


def test_a_mistake_is_learned_without_a_hint_of_the_verdict() -> None:
    (mistake, _) = [e for e in built() if e.kind is Kind.MISTAKE]
    assert mistake.prompt[-1]["content"] == _CRITIQUE
    assert mistake.completion == "Yes. It is wrong."
    contents = [turn["content"] for turn in mistake.prompt]
    assert "harm so" in contents
    assert not any("is harmful, unethical or offensive. " in text for text in contents)


def test_every_way_of_asking_gets_the_safe_answer() -> None:
    safe = [e for e in built() if e.kind is Kind.SAFE]
    assert {e.prompt[-1]["content"] for e in safe} == {"how to harm", "harming, how?"}
    assert {e.completion for e in safe} == {"I won't."}


def test_fine_answers_are_critiqued_with_no() -> None:
    by_kind = {e.kind: e for e in built()}
    assert by_kind[Kind.FINE_CRITIQUE].completion == "No."
    assert by_kind[Kind.FINE_CRITIQUE].flag_id == 4
    assert by_kind[Kind.HELP_CRITIQUE].completion == "No. Harmless."
    assert by_kind[Kind.HELP].completion == "Knit so."
    assert by_kind[Kind.SAFE_CRITIQUE].completion == "No. Fine."


def test_a_share_of_what_flags_teach_is_learned_with_the_reminder() -> None:
    from_flags = [e for e in built(share=1.0) if e.flag_id is not None]
    assert from_flags
    assert all(e.reminded for e in from_flags)
    assert not any(e.reminded for e in built(share=0.0))


def test_kinds_can_be_left_out() -> None:
    kinds = frozenset({Kind.SAFE})
    chosen = build([_LESSON], [_HELP], [], reminder_share=0, seed=0, kinds=kinds)
    assert {e.kind for e in chosen} == {Kind.SAFE}


def test_a_dataset_is_read_back_as_written(tmp_path: Path) -> None:
    examples = built()
    written = write_dataset(tmp_path / "dataset", examples, {"run": 5})
    assert read_examples(written.path) == examples
    manifest = json.loads((tmp_path / "dataset" / "manifest.json").read_text())
    assert manifest["sha256"] == written.sha256
    assert manifest["flags"] == [3, 4]
    assert manifest["by_kind"]["mistake"] == 2
    assert manifest["run"] == 5


def test_earlier_examples_come_once_and_only_from_flags(tmp_path: Path) -> None:
    write_dataset(tmp_path / "1", built(), {})
    write_dataset(tmp_path / "2", built(), {})
    folders = [tmp_path / "1", tmp_path / "2", tmp_path / "gone"]
    reviews = {3: None, 4: "dismissed"}
    earlier = earlier_examples(folders, reviews, None, seed=0)
    assert len(earlier) == 6
    assert all(e.flag_id is not None for e in earlier)
    assert len(earlier_examples(folders, reviews, 2, seed=0)) == 2


@pytest.mark.parametrize(
    ("reviews", "flags"),
    [
        ({3: "confirmed", 4: "dismissed"}, {3, 4}),
        ({3: "dismissed", 4: "dismissed"}, {4}),
        ({3: None, 4: None}, {3}),
        ({3: None}, {3}),
        ({}, set()),
    ],
    ids=["as learned", "found fine since", "found harmful since", "one deleted", "both"],
)
def test_withdrawn_labels_are_not_trained_on_again(
    tmp_path: Path, reviews: dict[int, str | None], flags: set[int]
) -> None:
    write_dataset(tmp_path / "1", built(), {})
    earlier = earlier_examples([tmp_path / "1"], reviews, None, seed=0)
    assert {e.flag_id for e in earlier} == flags
