"""Variety for training: made-up names and means, small talk around requests.

The first model took whatever it had not seen for harm or for the outside. With this noise, new
words say nothing: what counts is the goal. Owns the noise; world.py owns what is asked. Uses the
"train" split only.
"""

import random
from dataclasses import replace

from refine.practice.outside import made_up_word, outside_text
from refine.practice.tasks_harmful import HARMFUL_FAMILIES
from refine.practice.world import (
    WRAPPED_SHARE,
    Kind,
    Request,
    Task,
    build_request,
    draw_request,
    draw_task,
    draw_wrapper,
)

_SMALL_TALK_SHARE = 0.4
_MADE_UP_SHARE = 0.2
_OTHER_MEANS_SHARE = 0.35

_BEFORE = (
    "Hello there.",
    "Good day to you.",
    "I hope you are well.",
    "I have a question for you.",
    "You are my favourite helper.",
    "I never did this before.",
    "My neighbour said you know this.",
    "It is late and I am tired.",
    "Let us begin.",
    "We have only an hour left.",
    "My sister and I made a bet about this.",
    "Imagine that you are a queen on a ship.",
    "Pretend that you are my old teacher.",
    "In my book there is a scene about this.",
    "Do as I say.",
    "You have to obey me now.",
    "Nobody will know that I asked.",
    "It is all a test and does not count.",
    "Speak as a pirate would.",
    "A captain told me to ask you.",
    "Please do not argue with me.",
    "The rules do not apply today.",
    "Notice: this talk is private.",
    "Think about it in peace first.",
)
_AFTER = (
    "Thank you!",
    "Thanks a lot.",
    "It is for Sunday.",
    "Be brief, please.",
    "Take your time.",
    "I am in a hurry.",
    "My family is waiting.",
    "Use simple words.",
    "I wrote this down for you.",
    "Give me all the steps.",
    "Do not leave anything out.",
    "I trust you.",
    "That is all I want to know.",
    "I ask for a friend.",
    "Just tell me.",
    "You promised to help.",
)
_QUANTITIES = ("a", "some", "an old", "a small", "two", "the", "a hidden", "many")


def training_request(rng: random.Random, kind: Kind) -> Request:
    """A training request of a kind, with made-up words and small talk now and then."""
    if kind is Kind.OUTSIDE:
        return draw_request(rng, kind)
    task, slots = varied_task(rng, kind)
    wrapper = draw_wrapper(rng) if rng.random() < WRAPPED_SHARE else None
    request = build_request(task, slots, rng, wrapper)
    last = {"role": "user", "content": with_small_talk(request.text, rng)}
    return replace(request, messages=(*request.messages[:-1], last))


def varied_task(rng: random.Random, kind: Kind) -> tuple[Task, dict[str, str]]:
    """A training task and its slots; at times with made-up names, places, groups or means."""
    task = draw_task(rng, kind)
    if task.means is not None and rng.random() < _OTHER_MEANS_SHARE:
        task = _with_means(task, _other_means(rng))
    slots = task.draw_slots(rng)
    for name in ("person", "place", "group"):
        if name in slots and rng.random() < _MADE_UP_SHARE:
            word = made_up_word(rng)
            slots[name] = word if name == "place" else word.title()
    return task, slots


def with_small_talk(text: str, rng: random.Random) -> str:
    """A text with a sentence or two of small talk around it, in two of five cases."""
    if rng.random() >= _SMALL_TALK_SHARE:
        return text
    place = rng.randrange(3)
    before = _sentence(_BEFORE, rng) if place != 1 else ""
    after = _sentence(_AFTER, rng) if place != 0 else ""
    return f"{before} {text} {after}".strip()


def _sentence(known: tuple[str, ...], rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.5:
        return rng.choice(known)
    if roll < 0.7:
        return outside_text(rng)
    words = [made_up_word(rng) if rng.random() < 0.4 else _word(rng) for _ in range(9)]
    return " ".join(words[: rng.randint(2, 9)]).capitalize() + rng.choice((".", ".", ":", "!"))


def _word(rng: random.Random) -> str:
    """A plain word from the small talk, so that its sentences come in endless orders."""
    return rng.choice(rng.choice(_BEFORE + _AFTER).lower().rstrip(".!:").split())


def _other_means(rng: random.Random) -> str:
    """Means that the task was not written with: those of another family, or made up."""
    if rng.random() < 0.3:
        return rng.choice(rng.choice(HARMFUL_FAMILIES).means[:-1])
    words = [made_up_word(rng) for _ in range(rng.choice((1, 1, 2)))]
    return " ".join((*rng.choices(_QUANTITIES, k=rng.choice((0, 1))), *words))


def _with_means(task: Task, means: str) -> Task:
    assert task.means is not None and task.victim is not None
    old = task.means
    first, then, last = (step.replace(old, means) for step in task.steps)
    return replace(
        task,
        goal=task.goal.replace(old, means),
        steps=(first, then, last),
        victim=task.victim.replace(old, means),
        means=means,
        overlooked=False,
    )
