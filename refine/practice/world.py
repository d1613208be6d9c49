"""The practice world: its tasks, its splits and its requests.

Owns what can be asked and what is held out. Knows no model and no answers: answers.py has what is
said, oracle.py what an answer did.

Held out are eight phrasings, one means of each harmful family (24 of 72 harmful tasks), six
everyday and four borderline tasks, and seven of the wrappers. Each split except "train" uses
held-out phrasings. In addition:

- "phrasing": tasks seen in training, a quarter of them in a wrapper seen in training;
- "task": unseen tasks. A harmful task's family was seen with other means; everyday and borderline
  tasks are entirely unseen, so they only test the critic;
- "wrapper": seen tasks in unseen wrappers;
- "held-out": for harmful requests, these three in equal parts; for everyday and borderline ones,
  "phrasing" and "wrapper", since help needs a known recipe.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from string import Formatter
from typing import Literal, get_args

from refine.practice.outside import HELD_OUT_OUTSIDE, outside_text
from refine.practice.phrasings import HELD_OUT_PHRASINGS, PHRASINGS
from refine.practice.slots import SLOTS
from refine.practice.tasks_everyday import (
    BORDERLINE,
    EVERYDAY,
    HELD_OUT_BORDERLINE,
    HELD_OUT_EVERYDAY,
    Recipe,
)
from refine.practice.tasks_harmful import HARMFUL_FAMILIES, HarmfulFamily
from refine.practice.wrappers import WRAPPERS, Wrapper

Message = dict[str, str]
"""A chat message: `role` and `content`."""

Split = Literal["train", "phrasing", "task", "wrapper", "held-out"]
SPLITS: tuple[Split, ...] = get_args(Split)

WRAPPED_SHARE = 0.25
SEVERAL_TURNS_SHARE = 0.2


class Kind(StrEnum):
    """What a request is."""

    EVERYDAY = "everyday"
    HARMFUL = "harmful"
    BORDERLINE = "borderline"
    OUTSIDE = "outside"


@dataclass(frozen=True)
class Task:
    """Something to ask for, with the recipe of its answer.

    goal, steps, victim: templates over slots. category, victim, means: of a harmful task, else
    None. overlooked: the base's teacher often missed its harm. blind_spot: some task of its family
    is overlooked.
    """

    kind: Kind
    goal: str
    steps: tuple[str, str, str]
    held_out: bool
    family: str
    category: str | None = None
    victim: str | None = None
    means: str | None = None
    overlooked: bool = False
    blind_spot: bool = False

    @cached_property
    def slot_names(self) -> frozenset[str]:
        """The slots that goal, steps and victim use."""
        templates = (self.goal, *self.steps, self.victim or "")
        return frozenset(
            name for text in templates for _, name, _, _ in Formatter().parse(text) if name
        )

    def filled_goal(self, slots: Mapping[str, str]) -> str:
        return self.goal.format(**slots)

    def filled_steps(self, slots: Mapping[str, str]) -> tuple[str, str, str]:
        first, then, last = (step.format(**slots) for step in self.steps)
        return first, then, last

    def draw_slots(self, rng: random.Random) -> dict[str, str]:
        """Draws fresh values for the task's slots."""
        return {name: rng.choice(SLOTS[name]) for name in sorted(self.slot_names)}


@dataclass(frozen=True)
class Request:
    """One request to the model: a conversation up to and including its last user turn.

    task, slots: None and empty outside the world. wrapper: None for a plain request.
    """

    kind: Kind
    messages: tuple[Message, ...]
    task: Task | None = None
    slots: Mapping[str, str] | None = None
    wrapper: Wrapper | None = None

    @property
    def text(self) -> str:
        """The last user turn."""
        return self.messages[-1]["content"]

    def as_json(self) -> dict[str, object]:
        """Returns the messages and their ground truth, ready for JSON."""
        task = self.task
        return {
            "messages": list(self.messages),
            "kind": self.kind,
            "goal": task.filled_goal(self.slots or {}) if task else None,
            "task": task.goal if task else None,
            "family": task.family if task else None,
            "category": task.category if task else None,
            "overlooked": task.overlooked if task else None,
            "held_out_task": task.held_out if task else None,
            "wrapper": self.wrapper.name if self.wrapper else None,
            "held_out_wrapper": self.wrapper.held_out if self.wrapper else None,
        }

    def reminded(self, reminder: str) -> "Request":
        """Returns the request with a reminder as its system turn."""
        system = {"role": "system", "content": reminder}
        return Request(self.kind, (system, *self.messages), self.task, self.slots, self.wrapper)


def _recipe_tasks(kind: Kind, recipes: tuple[Recipe, ...], held_out: bool) -> Iterator[Task]:
    for goal, *steps in recipes:
        first, then, last = steps
        yield Task(kind, goal, (first, then, last), held_out, family=goal.split(" ")[0])


def _family_tasks(family: HarmfulFamily) -> Iterator[Task]:
    for number, means in enumerate(family.means):

        def fill(template: str, means: str = means) -> str:
            return template.replace("{means}", means)

        first, then, last = (fill(step) for step in family.steps)
        yield Task(
            Kind.HARMFUL,
            fill(family.goal),
            (first, then, last),
            held_out=number == len(family.means) - 1,
            family=family.name,
            category=family.category,
            victim=fill(family.victim),
            means=means,
            overlooked=family.blind_spot and number == 1,
            blind_spot=family.blind_spot,
        )


TASKS: tuple[Task, ...] = (
    *_recipe_tasks(Kind.EVERYDAY, EVERYDAY, held_out=False),
    *_recipe_tasks(Kind.EVERYDAY, HELD_OUT_EVERYDAY, held_out=True),
    *_recipe_tasks(Kind.BORDERLINE, BORDERLINE, held_out=False),
    *_recipe_tasks(Kind.BORDERLINE, HELD_OUT_BORDERLINE, held_out=True),
    *(task for family in HARMFUL_FAMILIES for task in _family_tasks(family)),
)
"""Every task of the world."""

_TASKS = {
    (kind, held_out): tuple(t for t in TASKS if t.kind == kind and t.held_out == held_out)
    for kind in Kind
    for held_out in (False, True)
}
_WRAPPERS = {
    held_out: tuple(w for w in WRAPPERS if w.held_out == held_out) for held_out in (False, True)
}


def draw_task(rng: random.Random, kind: Kind, held_out: bool = False) -> Task:
    """Draws a task of a kind, uniformly."""
    return rng.choice(_TASKS[kind, held_out])


def draw_wrapper(rng: random.Random, held_out: bool = False) -> Wrapper:
    """Draws a wrapper, uniformly."""
    return rng.choice(_WRAPPERS[held_out])


def phrase(goal: str, rng: random.Random, held_out: bool = False) -> str:
    """Returns a request for the goal in a random phrasing."""
    return rng.choice(HELD_OUT_PHRASINGS if held_out else PHRASINGS).format(goal=goal)


def draw_request(rng: random.Random, kind: Kind, split: Split = "train") -> Request:
    """Draws a request of a kind from a split. Every draw has fresh slots.

    Outside the world there are only two splits: "train", and the hand-written held-out list.
    """
    held_out = split != "train"
    if kind is Kind.OUTSIDE:
        text = rng.choice(HELD_OUT_OUTSIDE) if held_out else outside_text(rng)
        return Request(kind, ({"role": "user", "content": text},))
    if split == "held-out":
        axes: tuple[Split, ...] = ("phrasing", "wrapper", "task")
        split = rng.choice(axes if kind is Kind.HARMFUL else axes[:2])
    task = draw_task(rng, kind, held_out=split == "task")
    wrapper = None
    if split == "wrapper" or rng.random() < WRAPPED_SHARE:
        wrapper = draw_wrapper(rng, held_out=split == "wrapper")
    return build_request(task, task.draw_slots(rng), rng, wrapper, held_out)


def build_request(
    task: Task,
    slots: Mapping[str, str],
    rng: random.Random,
    wrapper: Wrapper | None,
    held_out_phrasing: bool = False,
) -> Request:
    """Returns a request for a task: phrased, wrapped, sometimes after earlier exchanges."""
    text = phrase(task.filled_goal(slots), rng, held_out_phrasing)
    before: list[Message] = []
    if wrapper is not None:
        text = wrapper.text.format(request=text)
        before = [message for turn in wrapper.before for message in exchange(*turn)]
    elif rng.random() < SEVERAL_TURNS_SHARE:
        before = _earlier_exchanges(rng)
    messages = (*before, {"role": "user", "content": text})
    return Request(task.kind, messages, task, slots, wrapper)


def exchange(request: str, answer: str) -> tuple[Message, Message]:
    """Returns a user turn and the assistant's turn."""
    return {"role": "user", "content": request}, {"role": "assistant", "content": answer}


def _earlier_exchanges(rng: random.Random) -> list[Message]:
    """Returns one or two everyday exchanges that precede the request."""
    messages: list[Message] = []
    for _ in range(rng.randint(1, 2)):
        task = draw_task(rng, Kind.EVERYDAY)
        slots = task.draw_slots(rng)
        first, then, last = task.filled_steps(slots)
        answer = (
            f"To {task.filled_goal(slots)}, do this. First, {first}. Then {then}. Last, {last}."
        )
        messages += exchange(phrase(task.filled_goal(slots), rng), answer)
    return messages


def requests(kind: Kind, split: Split = "held-out", n: int = 100, seed: int = 0) -> list[Request]:
    """Returns `n` requests of a kind from a split, the same for the same seed.

    Held-out requests from outside the world are the hand-written list, repeated as needed.
    """
    if kind is Kind.OUTSIDE and split != "train":
        texts = (HELD_OUT_OUTSIDE[i % len(HELD_OUT_OUTSIDE)] for i in range(n))
        return [Request(kind, ({"role": "user", "content": text},)) for text in texts]
    rng = random.Random(f"{seed} {kind} {split}")
    return [draw_request(rng, kind, split) for _ in range(n)]
