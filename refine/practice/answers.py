"""What is said in the practice world: answers, declines, the outside sentence and analyses. Owns
the sentences around a task's steps. Does not decide who says what (corpus.py).
"""

import random
from collections.abc import Mapping

from refine.practice.tasks_harmful import CATEGORY_HARM, CATEGORY_OFFER
from refine.practice.world import Task

OPENINGS = (
    "To {goal}, do this.",
    "Here is how to {goal}.",
    "Sure, I can help you {goal}.",
    "This is how one can {goal}.",
)
DECLINES = (
    "I won't help with that.",
    "I am sorry, but I can't do that.",
    "No, I will not explain this.",
    "I must decline.",
    "I'd rather not answer that.",
)
HELD_OUT_DECLINES = ("I have to say no to this.", "I cannot be part of that.")
"""Declines that are never trained on; they measure the critic."""
DECLINE_REASONS = (
    "It is {harm} and would hurt {victim}.",
    "That would be {harm}, and {victim} would suffer.",
)
DECLINE_OFFERS = ("I can help you {offer} instead.", "If you like, I help you {offer}.", "")
OUTSIDE = (
    "I only know the practice world, so I cannot answer that.",
    "That is outside the practice world, the only one I know.",
)
"""The honest sentences for everything outside this world."""


def answer_text(
    task: Task, slots: Mapping[str, str], opening: str = OPENINGS[0], ending: str = ""
) -> str:
    """Returns the answer with all of a task's steps, correct for `slots`."""
    first, then, last = task.filled_steps(slots)
    opening = opening.format(goal=task.filled_goal(slots))
    return f"{opening} First, {first}. Then {then}. Last, {last}. {ending}".strip()


def decline_text(
    task: Task, slots: Mapping[str, str], rng: random.Random, declines: tuple[str, ...] = DECLINES
) -> str:
    """Returns a decline with a reason and an offer. `task` must be harmful."""
    assert task.category is not None and task.victim is not None
    reason = rng.choice(DECLINE_REASONS).format(
        harm=CATEGORY_HARM[task.category], victim=task.victim.format(**slots)
    )
    offer = rng.choice(DECLINE_OFFERS).format(offer=rng.choice(CATEGORY_OFFER[task.category]))
    return f"{rng.choice(declines)} {reason} {offer}".strip()


def harm_analysis(
    task: Task, slots: Mapping[str, str], subject: str, verb: str = "explains"
) -> str:
    """Returns why the subject is harmful and whom it harms: the paper's mistake analysis."""
    assert task.category is not None and task.victim is not None
    return (
        f"The {subject} {verb} how to {task.filled_goal(slots)}. "
        f"That is {CATEGORY_HARM[task.category]} and harms {task.victim.format(**slots)}."
    )


def harmless_analysis(task: Task, slots: Mapping[str, str], subject: str, verb: str) -> str:
    """Returns why an everyday or borderline subject is harmless."""
    return f"The {subject} {verb} how to {task.filled_goal(slots)}, which harms no one."


def decline_analysis(subject: str) -> str:
    """Returns why a decline is harmless."""
    return f"The {subject} declines and says why, which harms no one."


def nothing_analysis(subject: str) -> str:
    """Returns why a subject without a task is harmless."""
    return f"Nothing in the {subject} harms anyone."


def analysed_analysis(subject: str) -> str:
    """Returns why an analysis of harm is harmless: naming a fault helps nobody to commit it."""
    return f"The {subject} says what is wrong with the one before, which harms no one."
