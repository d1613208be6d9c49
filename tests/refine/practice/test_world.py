"""The world's size, its splits, and that requests are reproducible."""

import random
import re

import pytest

from guard.prompts import REMINDER
from guard.verdict import CATEGORIES
from refine.practice.phrasings import HELD_OUT_PHRASINGS, PHRASINGS
from refine.practice.slots import SLOTS
from refine.practice.world import SPLITS, TASKS, Kind, Request, Split, requests
from refine.practice.wrappers import WRAPPERS

IN_WORLD = (Kind.EVERYDAY, Kind.HARMFUL, Kind.BORDERLINE)


def tasks(kind: Kind) -> set[str]:
    return {task.goal for task in TASKS if task.kind is kind}


def held_out_phrasing(request: Request) -> bool:
    assert request.task is not None
    goal = request.task.filled_goal(request.slots or {})
    return any(p.format(goal=goal) in request.text for p in HELD_OUT_PHRASINGS)


def test_world_is_large_enough() -> None:
    categories = {task.category for task in TASKS if task.category}
    assert len(tasks(Kind.EVERYDAY)) >= 60
    assert len(tasks(Kind.HARMFUL)) >= 40
    assert len(tasks(Kind.BORDERLINE)) >= 20
    assert len(categories) >= 6
    assert categories <= set(CATEGORIES)
    assert len({*PHRASINGS, *HELD_OUT_PHRASINGS}) >= 25
    assert len({w.name for w in WRAPPERS}) >= 8
    assert {"injection"} < {w.family for w in WRAPPERS}


def test_nothing_in_the_world_is_sexual() -> None:
    text = " ".join(" ".join((task.goal, *task.steps)) for task in TASKS).lower()
    assert not re.search(r"\b(sex\w*|nude|naked|erotic|porn\w*|rape\w*|lust\w*|kiss\w*)\b", text)
    assert not any(task.category and "sexual" in task.category for task in TASKS)


def test_every_category_has_held_out_and_seen_tasks() -> None:
    for category in {task.category for task in TASKS if task.category}:
        held_out = {task.held_out for task in TASKS if task.category == category}
        assert held_out == {True, False}


def test_an_answer_needs_no_slot_that_the_request_does_not_give() -> None:
    for task in TASKS:
        placeholders = set(re.findall(r"\{(\w+)\}", task.goal))
        assert task.slot_names == placeholders, task.goal


def test_phrasings_and_tasks_do_not_repeat() -> None:
    assert not set(PHRASINGS) & set(HELD_OUT_PHRASINGS)
    goals = [task.goal for task in TASKS]
    assert len(goals) == len(set(goals))


@pytest.mark.parametrize("name", sorted(SLOTS))
def test_every_slot_value_is_one_word(name: str) -> None:
    assert all(re.fullmatch(r"\w+", value) for value in SLOTS[name])


@pytest.mark.parametrize("kind", IN_WORLD)
def test_training_requests_hold_nothing_that_is_held_out(kind: Kind) -> None:
    for request in requests(kind, "train", 400):
        assert request.task is not None
        assert not request.task.held_out
        assert request.wrapper is None or not request.wrapper.held_out
        assert not held_out_phrasing(request)


@pytest.mark.parametrize("kind", IN_WORLD)
@pytest.mark.parametrize("split", ["phrasing", "task", "wrapper"])
def test_held_out_requests_hold_out_what_their_split_says(kind: Kind, split: Split) -> None:
    for request in requests(kind, split, 60):
        assert request.task is not None
        assert held_out_phrasing(request)
        assert request.task.held_out == (split == "task")
        unseen_wrapper = request.wrapper is not None and request.wrapper.held_out
        assert unseen_wrapper == (split == "wrapper")


def test_held_out_requests_mix_the_axes() -> None:
    harmful = requests(Kind.HARMFUL, "held-out", 200)
    assert {bool(r.task and r.task.held_out) for r in harmful} == {True, False}
    assert {bool(r.wrapper and r.wrapper.held_out) for r in harmful} == {True, False}
    everyday = requests(Kind.EVERYDAY, "held-out", 200)
    assert not any(r.task and r.task.held_out for r in everyday)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", list(Kind))
def test_requests_are_the_same_for_the_same_seed(kind: Kind, split: Split) -> None:
    assert requests(kind, split, 20, seed=3) == requests(kind, split, 20, seed=3)


def test_another_seed_asks_something_else() -> None:
    assert requests(Kind.HARMFUL, seed=1) != requests(Kind.HARMFUL, seed=2)


def test_some_requests_have_earlier_turns() -> None:
    lengths = {len(request.messages) for request in requests(Kind.EVERYDAY, "held-out", 100)}
    assert lengths >= {1, 3, 5}


def test_the_reminder_is_the_system_turn() -> None:
    request = requests(Kind.HARMFUL, n=1)[0]
    reminded = request.reminded(REMINDER)
    assert reminded.messages == ({"role": "system", "content": REMINDER}, *request.messages)
    assert reminded.text == request.text


def test_outside_list_is_long_and_never_trained_on() -> None:
    held_out = {request.text for request in requests(Kind.OUTSIDE, n=500)}
    rng = random.Random(0)
    trained = {r.text for r in requests(Kind.OUTSIDE, "train", 5_000, seed=rng.randint(0, 9))}
    assert len(held_out) >= 60
    assert not held_out & trained
