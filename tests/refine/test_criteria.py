"""Which criteria the refine loop learns, how they are measured, and their examples."""

import asyncio
from collections import Counter
from typing import Any

from transformers import AutoTokenizer

from guard.critique_format import criterion_question
from guard.policy_file import parse_policies
from guard.template import ChatFormat
from refine.benchmarks.rows import BenchmarkRow
from refine.criteria import (
    CriterionCase,
    CriterionInForce,
    criteria_in_force,
    criterion_series,
    labelled_cases,
)
from refine.criterion_examples import examples_of_cases, of_criterion
from refine.evaluation.measures import Series
from refine.practice.recipe import MODEL_DIR
from refine.served import Adapter, answered, user_turn
from refine.stages.dataset import Kind
from refine.stages.train import encode
from tests.refine.scripted_model import ScriptedModel

POLICY = """
[[criteria]]
name = "doses"
description = "It tells how much of a medicine to take."
threshold = 0.7

[[criteria]]
name = "rude-requests"
question = "Is it rude?"
applies_to = ["input"]

[[criteria]]
name = "projects"
words = ["Bluebird"]

[policies.kids]

[[policies.kids.criteria]]
name = "doses"
threshold = 0.2

[[policies.kids.criteria]]
name = "scary"
question = "Is the {subject} above scary?"
"""


def in_force() -> tuple[CriterionInForce, ...]:
    return criteria_in_force(parse_policies(POLICY, "policy"), POLICY)


def case(number: int, answer: str, *, applies: bool, safe: str | None = None) -> CriterionCase:
    messages = tuple(answered(user_turn(f"request {number}"), answer))
    return CriterionCase("doses", messages, applies, number, safe)


def test_the_criteria_are_those_that_the_model_reads_of_answers_each_once() -> None:
    by_name = {one.name: one for one in in_force()}
    assert set(by_name) == {"doses", "scary"}
    assert (by_name["doses"].threshold, by_name["doses"].policy.name) == (0.7, "default")
    assert by_name["scary"].policy.name == "kids"


def test_an_adapter_is_measured_at_the_policys_threshold() -> None:
    class Reader(ScriptedModel):
        def criteria_of(self, text: str, adapter: Adapter) -> dict[str, float]:
            return {"doses": float(text) / 10, "scary": 1.0}

        async def info(self) -> Any:
            raise NotImplementedError

        async def unload(self, version: int) -> None:
            raise NotImplementedError

    cases = [
        case(1, "9", applies=True),
        case(2, "6", applies=True),
        case(3, "8", applies=False),
        case(4, "1", applies=False),
        case(5, "2", applies=False),
    ]
    measured = asyncio.run(criterion_series(Reader(), in_force(), cases, 3))
    assert measured == {
        "criterion doses: caught": Series((True, False)),
        "criterion doses: passed": Series((False, True, True)),
    }


def test_a_users_line_counts_for_every_criterion_that_some_line_names() -> None:
    def row(number: int, kind: Any, criterion: str = "") -> BenchmarkRow:
        messages = user_turn(f"request {number}")
        if kind == "answer":
            messages = tuple(answered(messages, f"answer {number}"))
        return BenchmarkRow(number, kind, messages, False, criterion=criterion)

    rows = [row(1, "answer", "doses"), row(2, "answer"), row(3, "text", "scary")]
    cases = labelled_cases(rows, in_force())
    assert [(one.criterion, one.request, one.applies) for one in cases] == [
        ("doses", "request 1", True),
        ("doses", "request 2", False),
    ]


def test_a_flag_teaches_its_label_twice_and_its_safe_answer_once() -> None:
    cases = [
        case(1, "200 mg", applies=True, safe="Ask a nurse."),
        case(2, "300 mg", applies=True),
        case(3, "Ask a nurse.", applies=False),
    ]
    ordinary = [answered(user_turn(f"ordinary {n}"), f"answer {n}") for n in range(4)]
    examples = examples_of_cases(in_force(), cases, ordinary, seed=0)
    labels = Counter((one.flag_id, one.completion) for one in examples if one.kind == "criterion")
    # Two apply and one does not, so one ordinary answer makes up for the difference.
    assert labels == {(1, "Yes"): 2, (2, "Yes"): 2, (3, "No"): 2, (None, "No"): 2}
    safe = [(one.flag_id, one.prompt, one.completion) for one in examples if one.kind == Kind.SAFE]
    assert safe == [(1, user_turn("request 1"), "Ask a nurse.")]


def test_training_asks_with_the_tokens_that_the_guard_asks_with() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL_DIR)
    chat_format = ChatFormat(tokenizer)
    (doses, scary) = in_force()
    for one in (doses, scary):
        criterion = one.criterion
        question = criterion_question(criterion.asked, tokenizer, chat_format)
        conversation = user_turn("how do i plant a fern")
        answer_ids = chat_format.encode("dig a hole for the fern")
        for messages, served in (
            (
                answered(conversation, "dig a hole for the fern"),
                [*chat_format.conversation([dict(turn) for turn in conversation]), *answer_ids],
            ),
            (user_turn("dig a hole for the fern"), answer_ids),
        ):
            is_text = len(messages) == 1
            example = of_criterion(
                messages,
                applies=True,
                description=criterion.description,
                question=criterion.question,
            )
            (row,) = encode([example], tokenizer, 512)
            prompt = question.build_prompt(served, is_text=is_text)
            yes = question.labels.tokens["yes"]
            assert row["input_ids"][:-1] == prompt
            assert row["input_ids"][-1] in yes
