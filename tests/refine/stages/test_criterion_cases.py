"""What reviewers' labels say of an operator's criteria, and what is held out."""

from typing import Any

import pytest

from guard.store.flags import StoredFlag
from refine.options import RefineOptions
from refine.stages.criterion_cases import CriterionCases, collect_criteria

NAMES = ("doses", "brands")


@pytest.fixture
def stored(flag: Any) -> Any:
    """Returns a stored flag whose request is like no other's."""

    def make(number: int, categories: tuple[str, ...], **changes: Any) -> StoredFlag:
        request = " ".join(f"word{number * 31 + k}" for k in range(8))
        messages = [{"role": "user", "content": request}]
        values = vars(flag) | {"messages": messages, "categories": categories} | changes
        return StoredFlag(id=number, **values)

    return make


def collected(flags: list[StoredFlag], **options: Any) -> CriterionCases:
    options = {"held_out_share": 0, **options}
    return collect_criteria(flags, [], NAMES, RefineOptions(**options), {})


@pytest.mark.parametrize(
    ("categories", "label", "expected"),
    [
        (("doses",), {"review": "confirmed"}, {"doses": True}),
        (("doses", "brands"), {"review": "confirmed"}, {"doses": True, "brands": True}),
        (("doses",), {"review": "dismissed"}, {"doses": False}),
        (("violence", "doses"), {"review": "dismissed"}, {"doses": False}),
        (("violence", "doses"), {"review": "confirmed"}, {}),
        (("doses",), {"review": "confirmed", "corrected_category": "brands"}, {"brands": True}),
        (("doses",), {"review": "confirmed", "corrected_category": "hate"}, {}),
        (("violence",), {"review": "confirmed", "corrected_category": "doses"}, {"doses": True}),
        (("gone",), {"review": "confirmed"}, {}),
        (("doses",), {}, {}),
    ],
)
def test_a_label_says_which_criteria_apply(
    stored: Any, categories: tuple[str, ...], label: dict[str, str], expected: dict[str, bool]
) -> None:
    cases = collected([stored(1, categories, **label)]).learn
    assert {case.criterion: case.applies for case in cases} == expected


def test_what_was_sent_instead_is_a_safe_answer_unless_the_flag_was_a_false_alarm(
    stored: Any,
) -> None:
    flags = [
        stored(1, ("doses",), review="confirmed", revision="Ask a doctor."),
        stored(2, ("doses",), review="confirmed", revision="x", corrected_answer="Ask a nurse."),
        stored(3, ("doses",), review="dismissed", revision="Ask a doctor."),
    ]
    answers = [case.safe_answer for case in collected(flags).learn]
    assert answers == ["Ask a doctor.", "Ask a nurse.", None]


def test_the_same_share_of_each_label_is_held_out(stored: Any) -> None:
    flags = [
        stored(n, ("doses",), review="confirmed" if n % 4 else "dismissed") for n in range(1, 41)
    ]
    cases = collected(flags, held_out_share=0.2)
    assert [case.applies for case in cases.held_out].count(True) == 6
    assert [case.applies for case in cases.held_out].count(False) == 2
    assert len(cases.learn) == 32
    assert set(cases.uses) == set(range(1, 41))


def test_what_an_earlier_run_held_out_is_measured_again_and_its_like_not_learned(
    stored: Any,
) -> None:
    earlier = stored(1, ("doses",), review="confirmed")
    same = stored(2, ("doses",), review="confirmed", messages=earlier.messages)
    contradicting = stored(3, ("doses",), review="dismissed", messages=earlier.messages)
    cases = collect_criteria(
        [same, contradicting], [earlier], NAMES, RefineOptions(held_out_share=0), {}
    )
    assert [case.flag_id for case in cases.held_out] == [1]
    assert [case.flag_id for case in cases.learn] == [3]
    assert cases.uses == {3: "train"}


def test_one_user_teaches_a_criterion_no_more_than_the_cap(stored: Any) -> None:
    flags = [stored(n, ("doses",), review="confirmed", user_hash="u") for n in range(1, 10)]
    assert len(collected(flags, per_user=4).learn) == 4


def test_what_the_model_cannot_be_asked_about_is_left_out(stored: Any) -> None:
    flag = stored(1, ("doses",), review="confirmed")
    cases = collect_criteria([flag], [], NAMES, RefineOptions(), {1: "too long"})
    assert cases == CriterionCases()
