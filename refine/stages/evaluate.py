"""Stage 5: measures candidate and active adapter on the same cases and lets the gate decide.
Owns what is measured and what is stored of it. Does not define the sets and their ground truth
(evaluation_data.py) or the gate's rule (gate.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refine.critic import Critic
from refine.errors import DataInvalid
from refine.evaluation.fingerprint import fingerprint
from refine.evaluation.measure import Evaluator
from refine.evaluation.measures import Measures, Series
from refine.evaluation.sets import Case, Sets
from refine.served import Adapter, Model, ServedInfo
from refine.stages.flagged import FlaggedCase
from refine.stages.gate import GateDecision, Margins, decide, looks, too_small
from refine.world import EvaluationData

HELD_OUT_GROUP = "held-out flags"


@dataclass(frozen=True)
class GateInputs:
    """What the gate compares, and how strictly.

    active: the adapter that was active when the run began, or the base model. held_out: flags that
    were not trained on. margin: how much worse the candidate may be, as a share. on_criteria: what
    each of them does on the cases of the policy's criteria, measured by criterion_series.
    """

    candidate: Critic
    active: Critic
    held_out: Sequence[FlaggedCase]
    margin: float
    on_criteria: Mapping[Adapter, Mapping[str, Series]] = field(default_factory=dict)

    def with_criteria(self, measures: Measures, critic: Critic) -> Measures:
        """Returns a critic's measures with those on criteria."""
        on_criteria = self.on_criteria.get(critic.adapter, {})
        return replace(measures, series={**measures.series, **on_criteria})


@dataclass(frozen=True)
class GateResult:
    """The gate's decision and the measures it is based on. share: of the cases that were needed."""

    decision: GateDecision
    active: Measures
    candidate: Measures
    share: float = 1.0

    @property
    def percent(self) -> int:
        """The share as a percentage."""
        return round(100 * self.share)

    @property
    def figures(self) -> dict[str, Any]:
        """Both adapters' figures by name, for the run's row."""
        measured = {"active": self.active, "candidate": self.candidate}
        return {
            role: {"adapter": m.adapter, "figures": [f.as_json() for f in m.figures]}
            for role, m in measured.items()
        }


def check_sets(data: EvaluationData, margin: float) -> None:
    """Raises DataInvalid when the gate cannot decide on these sets, whatever the candidate."""
    reliability = data.reliability
    if reliability.informedness <= 0:
        raise DataInvalid(
            f"The gate's truth ({data.truth.name}) cannot tell harmful answers from harmless "
            f"ones: it catches {reliability.caught:.0%} of the harmful ones and passes "
            f"{reliability.passed:.0%} of the harmless ones. Align the base first with "
            "`setback align`, or name a judge with SETBACK_REFINE_JUDGE_URL"
        )
    missing = too_small(data.sets, margin, reliability.informedness)
    if missing:
        raise DataInvalid(
            f"The gate's sets are too small for a margin of {margin:.1%}: {'; '.join(missing)}. "
            "Add labelled lines with SETBACK_REFINE_GATE_FILE, or set a larger "
            "SETBACK_REFINE_GATE_MARGIN"
        )


async def evaluate_candidate(
    model: Model, data: EvaluationData, info: ServedInfo, inputs: GateInputs, *, cache: Path
) -> GateResult:
    """Measures both adapters on the same cases, through the serving engine, and decides: on a share
    of the cases first, if there are many.

    cache: the folder with earlier measures. Raises ServerUnavailable.
    """
    flagged = [Case(case.messages, HELD_OUT_GROUP, case.category) for case in inputs.held_out]
    base = await fingerprint(model, "base")
    margins, informedness = Margins(inputs.margin), data.reliability.informedness

    async def measured(critic: Critic, sets: Sets, held_out: Sequence[Case]) -> Measures:
        evaluator = Evaluator(model, sets, data.truth, info.reminder, info.model_revision)
        return await evaluator.measure_once(cache, critic, held_out)

    looked = looks(data.sets, inputs.margin, informedness)
    some, rest = data.sets.split(looked[0].share)
    active = inputs.with_criteria(await measured(inputs.active, some, flagged), inputs.active)
    candidate = inputs.with_criteria(
        await measured(inputs.candidate, some, flagged), inputs.candidate
    )
    decision = decide(active, candidate, base, margins, informedness, looked[0])
    if not decision.undecided:
        return GateResult(decision, active, candidate, looked[0].share)
    active = active.joined(await measured(inputs.active, rest, ()), data.sets.sha256)
    candidate = candidate.joined(await measured(inputs.candidate, rest, ()), data.sets.sha256)
    decision = decide(active, candidate, base, margins, informedness, looked[-1])
    return GateResult(decision, active, candidate)
