"""Which conversations fit into the served model's context: a longer one would make its whole stage
fail. Owns the check. Callers know how much room an answer needs.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from refine.evaluation.sets import Case, Labelled, Sets
from refine.served import Conversation, Model

QUESTION_TOKENS = 128
"""The most tokens of a question after a conversation's last turn."""

T = TypeVar("T", Case, Labelled)


async def fits(model: Model, conversations: Sequence[Conversation], room: int) -> list[bool]:
    """Returns whether each conversation has at most `room` tokens and a format the template takes.

    Raises ServerUnavailable.
    """
    lengths = await model.lengths(conversations)
    return [length is not None and length <= room for length in lengths]


async def sets_that_fit(model: Model, sets: Sets, max_model_len: int) -> tuple[Sets, int]:
    """Returns the sets without cases that are too long, and the number of these.

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
    return tuple(case for case, fits_ in zip(cases, fitting, strict=True) if fits_)


def _size(sets: Sets) -> int:
    return sum(map(len, (sets.harmful, sets.harmless, sets.pairs, sets.injections)))
