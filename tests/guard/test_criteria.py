"""An operator's own criteria: read beside harm, decided on, recorded, revised and streamed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from vllm.sampling_params import RequestOutputKind

from guard.call import GuardCall, StreamMode
from guard.criterion_reader import fitted
from guard.errors import InputBlocked
from guard.policy import Action
from guard.scripted import Script
from guard.verdict import CATEGORIES
from tests.scripted import Bench

MakeBench = Callable[..., Bench]

DOSE = "Take 400 mg twice a day."
DOSES = """
[default]
action = "block"
[[criteria]]
name = "doses"
description = "It says how much of a medicine to take."
threshold = 0.6
refusal = "Ask a pharmacist."
"""
BOTH = """
[[criteria]]
name = "rivals"
question = "Does the {subject} above praise {another} shop?"
applies_to = ["input", "output"]
action = "annotate"
"""


def applies(question: str, words: str, probability: float = 0.9) -> Callable[[str], float]:
    """A critic that reads only that criterion's question as yes, of prompts with these words."""
    return lambda prompt: probability if question in prompt and words in prompt else 0.0


def doses(answer: str = DOSE) -> Script:
    return Script(answers=lambda _: (answer,), harm=applies("how much of a medicine", "400 mg"))


async def test_an_answer_that_meets_a_criterion_gets_its_own_refusal(make_bench: MakeBench) -> None:
    bench = make_bench(doses(), policy=DOSES)
    (output,) = await bench.ask()
    assert output.outputs[0].text == "Ask a pharmacist."
    assert output.outputs[0].finish_reason == "content_filter"
    (flag,) = bench.store.flags
    assert (flag.answer, flag.categories, flag.action) == (DOSE, ("doses",), Action.BLOCK)
    assert flag.harm == 0.0
    assert flag.category_scores == {"doses": pytest.approx(0.9)}
    assert bench.observed.verdicts == [("doses", "base")]


async def test_another_answer_passes_with_one_read_more(make_bench: MakeBench) -> None:
    bench = make_bench(doses("Water it twice a week."), policy=DOSES)
    (output,) = await bench.ask()
    assert output.outputs[0].text == "Water it twice a week."
    assert not bench.store.flags
    assert sum(kind == "read" for kind, _ in bench.engine.log) == 2


async def test_the_threshold_is_the_criterions(make_bench: MakeBench) -> None:
    script = replace(doses(), harm=applies("how much of a medicine", "400 mg", 0.55))
    bench = make_bench(script, policy=DOSES)
    (output,) = await bench.ask()
    assert output.outputs[0].text == DOSE


async def test_harm_counts_as_without_criteria(make_bench: MakeBench) -> None:
    bench = make_bench(Script(answers=lambda _: (DOSE,), harm=lambda _: 0.9), policy=DOSES)
    (output,) = await bench.ask()
    (flag,) = bench.store.flags
    assert flag.categories == ("violence", "doses")
    assert set(flag.category_scores) == {*CATEGORIES, "doses"}
    # The strictest action's first rule decides what is said.
    assert output.outputs[0].text == bench.policy.refusal


async def test_a_criterion_applies_where_the_policy_says(make_bench: MakeBench) -> None:
    script = Script(answers=lambda _: ("Fine.",), harm=applies("praise {another} shop", "bakery"))
    bench = make_bench(script, policy=BOTH + DOSES.replace('[default]\naction = "block"', ""))
    bench.call = GuardCall(route="/v1/chat/completions", wants_moderation=True)
    await bench.ask("Is the bakery good?")
    ruling = bench.call.input_ruling
    assert ruling is not None
    assert ruling.verdict is not None
    assert ruling.decision.categories == ("rivals",)
    assert set(ruling.verdict.criteria) == {"rivals"}
    (answer,) = bench.call.output_rulings.values()
    assert answer.verdict is not None
    assert set(answer.verdict.criteria) == {"rivals", "doses"}


async def test_input_that_meets_a_criterion_can_be_blocked(make_bench: MakeBench) -> None:
    script = Script(harm=applies("praise {another} shop", "bakery"))
    bench = make_bench(script, policy=BOTH, block_input=True)
    with pytest.raises(InputBlocked):
        await bench.ask("Is the bakery good?")


async def test_a_revision_is_asked_for_by_the_criterion_and_judged_by_it(
    make_bench: MakeBench,
) -> None:
    def answers(prompt: str) -> tuple[str]:
        if "so that it is no longer true" in prompt:
            return ("Read the leaflet.",)
        return ("It names an amount.",) if "Explain where and why" in prompt else (DOSE,)

    script = Script(answers=answers, harm=applies("how much of a medicine", "400 mg"))
    # The critique of the revision is on a conversation without the first answer.
    bench = make_bench(script, policy=DOSES.replace('action = "block"', 'action = "revise"'))
    (output,) = await bench.ask()
    assert output.outputs[0].text == "Read the leaflet."
    (analysis,) = [text for kind, text in bench.engine.log if "Explain where and why" in text][:1]
    assert "It says how much of a medicine to take." in analysis


async def test_no_character_of_a_window_that_meets_a_criterion_is_sent(
    make_bench: MakeBench,
) -> None:
    answer = "Drink some water and rest a little. " + DOSE
    bench = make_bench(doses(answer), policy=DOSES, stream=StreamMode.WINDOW, windows=(4, 1.0, 64))
    outputs = await bench.ask(kind=RequestOutputKind.DELTA)
    text = "".join(output.outputs[0].text for output in outputs)
    (flag,) = bench.store.flags
    assert text == f"{flag.answer[: flag.released_chars]}\n\nAsk a pharmacist."
    assert 0 < flag.released_chars <= answer.index("400 mg")


EXAMPLES = """
examples = [
    {text = "Take two pills.", applies = true},
    {request = "How much?", text = "Three drops.", applies = true},
    {text = "It rains.", applies = false},
    {request = "How are you?", text = "I'm fine.", applies = false},
]
"""


@pytest.mark.parametrize(("answer", "flagged"), [("Take 400 mg.", True), ("It rains.", False)])
async def test_the_examples_set_the_scale(
    make_bench: MakeBench, answer: str, flagged: bool
) -> None:
    """A model that says yes to everything is read by how sure it is."""
    sure = ("pills", "drops", "400 mg")

    def harm(prompt: str) -> float:
        if "how much of a medicine" not in prompt:
            return 0.0
        return 0.97 if any(word in prompt for word in sure) else 0.9

    bench = make_bench(Script(answers=lambda _: (answer,), harm=harm), policy=DOSES + EXAMPLES)
    await bench.ask()
    assert bool(bench.store.flags) is flagged
    await bench.ask()
    reads = [text for kind, text in bench.engine.log if kind == "read" and "pills" in text]
    assert len(reads) == 1


async def test_a_criterion_that_the_model_cannot_read_is_told(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(Script(harm=lambda _: 0.3), policy=DOSES + EXAMPLES)
    await bench.ask()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "cannot read the criterion doses" in warning
    assert "0.50" in warning


@pytest.mark.parametrize(
    ("scores", "area", "at_chance"),
    [
        (([3.0, 2.0, 2.5, 3.5], [-1.0, 0.0, -2.0, -0.5]), 1.0, False),
        (([1.0, -1.0], [0.0, 0.5]), 0.5, True),
        (([-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]), 0.0, True),
    ],
)
def test_a_scale_is_fitted_to_examples(
    scores: tuple[list[float], list[float]], area: float, at_chance: bool
) -> None:
    high, low = scores
    scale = fitted([*high, *low], [True] * len(high) + [False] * len(low))
    assert (scale.area, scale.at_chance) == (area, at_chance)
    assert scale.examples == len(high) + len(low)


def test_examples_of_one_kind_set_no_scale() -> None:
    scale = fitted([1.0, 2.0], [True, True])
    assert (scale.area, scale.calibration.apply(0.7)) == (None, 0.7)


async def test_concurrent_requests_read_the_examples_once(make_bench: MakeBench) -> None:
    bench = make_bench(doses(), policy=DOSES + EXAMPLES)
    reader: Any = bench.critic._criteria
    (criterion,) = bench.policy.criteria
    tasks = [reader.scale(criterion, {"lora_request": None, "priority": 0}) for _ in range(3)]
    scales = [await task for task in tasks]
    assert scales[0] is scales[1] is scales[2]
    assert sum(kind == "read" for kind, _ in bench.engine.log) == 4
