"""Which flags a run trains on: duplicates, caps, reviews and held-out flags."""

from dataclasses import replace
from typing import Any

import pytest

from guard.criteria import Place
from guard.store.flags import StoredFlag
from refine.options import RefineOptions
from refine.stages.collect import collect

_WORDS = ("apple", "boat", "candle", "drum", "eagle", "fern", "garden", "harp", "isle", "jug")


def request(number: int) -> str:
    """Returns requests that share few pairs of words with one another."""
    return " ".join(
        _WORDS[(number * 5 + k * (number % 7 + 1)) % 10] + str(number) for k in range(8)
    )


@pytest.fixture
def stored(flag: Any) -> Any:
    """Returns a distinct stored flag for each number."""

    def make(number: int, **changes: Any) -> StoredFlag:
        messages = [{"role": "user", "content": request(number)}]
        values = vars(flag) | {"messages": messages, "user_hash": f"user {number}"} | changes
        return StoredFlag(id=number, **values)

    return make


def test_learns_from_every_flag_but_those_set_aside(stored: Any) -> None:
    collection = collect(map(stored, range(1, 41)), [], RefineOptions(held_out_share=0.25))
    assert (len(collection.learn), len(collection.held_out)) == (30, 10)
    assert set(collection.uses) == set(range(1, 41))
    assert collection.uses[collection.held_out[0].flag_id] == "held_out"


def test_what_only_a_criterion_flagged_is_no_harm_to_learn_from(stored: Any) -> None:
    flags = [
        stored(1, categories=("doses",)),
        stored(2, categories=("violence", "doses")),
        stored(3, categories=("doses",), corrected_category="violence"),
    ]
    collection = collect(flags, [], RefineOptions(held_out_share=0))
    assert [case.flag_id for case in collection.learn] == [2, 3]
    assert collection.left_out == {"flagged for a criterion alone": 1}


def test_the_same_flags_give_the_same_collection(stored: Any) -> None:
    flags = [stored(n) for n in range(1, 41)]
    assert collect(flags, [], RefineOptions()) == collect(flags, [], RefineOptions())


def test_near_duplicates_count_once(stored: Any) -> None:
    long = request(1) + " " + request(2) + " " + request(3)
    copies = [
        stored(1, messages=[{"role": "user", "content": long}]),
        stored(2, messages=[{"role": "user", "content": long.upper()}]),
        stored(3, messages=[{"role": "user", "content": f"{long} please"}]),
        stored(4),
    ]
    collection = collect(copies, [], RefineOptions(held_out_share=0))
    assert [case.flag_id for case in collection.learn] == [1, 4]
    assert collection.left_out == {"near-duplicate": 2}


def test_near_duplicates_of_held_out_flags_are_never_trained_on(stored: Any) -> None:
    collection = collect([stored(1), stored(2)], [replace(stored(1), id=99)], RefineOptions())
    assert [case.flag_id for case in collection.learn] == [2]
    assert collection.left_out == {"like a held-out flag": 1}
    assert collection.uses == {1: "repeat", 2: "train"}


def test_one_user_is_capped_and_the_reason_counted(stored: Any) -> None:
    flags = [stored(n, user_hash="one") for n in range(1, 101)]
    collection = collect(flags, [], RefineOptions(per_user=20, held_out_share=0))
    assert len(collection.learn) == 20
    assert collection.left_out == {"over the cap of 20 flags of one user": 80}


def test_unnamed_flags_have_a_cap_of_their_own(stored: Any) -> None:
    flags = [stored(n, user_hash=None) for n in range(1, 31)]
    collection = collect(flags, [], RefineOptions(per_user=5, per_unnamed=25, held_out_share=0))
    assert len(collection.learn) == 25


def test_categories_and_the_run_are_capped(stored: Any) -> None:
    flags = [stored(n, categories=("hate",) if n % 2 else ("violence",)) for n in range(1, 41)]
    options = RefineOptions(per_category=15, max_flags=25, held_out_share=0)
    collection = collect(flags, [], options)
    by_category = [case.category for case in collection.learn]
    assert (by_category.count("hate"), by_category.count("violence")) == (13, 12)
    assert collection.left_out == {"over the cap of 25 flags in a run": 15}


def test_a_dismissed_flag_is_not_harmful(stored: Any) -> None:
    flags = [stored(1, review="dismissed"), stored(2, review="confirmed"), stored(3)]
    collection = collect(flags, [], RefineOptions(held_out_share=0))
    assert [case.flag_id for case in collection.learn] == [2, 3]
    assert [case.flag_id for case in collection.fine] == [1]


def test_review_can_be_required(stored: Any) -> None:
    flags = [stored(1), stored(2, review="confirmed")]
    collection = collect(flags, [], RefineOptions(require_review=True, held_out_share=0))
    assert [case.flag_id for case in collection.learn] == [2]
    assert collection.left_out == {"not reviewed": 1}


def test_a_case_has_the_revision_that_was_sent(stored: Any) -> None:
    flags = [stored(1, revision="Ask the gnome first."), stored(2)]
    collection = collect(flags, [], RefineOptions(held_out_share=0))
    assert [case.revision for case in collection.learn] == ["Ask the gnome first.", None]


def test_a_case_has_the_reviewers_corrections(stored: Any) -> None:
    corrected = {"corrected_category": "hate", "corrected_answer": "No."}
    flags = [stored(1, review="confirmed", **corrected), stored(2)]
    collection = collect(flags, [], RefineOptions(held_out_share=0))
    corrections = [(case.category, case.correction) for case in collection.learn]
    assert corrections == [("hate", "No."), (flags[1].categories[0], None)]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "a"}, *[{"role": "assistant", "content": "b"}] * 2],
        [{"role": "user", "content": None}],
    ],
)
def test_flags_without_text_are_left_out(stored: Any, messages: Any) -> None:
    collection = collect([stored(1, messages=messages)], [], RefineOptions())
    assert collection.left_out == {"not text": 1}


def test_an_answer_that_the_caller_began_is_learned_whole(stored: Any) -> None:
    user = {"role": "user", "content": "a"}
    flag = stored(1, messages=[user, {"role": "assistant", "content": "Sure, "}], answer="do it.")
    (case,) = collect([flag], [], RefineOptions(held_out_share=0)).learn
    assert (case.messages, case.answer) == ((user,), "Sure, do it.")


def test_text_parts_are_joined(stored: Any) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    collection = collect(
        [stored(1, messages=[{"role": "user", "content": parts}])],
        [],
        RefineOptions(held_out_share=0),
    )
    assert collection.learn[0].request == "one\ntwo"


def test_nothing_is_learned_from_flagged_inputs(stored: Any) -> None:
    inputs = [stored(1, place=Place.INPUT), stored(2, place=Place.TOOL_RESULT, answer="")]
    collection = collect([*inputs, stored(3)], [], RefineOptions(held_out_share=0.0))
    assert [case.flag_id for case in collection.learn] == [3]
    assert collection.left_out == {"flagged in the input": 2}
