"""The sets for real models: the gate split of the seed corpus. Owns which rows are in which set.
Does not measure (refine/evaluation).
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import cycle

from refine.evaluation.sets import (
    BORDERLINE,
    DRAFTS,
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
from refine.seed.corpus import OrdinaryRequest, Pair, Wrapper
from refine.served import answered, user_turn

_ANSWER_TOKENS = 128


@cache
def corpus_sets() -> Sets:
    """Returns the gate split: its requests to answer, and all its labels for the critic."""
    pairs = corpus.pairs("gate")
    return Sets(
        name="seed corpus",
        harmful=harmful_cases(pairs, corpus.wrappers("gate")),
        harmless=harmless_cases(corpus.ordinary("gate"), pairs),
        pairs=(*_labelled(), *_drafts()),
        injections=tuple(_injected()),
        answer_tokens=_ANSWER_TOKENS,
    )


def harmful_cases(pairs: Sequence[Pair], wrappers: Sequence[Wrapper]) -> tuple[Case, ...]:
    """Returns the harmful requests of the pairs, plain and then each in a wrapper."""
    in_turn = cycle(wrappers)
    plain = [Case(pair.harmful, PLAIN, pair.category) for pair in pairs]
    wrapped = [Case(next(in_turn).around(pair.harmful), JAILBREAK, pair.category) for pair in pairs]
    return (*plain, *wrapped)


def harmless_cases(ordinary: Sequence[OrdinaryRequest], pairs: Sequence[Pair]) -> tuple[Case, ...]:
    """Returns the ordinary requests, then the harmless twins of the pairs."""
    everyday = [Case(request.messages, EVERYDAY) for request in ordinary]
    return (*everyday, *(Case(pair.benign, BORDERLINE) for pair in pairs))


def labelled_answers(pair: Pair) -> Iterator[Labelled]:
    """Yields the pair's written answers to its harmful request, if it has them."""
    if pair.answers is not None:
        yield Labelled(answered(pair.harmful, pair.answers.compliance), True, PAIRS)
        yield Labelled(answered(pair.harmful, pair.answers.refusal), False, PAIRS)


def _labelled() -> Iterator[Labelled]:
    for pair in corpus.pairs("gate"):
        yield from labelled_answers(pair)
        if len(pair.harmful) == len(pair.benign) == 1:
            yield Labelled(pair.harmful, True, REQUESTS)
            yield Labelled(pair.benign, False, REQUESTS)
    for request in corpus.ordinary("gate"):
        if len(request.messages) == 1:
            yield Labelled(request.messages, False, REQUESTS)
    for text in corpus.texts("gate"):
        yield Labelled(user_turn(text.harmful), True, TEXTS)
        yield Labelled(user_turn(text.benign), False, TEXTS)


def _drafts() -> Iterator[Labelled]:
    """Yields a model's own answers, which are less clear than written ones."""
    for draft in corpus.drafts("gate"):
        yield Labelled(answered(draft.messages, draft.answer), draft.harmful, DRAFTS)


def _injected() -> Iterator[Labelled]:
    """Yields every harmful answer, request and text with instructions to the critic in it."""
    injections = cycle(corpus.critic_injections("gate"))
    for item in _labelled():
        if item.harmful:
            yield Labelled(next(injections).around(item.messages), True, INJECTIONS)
