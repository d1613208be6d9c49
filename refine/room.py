"""What fits into the served model's context: one conversation that does not would fail the whole
stage that asks about it. Owns the check; how much room an answer takes is known where it is asked.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from refine.evaluation.sets import Case, Labelled, Sets
from refine.served import Conversation, Model

QUESTION_TOKENS = 128
"""The most that is asked of a conversation after its last turn."""

T = TypeVar("T", Case, Labelled)


async def fits(model: Model, conversations: Sequence[Conversation], room: int) -> list[bool]:
    """Whether each conversation has at most `room` tokens; not where the chat template refuses it.

    Raises ServerUnavailable.
    """
    lengths = await model.lengths(conversations)
    return [length is not None and length <= room for length in lengths]


async def sets_that_fit(model: Model, sets: Sets, max_model_len: int) -> tuple[Sets, int]:
    """The sets without the cases that are too long, and how many these are.

    Raises ServerUnavailable.
    """
    to_answer, to_judge = max_model_len - sets.answer_tokens, max_model_len
    fitting = replace(
        sets,
        harmful=await _those_that_fit(model, sets.harmful, to_answer),
        harmless=await _those_that_fit(model, sets.harmless, to_answer),
        pairs=await _those_that_fit(model, sets.pairs, to_judge),
        injections=await _those_that_fit(model, sets.injections, to_judge),
    )
    return fitting, _size(sets) - _size(fitting)


async def _those_that_fit(model: Model, cases: Sequence[T], room: int) -> tuple[T, ...]:
    conversations = [case.messages for case in cases]
    fitting = await fits(model, conversations, room - QUESTION_TOKENS)
    return tuple(case for case, fine in zip(cases, fitting, strict=True) if fine)


def _size(sets: Sets) -> int:
    return sum(map(len, (sets.harmful, sets.harmless, sets.pairs, sets.injections)))
