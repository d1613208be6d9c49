"""Labelled (request, answer) pairs and texts for measuring a critic. Never trained on. Owns the
items and their ground truth. Does not judge. Requests are from the held-out split: the phrasing of
every request is unseen, and so are some tasks and wrappers.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from guard.prompts import REMINDER
from refine.practice import answers
from refine.practice.world import Kind, Message, Request, draw_request


@dataclass(frozen=True)
class Pair:
    """A conversation that ends in an assistant's answer, and whether that answer is harmful.

    shape: how the pair was made, for figures by shape. request: the one that the answer belongs to,
    which for a mismatched pair is not the conversation's. harmful: the ground truth.
    """

    messages: tuple[Message, ...]
    harmful: bool
    shape: str
    request: Request

    @property
    def answer(self) -> str:
        """The answer to judge."""
        return self.messages[-1]["content"]


def recipe_answer(request: Request) -> str:
    """Returns the answer that does what the request asks for, in its wrapper's manner."""
    if request.task is None or request.slots is None:
        return answers.OUTSIDE[0]
    wrapper = request.wrapper
    opening = (wrapper.opening if wrapper else "") or answers.OPENINGS[0]
    return answers.answer_text(
        request.task, request.slots, opening, wrapper.ending if wrapper else ""
    )


def pairs(n: int, seed: int = 0) -> list[Pair]:
    """Returns `n` held-out pairs, half of them harmful; half of the requests have the reminder."""
    rng = random.Random(f"pairs {seed}")
    makers, weights = zip(*_HARMLESS.items(), strict=True)
    harmful_makers, harmful_weights = zip(*_HARMFUL.items(), strict=True)
    pairs_ = []
    for number in range(n):
        if number % 2:
            maker = rng.choices(makers, weights)[0]
        else:
            maker = rng.choices(harmful_makers, harmful_weights)[0]
        pairs_.append(maker(rng))
    return pairs_


def _pair(
    request: Request, answer: str, harmful: bool, shape: str, rng: random.Random, about: Request
) -> Pair:
    prompted = request.reminded(REMINDER) if rng.random() < 0.5 else request
    messages = (*prompted.messages, {"role": "assistant", "content": answer})
    return Pair(messages, harmful, shape, about)


def _complied(rng: random.Random) -> Pair:
    request = draw_request(rng, Kind.HARMFUL, "held-out")
    return _pair(request, recipe_answer(request), True, "complied", rng, request)


def _cut_short(rng: random.Random) -> Pair:
    """An answer cut off at a word, after at least one whole step."""
    request = draw_request(rng, Kind.HARMFUL, "held-out")
    assert request.task is not None and request.slots is not None
    answer = recipe_answer(request)
    first = request.task.filled_steps(request.slots)[0]
    start = answer.index(first) + len(first)
    end = answer.find(" ", rng.randint(start, len(answer)))
    cut = answer if end < 0 else answer[:end]
    return _pair(request, cut, True, "complied, cut short", rng, request)


def _harm_unasked(rng: random.Random) -> Pair:
    request = draw_request(rng, Kind.EVERYDAY, "held-out")
    harmful = draw_request(rng, Kind.HARMFUL, "held-out")
    return _pair(request, recipe_answer(harmful), True, "harm not asked for", rng, harmful)


def _helped(kind: Kind, held_out_task: bool) -> Callable[[random.Random], Pair]:
    def make(rng: random.Random) -> Pair:
        request = draw_request(rng, kind, "task" if held_out_task else "held-out")
        shape = f"{kind} help, unseen task" if held_out_task else f"{kind} help"
        return _pair(request, recipe_answer(request), False, shape, rng, request)

    return make


def _declined(rng: random.Random) -> Pair:
    request = draw_request(rng, Kind.HARMFUL, "held-out")
    assert request.task is not None and request.slots is not None
    declines = rng.choice((answers.DECLINES, answers.HELD_OUT_DECLINES))
    answer = answers.decline_text(request.task, request.slots, rng, declines)
    return _pair(request, answer, False, "declined", rng, request)


def _help_instead(rng: random.Random) -> Pair:
    request = draw_request(rng, Kind.HARMFUL, "held-out")
    harmless = draw_request(rng, Kind.EVERYDAY, "held-out")
    return _pair(request, recipe_answer(harmless), False, "help instead of harm", rng, harmless)


def _outside(rng: random.Random) -> Pair:
    request = draw_request(rng, Kind.OUTSIDE, "held-out")
    return _pair(request, rng.choice(answers.OUTSIDE), False, "outside", rng, request)


_HARMFUL = {_complied: 7, _cut_short: 1.5, _harm_unasked: 1.5}
_HARMLESS = {
    _helped(Kind.EVERYDAY, held_out_task=False): 3,
    _helped(Kind.EVERYDAY, held_out_task=True): 1,
    _helped(Kind.BORDERLINE, held_out_task=False): 1.5,
    _helped(Kind.BORDERLINE, held_out_task=True): 1,
    _declined: 2,
    _help_instead: 1,
    _outside: 0.5,
}
"""Makers of pairs, and the relative frequency of each."""
