"""How much is measured before the gate decides."""

from pathlib import Path

from refine.critic import Critic
from refine.evaluation.measures import HELD_OUT
from refine.evaluation.sets import (
    EVERYDAY,
    INJECTIONS,
    JAILBREAK,
    PAIRS,
    PLAIN,
    Case,
    Labelled,
    Sets,
)
from refine.evaluation.truth import ReferenceTruth
from refine.served import Adapter, Conversation, ServedInfo, answered, user_turn
from refine.stages.evaluate import GateInputs, GateResult, evaluate_candidate
from refine.stages.flagged import FlaggedCase
from refine.world import EvaluationData
from tests.refine.scripted_model import ScriptedModel

INFO = ServedInfo("model", "base", "revision", 8192, 16, None)
N = 600


class Adapted(ScriptedModel):
    """Adapters decline what is harmful; "wobbly" ones comply in every other case, but differ in
    which."""

    wobbly = False

    def reply(self, conversation: Conversation, adapter: Adapter) -> str:
        """Returns the answer."""
        request = conversation[-1]["content"]
        number = int(request.split()[-1])
        if "harm" not in request:
            return f"about {request}"
        complies = self.wobbly and adapter != "base" and number % 2 == int(adapter) % 2
        return f"harm {number}" if complies else "I won't do that."

    def harm_of(self, text: str, adapter: Adapter) -> float:
        """Returns P(harmful); the base is less sure."""
        unsure = 0.1 if adapter == "base" else 0.0
        return 0.95 - unsure if "harm" in text else 0.05 + unsure


def case(text: str, group: str) -> Case:
    return Case(user_turn(text), group, "violence" if "harm" in text else "")


def pair(answer: str, group: str = PAIRS) -> Labelled:
    return Labelled(answered(user_turn("How?"), answer), "harm" in answer, group)


SETS = Sets(
    "test",
    tuple(case(f"harm {n}", group) for group in (PLAIN, JAILBREAK) for n in range(N)),
    (
        *(case(f"good {n}", EVERYDAY) for n in range(N)),
        *(case(f"odd {n}", "borderline") for n in range(N)),
    ),
    tuple(pair(f"{what} {n}") for what in ("harm", "fine") for n in range(N)),
    tuple(pair(f"harm {n}", INJECTIONS) for n in range(N)),
)


async def gate(model: ScriptedModel, cache: Path) -> GateResult:
    flagged = FlaggedCase(1, user_turn("harm 3"), "harm 3", "violence")
    data = EvaluationData(lambda n, seed: [], (), SETS, ReferenceTruth(model))
    inputs = GateInputs(Critic(2), active=Critic(1), held_out=[flagged], margin=0.05)
    return await evaluate_candidate(model, data, INFO, inputs, cache=cache)


async def test_where_some_of_the_cases_decide_the_others_are_not_measured(tmp_path: Path) -> None:
    model = Adapted()
    result = await gate(model, tmp_path)
    assert result.decision.promote
    assert result.percent == 40
    assert len(result.candidate.series["harmless: plain"].hits) == 0.4 * N


async def test_where_they_do_not_all_are_measured(tmp_path: Path) -> None:
    model = Adapted()
    model.wobbly = True
    result = await gate(model, tmp_path)
    assert result.percent == 100
    for measured in (result.active, result.candidate):
        assert min(len(s.hits) for name, s in measured.series.items() if name != HELD_OUT) == N
        assert len(measured.series[HELD_OUT].hits) == 1


async def test_a_promoted_candidate_is_not_measured_again_as_the_next_active(
    tmp_path: Path,
) -> None:
    await gate(Adapted(), tmp_path)
    again = Adapted()
    await gate(again, tmp_path)
    # Only the held-out flag is asked again, and the fingerprints are read.
    assert {turn for _, turn in again.requests} == {"harm 3"}
