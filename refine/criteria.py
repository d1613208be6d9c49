"""The criteria in words that are in force, as the refine loop learns and measures them. Owns which
of a policy file's criteria these are, and how an adapter's reads of them become outcomes for the
gate. Does not choose the flags (stages/criterion_cases.py) or make examples
(criterion_examples.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

from guard.criteria import Criterion, Place
from guard.policies import PolicySet
from refine.benchmarks.rows import BenchmarkRow
from refine.evaluation.measures import CRITERION, CRITERION_CAUGHT, CRITERION_PASSED, Series
from refine.room import QUESTION_TOKENS, fits
from refine.served import Adapter, Message, Model, PolicyText, Server, user_turn


@dataclass(frozen=True)
class CriterionInForce:
    """A criterion that the model reads of answers. policy: one that has it. threshold: the
    policy's."""

    criterion: Criterion
    policy: PolicyText
    threshold: float

    @property
    def name(self) -> str:
        """The criterion's name."""
        return self.criterion.name


@dataclass(frozen=True)
class CriterionCase:
    """An answer in its conversation, and whether a criterion applies to it, by a person.

    messages: ends with the answer. flag_id: None for a line of a user's file. safe_answer: what was
    sent instead, or a reviewer's answer; None if there is none.
    """

    criterion: str
    messages: tuple[Message, ...]
    applies: bool
    flag_id: int | None = None
    safe_answer: str | None = None

    @property
    def request(self) -> str:
        """The turn before the answer."""
        return self.messages[-2]["content"]


def criteria_in_force(policies: PolicySet, text: str) -> tuple[CriterionInForce, ...]:
    """Returns the criteria of a policy file, its text, that the model reads of answers. Of several
    with one name the first counts, beginning with the default policy."""
    by_name = {
        criterion.name: CriterionInForce(
            criterion, PolicyText(text, policy.name), policy.rules[criterion.name].threshold
        )
        for policy in reversed([*policies])
        for criterion in policy.criteria_of(Place.OUTPUT)
        if criterion.is_read
    }
    return tuple(by_name.values())


def labelled_cases(
    rows: Sequence[BenchmarkRow], criteria: Sequence[CriterionInForce]
) -> tuple[CriterionCase, ...]:
    """Returns what a user's labelled answers say of criteria. One that no line names is not in the
    result; to a line that does not name it, it does not apply."""
    answers = [row for row in rows if row.kind == "answer"]
    labelled = {row.criterion for row in answers}
    return tuple(
        CriterionCase(one.name, row.messages, row.criterion == one.name)
        for one in criteria
        if one.name in labelled
        for row in answers
    )


async def cases_that_fit(
    model: Model,
    criteria: Sequence[CriterionInForce],
    cases: Sequence[CriterionCase],
    max_model_len: int,
) -> tuple[CriterionCase, ...]:
    """Returns the cases that leave room for the longest question. Raises ServerUnavailable."""
    if not cases:
        return ()
    questions = await model.lengths([user_turn(one.criterion.asked) for one in criteria])
    longest = max(filter(None, questions), default=0)
    conversations = [case.messages for case in cases]
    fitting = await fits(model, conversations, max_model_len - longest - QUESTION_TOKENS)
    return tuple(compress(cases, fitting))


async def criterion_series(
    server: Server,
    criteria: Sequence[CriterionInForce],
    cases: Sequence[CriterionCase],
    adapter: Adapter,
) -> dict[str, Series]:
    """Returns what an adapter catches of the cases to which each criterion applies, and passes of
    the others, on the scale that the guard uses. Raises ServerUnavailable."""
    series: dict[str, Series] = {}
    for one in criteria:
        of_it = [case for case in cases if case.criterion == one.name]
        conversations = [case.messages for case in of_it]
        verdicts = await server.verdicts(
            "conversations", conversations, adapter=adapter, policy=one.policy
        )
        flagged = [verdict.criteria[one.name] >= one.threshold for verdict in verdicts]
        series |= dict(_series(one.name, of_it, flagged))
    return series


def _series(
    name: str, cases: Sequence[CriterionCase], flagged: Sequence[bool]
) -> Iterator[tuple[str, Series]]:
    pairs = [(case.applies, flag) for case, flag in zip(cases, flagged, strict=True)]
    caught = tuple(flag for applies, flag in pairs if applies)
    passed = tuple(not flag for applies, flag in pairs if not applies)
    for suffix, hits in ((CRITERION_CAUGHT, caught), (CRITERION_PASSED, passed)):
        if hits:
            yield f"{CRITERION}{name}{suffix}", Series(hits)
