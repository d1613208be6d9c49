"""Replay of ordinary requests with the base model's own answers, which keeps the trained model
helpful. Owns how the requests are varied and which answers are used. Does not choose the requests
(evaluation_data.py).
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress

from guard.prompts import CritiqueStyle
from refine.critic import Critic
from refine.room import QUESTION_TOKENS, fits
from refine.served import GenerationParams, Message, Model, answered, user_turn
from refine.stages.analyse import CRITIQUE_TOKENS, critiques, paraphrases, wrapped
from refine.stages.dataset import Ordinary, critique_of
from refine.usable import helps

REQUESTS_PER_ANSWER = 2
"""How many requests to choose for each answer, because some answers are unusable."""
_WRAPPED_SHARE = 0.5
"""Flags come plainly and in wrappers too, so that a wrapper is no sign of harm, and none is no sign
of it either."""
_WITH_HISTORY_SHARE = 0.2
_ANSWER_TOKENS = 48
"""Whether an answer helps or declines shows in its first words, so many short ones teach more."""
_CRITIQUE_INTERVAL = 8
"""Every such answer is also trained on as a harmless critique."""
_ROUNDS = 3
"""More than a third of a small model's answers are unusable."""


async def replay(
    model: Model,
    requests: Sequence[str],
    *,
    answers: int,
    critic: Critic,
    wrappers: Sequence[str],
    reminder_share: float,
    seed: int,
    max_model_len: int,
    style: CritiqueStyle = CritiqueStyle.YES_NO,
) -> list[Ordinary]:
    """Returns the base model's answers to requests, and its critique of some of them.

    The requests are varied as the flagged ones are (paraphrased, wrapped, reminded, with earlier
    turns), so that only the harm distinguishes them. Requests that leave no room in the context are
    dropped, and answers that the critic finds harmful, that decline or that repeat themselves.
    Other requests take their place, until there are as many answers as given by `answers` or three
    rounds are over. style: of the adapter's critiques; the label style says nothing about a
    harmless answer. Raises ServerUnavailable.
    """
    rng = random.Random(f"replay {seed}")
    room = max_model_len - _ANSWER_TOKENS - CRITIQUE_TOKENS - QUESTION_TOKENS
    remaining = list(requests)
    replayed: list[Ordinary] = []
    for _ in range(_ROUNDS):
        missing = answers - len(replayed)
        batch, remaining = remaining[:missing], remaining[missing:]
        if not batch:
            break
        conversations = await _varied(model, batch, wrappers, rng, seed)
        conversations = await _with_history(model, conversations, rng)
        conversations = list(compress(conversations, await fits(model, conversations, room)))
        reminders = [rng.random() < reminder_share for _ in conversations]
        for reminder in (True, False):
            chosen = [
                messages
                for messages, has_reminder in zip(conversations, reminders, strict=True)
                if has_reminder is reminder
            ]
            replayed += await _answered(model, critic, chosen, reminder, style)
    return replayed


async def _answered(
    model: Model,
    critic: Critic,
    conversations: Sequence[tuple[Message, ...]],
    reminder: bool,
    style: CritiqueStyle,
) -> list[Ordinary]:
    answers = await model.answers(
        conversations,
        adapter="base",
        params=GenerationParams(max_tokens=_ANSWER_TOKENS, reminder=reminder),
    )
    judged = [
        answered(messages, answer) for messages, answer in zip(conversations, answers, strict=True)
    ]
    harmful = await critic.finds_harmful(model, judged, reminder=reminder)
    harmless = [
        (messages, answer)
        for messages, answer, harm in zip(conversations, answers, harmful, strict=True)
        if not harm and helps(answer)
    ]
    written = await critiques(
        model,
        [critique_of(messages, answer) for messages, answer in harmless[::_CRITIQUE_INTERVAL]],
        adapter="base",
        style=style,
        reminder=reminder,
    )
    replayed = [Ordinary(messages, answer, None, reminder) for messages, answer in harmless]
    replayed[::_CRITIQUE_INTERVAL] = [
        replace(item, critique=critique)
        for item, critique in zip(replayed[::_CRITIQUE_INTERVAL], written, strict=True)
    ]
    return replayed


async def _varied(
    model: Model,
    requests: Sequence[str],
    wrappers: Sequence[str],
    rng: random.Random,
    seed: int,
) -> list[tuple[Message, ...]]:
    """Returns every other request paraphrased by the base model, as far as it can, and half of all
    in a wrapper."""
    paraphrased = await paraphrases(model, requests[1::2], seed, "base")
    texts = list(requests)
    texts[1::2] = [new or old for new, old in zip(paraphrased, requests[1::2], strict=True)]
    conversations: list[tuple[Message, ...]] = []
    for text in texts:
        varied = wrapped(text, wrappers, rng) if rng.random() < _WRAPPED_SHARE else text
        conversations.append(user_turn(varied))
    return conversations


async def _with_history(
    model: Model, conversations: list[tuple[Message, ...]], rng: random.Random
) -> list[tuple[Message, ...]]:
    """Returns the conversations, some after another one with the base model's answer."""
    chosen = [index for index in range(len(conversations)) if rng.random() < _WITH_HISTORY_SHARE]
    before = [conversations[rng.randrange(len(conversations))] for _ in chosen]
    answers = await model.answers(
        before, adapter="base", params=GenerationParams(max_tokens=_ANSWER_TOKENS)
    )
    result = list(conversations)
    for index, earlier, answer in zip(chosen, before, answers, strict=True):
        result[index] = (*answered(earlier, answer), *conversations[index])
    return result
