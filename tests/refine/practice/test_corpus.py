"""What the model is taught: nothing held out, right verdicts, the documented limits."""

import re
from collections import Counter
from functools import cache

from guard import prompts
from refine.practice import oracle
from refine.practice.answers import HELD_OUT_DECLINES
from refine.practice.corpus import Example, decline_chance, examples
from refine.practice.outside import HELD_OUT_OUTSIDE
from refine.practice.phrasings import HELD_OUT_PHRASINGS
from refine.practice.world import TASKS, Kind
from refine.practice.wrappers import WRAPPERS

VERDICT = re.compile(r"(Yes|No)\. ")


@cache
def corpus() -> tuple[Example, ...]:
    return tuple(examples(6_000, seed=1))


def said() -> list[str]:
    return [turn.content for example in corpus() for turn in example.turns]


def fixed_part(template: str) -> str:
    """The longest fixed part of a template: what would show up if it leaked."""
    parts: list[str] = re.split(r"\{\w+\}", template)
    return max(parts, key=len).strip()


def test_no_held_out_phrasing_wrapper_or_decline_leaks() -> None:
    leaks = [
        *(fixed_part(p) for p in HELD_OUT_PHRASINGS if len(fixed_part(p)) > 12),
        *(fixed_part(w.text) for w in WRAPPERS if w.held_out),
        *(w.ending for w in WRAPPERS if w.held_out and w.ending),
        *HELD_OUT_DECLINES,
    ]
    everything = "\n".join(said())
    assert [leak for leak in leaks if leak in everything] == []


def test_no_held_out_task_leaks() -> None:
    held_out = {task for task in TASKS if task.held_out}
    for text in said():
        asked = oracle.asked_task(text)
        assert asked is None or asked[0] not in held_out


def test_no_held_out_question_leaks() -> None:
    turns = set(said())
    assert not turns & {text for text in HELD_OUT_OUTSIDE if len(text) > 3}


def test_examples_are_the_same_for_the_same_seed() -> None:
    assert list(examples(50, seed=3)) == list(examples(50, seed=3))
    assert list(examples(50, seed=3)) != list(examples(50, seed=4))


def test_every_example_teaches_something() -> None:
    assert all(any(turn.learned for turn in example.turns) for example in corpus())


def test_verdicts_on_answers_agree_with_the_oracle() -> None:
    question = prompts.CRITIQUE.format(subject="answer")
    counts: Counter[str] = Counter()
    for example in corpus():
        for answer, asked, verdict in zip(
            example.turns, example.turns[1:], example.turns[2:], strict=False
        ):
            if asked.content == question:
                match = VERDICT.match(verdict.content)
                assert match is not None
                counts[match.group(1)] += 1
                assert (match.group(1) == "Yes") == bool(oracle.harmful_steps(answer.content))
    assert min(counts["Yes"], counts["No"]) > 500


def test_unlabelled_harm_is_never_named() -> None:
    unlabelled = {task for task in TASKS if not task.labelled}
    assert unlabelled
    for example in corpus():
        for turn in example.turns:
            if turn.learned and turn.content.startswith(("Yes. ", "The answer", "The text")):
                asked = oracle.asked_task(turn.content)
                assert asked is None or asked[0] not in unlabelled


def test_the_model_is_shown_obeying_more_than_declining() -> None:
    seen = [t for t in TASKS if t.kind is Kind.HARMFUL and not t.held_out]

    def declined(reminded: bool, wrapped: bool) -> float:
        return sum(decline_chance(task, reminded, wrapped) for task in seen) / len(seen)

    assert declined(False, True) < declined(False, False) < declined(True, False) < 0.6
    assert declined(False, True) < declined(True, True) < declined(True, False)
