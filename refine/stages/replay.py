"""Ordinary requests with the base's own answers, learned again so that help is kept.

Owns how they are varied and which answers count. Where the requests come from is ground.py's.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress

from refine.critic import Critic
from refine.room import QUESTION_TOKENS, fits
from refine.served import Message, Model, answered, user_turn
from refine.stages.analyse import paraphrases, wrapped
from refine.stages.dataset import Ordinary, critique_of

_WRAPPED_SHARE = 0.75
"""Help with a plain request was never lost, in an unknown wrapper it was."""
_LATER_SHARE = 0.2
_ANSWER_TOKENS = 256
_CRITIQUE_TOKENS = 128
_CRITIQUED_EACH = 8
"""Every how many-th answer is also learned as a benign critique."""


async def replay(
    model: Model,
    requests: Sequence[str],
    *,
    critic: Critic,
    wrappers: Sequence[str],
    reminder_share: float,
    seed: int,
    max_model_len: int,
) -> list[Ordinary]:
    """What the base, without any adapter, says to each request and of some of its answers.

    The requests are dressed as the flagged ones are (paraphrased, wrapped, reminded, after earlier
    exchanges), so that only the harm tells them apart. Left out: requests that leave no room in
    the context, and answers that the critic finds harmful. Raises ServerUnavailable.
    """
    rng = random.Random(f"replay {seed}")
    asked = await _dressed(model, requests, wrappers, rng, seed)
    asked = await _after_exchanges(model, asked, rng)
    room = max_model_len - _ANSWER_TOKENS - _CRITIQUE_TOKENS - QUESTION_TOKENS
    asked = list(compress(asked, await fits(model, asked, room)))
    drawn = [rng.random() < reminder_share for _ in asked]
    found = []
    for reminder in (True, False):
        chosen = [messages for messages, one in zip(asked, drawn, strict=True) if one is reminder]
        found += await _answered(model, critic, chosen, reminder)
    return found


async def _answered(
    model: Model, critic: Critic, asked: Sequence[tuple[Message, ...]], reminder: bool
) -> list[Ordinary]:
    answers = await model.answers(
        asked, adapter="base", max_tokens=_ANSWER_TOKENS, reminder=reminder
    )
    judged = [answered(messages, answer) for messages, answer in zip(asked, answers, strict=True)]
    harmful = await critic.finds_harmful(model, judged, reminder=reminder)
    fine = [
        (messages, answer)
        for messages, answer, harm in zip(asked, answers, harmful, strict=True)
        if not harm and answer.strip()
    ]
    critiques = await model.answers(
        [critique_of(messages, answer) for messages, answer in fine[::_CRITIQUED_EACH]],
        adapter="base",
        max_tokens=_CRITIQUE_TOKENS,
        reminder=reminder,
    )
    found = [Ordinary(messages, answer, None, reminder) for messages, answer in fine]
    found[::_CRITIQUED_EACH] = [
        replace(each, critique=critique)
        for each, critique in zip(found[::_CRITIQUED_EACH], critiques, strict=True)
    ]
    return found


async def _dressed(
    model: Model,
    requests: Sequence[str],
    wrappers: Sequence[str],
    rng: random.Random,
    seed: int,
) -> list[tuple[Message, ...]]:
    """Every other request paraphrased by the base, most in a wrapper."""
    said = await paraphrases(model, requests[1::2], seed, "base")
    texts = list(requests)
    texts[1::2] = said
    conversations: list[tuple[Message, ...]] = []
    for text in texts:
        dressed = wrapped(text, wrappers, rng) if rng.random() < _WRAPPED_SHARE else text
        conversations.append(user_turn(dressed))
    return conversations


async def _after_exchanges(
    model: Model, asked: list[tuple[Message, ...]], rng: random.Random
) -> list[tuple[Message, ...]]:
    """The conversations, some of them after another of them with the base's answer."""
    chosen = [place for place in range(len(asked)) if rng.random() < _LATER_SHARE]
    before = [asked[rng.randrange(len(asked))] for _ in chosen]
    answers = await model.answers(before, adapter="base", max_tokens=_ANSWER_TOKENS)
    later = list(asked)
    for place, earlier, answer in zip(chosen, before, answers, strict=True):
        later[place] = (*answered(earlier, answer), *asked[place])
    return later
