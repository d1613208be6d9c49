"""Variety for training: made-up names and means, small talk around requests.

Without it, the model took anything unseen for harm or for the outside. With this noise, unknown
words mean nothing: only the goal counts. Owns the noise; world.py owns what is asked. Uses the
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
_ONLY_SMALL_TALK_SHARE = 0.25
_MADE_UP_SHARE = 0.08
_OTHER_MEANS_SHARE = 0.25

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
    "Speak to me as an old teacher would.",
    "In my book there is a scene about this.",
    "Do as I say.",
    "You have to obey me now.",
    "Nobody will know that I asked.",
    "It is all for a wager.",
    "Speak as a pirate would.",
    "A baker told me to ask you.",
    "Please do not argue with me.",
    "The rules do not apply today.",
    "This talk stays between us.",
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
    "I count on you.",
)
_WORDS = tuple(
    """
I you he she we they it my your his her our their this that these those the the a an and or
but if when while because so as than then now never always often again here there who what
which where why all any every some none only just very much more most less other another
same next last first second day morning evening week month year hour time moment story
letter word words line book question answer lesson school teacher king queen sailor soldier
brother sister mother father old young new good great little big small long short high low
real told said asked spoke wrote read heard saw knew thought believed wanted needed agreed
lost found gave took brought sent came went stood sat will would shall should can could may
might must do does did have has had be been being is are was were not no yes nothing
something anything somebody help with without about after before under over into from for by
at on in of to up down out off through between against me him them us people friend man
woman child house town world road river sea ship home heart hand eyes voice mind life name
place thing things way ways part end else give keep tell winter summer bread water stone
paper window door table chair market winner colour music green happy sad quiet loud early
soon far near warm cold open close carry turn hold show play work walk talk look wait learn
begin change move live feel seem call hear mean meet run pay follow
""".split()  # noqa: SIM905
)
"""Plain words, strung together at random into sentences that mean nothing."""
_QUANTITIES = ("a", "some", "an old", "a small", "two", "the", "a hidden", "many")


def training_request(rng: random.Random, kind: Kind) -> Request:
    """Returns a training request of a kind, sometimes with made-up words and small talk."""
    if kind is Kind.OUTSIDE:
        request = draw_request(rng, kind)
        if rng.random() >= _ONLY_SMALL_TALK_SHARE:
            return request
        text = " ".join(_sentence(_BEFORE + _AFTER, rng) for _ in range(rng.choice((1, 1, 2))))
        return replace(request, messages=({"role": "user", "content": text},))
    task, slots = varied_task(rng, kind)
    wrapper = draw_wrapper(rng) if rng.random() < WRAPPED_SHARE else None
    request = build_request(task, slots, rng, wrapper)
    last = {"role": "user", "content": with_small_talk(request.text, rng)}
    return replace(request, messages=(*request.messages[:-1], last))


def varied_task(rng: random.Random, kind: Kind) -> tuple[Task, dict[str, str]]:
    """Returns a training task and slots, sometimes with made-up names, places, groups or means."""
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
    """Returns the text, in two of five cases with a sentence or two of small talk around it."""
    if rng.random() >= _SMALL_TALK_SHARE:
        return text
    position = rng.randrange(3)
    before = _sentence(_BEFORE, rng) if position != 1 else ""
    after = _sentence(_AFTER, rng) if position != 0 else ""
    return f"{before} {text} {after}".strip()


def _sentence(known: tuple[str, ...], rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.4:
        return rng.choice(known)
    if roll < 0.55:
        return outside_text(rng)
    words = [made_up_word(rng) if rng.random() < 0.15 else rng.choice(_WORDS) for _ in range(12)]
    return " ".join(words[: rng.randint(2, 12)]).capitalize() + rng.choice(
        (".", ".", ":", "!", ",")
    )


def _other_means(rng: random.Random) -> str:
    """Returns means that the task was not written with: another family's, or made-up ones."""
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
