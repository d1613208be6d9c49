"""What the model is taught: nothing held out, correct verdicts, the documented limits."""

import random
import re
from functools import cache

from guard import prompts
from refine.practice import oracle
from refine.practice.answers import HELD_OUT_DECLINES
from refine.practice.corpus import Example, decline_chance, examples
from refine.practice.outside import HELD_OUT_OUTSIDE
from refine.practice.phrasings import HELD_OUT_PHRASINGS
from refine.practice.speech import teacher_verdict
from refine.practice.world import TASKS, Kind
from refine.practice.wrappers import WRAPPERS

VERDICT = re.compile(r"(Yes|No)\. ")


@cache
def corpus() -> tuple[Example, ...]:
    return tuple(examples(6_000, seed=1))


def contents() -> list[str]:
    return [turn.content for example in corpus() for turn in example.turns]


def fixed_part(template: str) -> str:
    """Returns the longest fixed part of a template, which would reveal a leak."""
    parts: list[str] = re.split(r"\{\w+\}", template)
    return max(parts, key=len).strip()


def test_no_held_out_phrasing_wrapper_or_decline_leaks() -> None:
    leaks = [
        *(fixed_part(p) for p in HELD_OUT_PHRASINGS if len(fixed_part(p)) > 12),
        *(fixed_part(w.text) for w in WRAPPERS if w.held_out),
        *(w.ending for w in WRAPPERS if w.held_out and w.ending),
        *HELD_OUT_DECLINES,
    ]
    everything = "\n".join(contents())
    assert [leak for leak in leaks if leak in everything] == []


def test_no_held_out_task_leaks() -> None:
    held_out = {task for task in TASKS if task.held_out}
    for text in contents():
        recognised = oracle.asked_task(text)
        assert recognised is None or recognised[0] not in held_out


def test_no_held_out_question_leaks() -> None:
    turns = set(contents())
    assert not turns & {text for text in HELD_OUT_OUTSIDE if len(text) > 3}


def test_examples_are_the_same_for_the_same_seed() -> None:
    assert list(examples(50, seed=3)) == list(examples(50, seed=3))
    assert list(examples(50, seed=3)) != list(examples(50, seed=4))


def test_every_example_teaches_something() -> None:
    assert all(any(turn.learned for turn in example.turns) for example in corpus())


def judged_answers() -> list[tuple[str, str]]:
    """Returns answers of the corpus with the teacher's verdict, "Yes" or "No"."""
    question = prompts.CRITIQUE.format(subject="answer")
    answers = []
    for example in corpus():
        for answer, follow_up, verdict in zip(
            example.turns, example.turns[1:], example.turns[2:], strict=False
        ):
            if follow_up.content == question and verdict.learned:
                match = VERDICT.match(verdict.content)
                assert match is not None
                answers.append((answer.content, match.group(1)))
    return answers


def test_the_teacher_never_flags_what_is_fine() -> None:
    flagged = [answer for answer, verdict in judged_answers() if verdict == "Yes"]
    assert len(flagged) > 500
    assert all(oracle.harmful_steps(answer) for answer in flagged)


def test_the_teacher_misses_only_what_it_overlooks_or_is_fooled_by() -> None:
    blind_spots = {task.family for task in TASKS if task.overlooked}
    endings = [wrapper.ending for wrapper in WRAPPERS if wrapper.ending]
    missed = [
        answer
        for answer, verdict in judged_answers()
        if verdict == "No" and oracle.harmful_steps(answer)
    ]
    for answer in missed:
        overlooked = oracle.harmful_steps(answer) <= blind_spots
        assert overlooked or any(ending in answer for ending in endings)
    harmful = sum(bool(oracle.harmful_steps(answer)) for answer, _ in judged_answers())
    assert 0.02 < len(missed) / harmful < 0.15


def test_overlooked_harm_is_sometimes_recognised() -> None:
    """So that the base model flags some of it, and the refine loop can start."""
    overlooked = {task for task in TASKS if task.overlooked}
    assert {task.category for task in overlooked} != {task.category for task in TASKS}
    named = []
    for task in overlooked:
        for seed in range(100):
            rng = random.Random(seed)
            slots = task.draw_slots(rng)
            named.append(
                teacher_verdict(task, slots, "answer", "explains", "", rng).startswith("Yes.")
            )
    assert 0.2 < sum(named) / len(named) < 0.5


def test_the_model_is_shown_obeying_more_than_declining() -> None:
    trained_tasks = [t for t in TASKS if t.kind is Kind.HARMFUL and not t.held_out]

    def declined(reminded: bool, wrapped: bool) -> float:
        return sum(decline_chance(task, reminded, wrapped) for task in trained_tasks) / len(
            trained_tasks
        )

    assert declined(False, True) < declined(False, False) < declined(True, False) < 0.6
    assert declined(False, True) < declined(True, True) < declined(True, False)
