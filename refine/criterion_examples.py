"""Training examples of criteria: whether a rule is true of an answer or a text, asked as the guard
asks it. Owns their form, and which ones follow from reviewed flags. Does not choose the flags
(stages/criterion_cases.py) or the rules of the corpus (seed/criteria.py).
"""

import random
from collections.abc import Iterator, Sequence

from guard.criteria import Criterion, Place
from guard.prompts import NO_WORDS, TEXT, YES_WORDS
from refine.criteria import CriterionCase, CriterionInForce
from refine.served import Conversation, user_turn
from refine.stages.dataset import Example, Kind


def of_criterion(
    messages: Conversation,
    *,
    applies: bool,
    description: str = "",
    question: str = "",
    flag_id: int | None = None,
) -> Example:
    """Returns the label of a criterion.

    messages: a conversation that ends with the answer, or a text as a single user turn.
    description, question: one of these, as in a policy file.
    """
    criterion = Criterion("", description, question, frozenset({Place.OUTPUT}))
    if messages[-1]["role"] == "assistant":
        prompt = (*messages, *user_turn(criterion.asked_about("answer")))
    else:
        text = TEXT.format(text=messages[-1]["content"])
        prompt = user_turn(text + criterion.asked_about("text"))
    label = YES_WORDS[0] if applies else NO_WORDS[0]
    return Example(Kind.CRITERION, prompt, label, flag_id)


def examples_of_cases(
    criteria: Sequence[CriterionInForce],
    cases: Sequence[CriterionCase],
    ordinary: Sequence[Conversation],
    seed: int,
) -> list[Example]:
    """Returns the examples of reviewed flags: the label of each, on its answer in the conversation
    and as a text, and its safe answer.

    The policy's own examples are not trained on, because they set the scale of what is read.
    ordinary: conversations with ordinary answers, to which no criterion is taken to apply. As many
    are added as a criterion has more flags that it applies to than others.
    """
    rng = random.Random(f"criteria {seed}")
    examples = [example for case in cases for example in _safe_answer(case)]
    for one in criteria:
        of_it = [case for case in cases if case.criterion == one.name]
        missing = sum(1 if case.applies else -1 for case in of_it)
        others = rng.sample(ordinary, min(len(ordinary), max(missing, 0)))
        for case in of_it:
            examples += _labels(one.criterion, case.messages, case.applies, case.flag_id)
        for conversation in others:
            examples += _labels(one.criterion, conversation, False, None)
    rng.shuffle(examples)
    return examples


def _labels(
    criterion: Criterion, conversation: Conversation, applies: bool, flag_id: int | None
) -> Iterator[Example]:
    for messages in (conversation, user_turn(conversation[-1]["content"])):
        yield of_criterion(
            messages,
            applies=applies,
            description=criterion.description,
            question=criterion.question,
            flag_id=flag_id,
        )


def _safe_answer(case: CriterionCase) -> Iterator[Example]:
    if case.safe_answer:
        yield Example(Kind.SAFE, tuple(case.messages[:-1]), case.safe_answer, case.flag_id)
