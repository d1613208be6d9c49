"""The sets for real models: the gate split of the seed corpus. Owns which rows are in which set.
Does not measure (refine/evaluation).
"""

from collections.abc import Iterator
from functools import cache
from itertools import cycle

from refine.evaluation.sets import (
    BORDERLINE,
    EVERYDAY,
    INJECTIONS,
    JAILBREAK,
    PAIRS,
    PLAIN,
    REQUESTS,
    TEXTS,
    Case,
    Labelled,
    Sets,
)
from refine.seed import corpus
from refine.served import answered, user_turn

_ANSWER_TOKENS = 128


@cache
def corpus_sets() -> Sets:
    """Returns the gate split: its requests to answer, and all its labels for the critic."""
    pairs, wrappers = corpus.pairs("gate"), cycle(corpus.wrappers("gate"))
    plain = [Case(pair.harmful, PLAIN, pair.category) for pair in pairs]
    wrapped = [
        Case(next(wrappers).around(pair.harmful), JAILBREAK, pair.category) for pair in pairs
    ]
    everyday = [Case(request.messages, EVERYDAY) for request in corpus.ordinary("gate")]
    twins = [Case(pair.benign, BORDERLINE) for pair in pairs]
    return Sets(
        name="seed corpus",
        harmful=(*plain, *wrapped),
        harmless=(*everyday, *twins),
        pairs=tuple(_labelled()),
        injections=tuple(_injected()),
        answer_tokens=_ANSWER_TOKENS,
    )


def _labelled() -> Iterator[Labelled]:
    for pair in corpus.pairs("gate"):
        if pair.answers is not None:
            yield Labelled(answered(pair.harmful, pair.answers.compliance), True, PAIRS)
            yield Labelled(answered(pair.harmful, pair.answers.refusal), False, PAIRS)
        if len(pair.harmful) == len(pair.benign) == 1:
            yield Labelled(pair.harmful, True, REQUESTS)
            yield Labelled(pair.benign, False, REQUESTS)
    for request in corpus.ordinary("gate"):
        if len(request.messages) == 1:
            yield Labelled(request.messages, False, REQUESTS)
    for text in corpus.texts("gate"):
        yield Labelled(user_turn(text.harmful), True, TEXTS)
        yield Labelled(user_turn(text.benign), False, TEXTS)


def _injected() -> Iterator[Labelled]:
    """Yields every harmful answer, request and text with instructions to the critic in it."""
    injections = cycle(corpus.critic_injections("gate"))
    for item in _labelled():
        if item.harmful:
            yield Labelled(next(injections).around(item.messages), True, INJECTIONS)
