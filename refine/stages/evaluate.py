"""Stage 5: measures the candidate beside the active adapter and lets the gate decide. Owns what is
measured and what is kept of it; the sets and their truth are ground.py's, the rule is gate.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine.critic import Critic
from refine.errors import DataInvalid
from refine.evaluation.fingerprint import fingerprint
from refine.evaluation.measure import Measuring
from refine.evaluation.measures import Measures
from refine.evaluation.sets import Case
from refine.served import Model, ServedInfo
from refine.stages.collect import FlaggedCase
from refine.stages.gate import GateDecision, Margins, decide, too_small
from refine.world import EvaluationData

HELD_OUT_GROUP = "held-out flags"


@dataclass(frozen=True)
class GateResult:
    """The decision, and everything that it stands on."""

    decision: GateDecision
    active: Measures
    candidate: Measures

    @property
    def figures(self) -> dict[str, Any]:
        """For the run's row: both adapters' figures by name."""
        measured = {"active": self.active, "candidate": self.candidate}
        return {
            role: {"adapter": m.adapter, "figures": [f.as_json() for f in m.figures]}
            for role, m in measured.items()
        }


def check_sets(evaluation_data: EvaluationData, margin: float) -> None:
    """Raises DataInvalid when the gate could not decide on these sets, whatever the candidate."""
    if evaluation_data.reliability.informedness <= 0:
        raise DataInvalid(
            f"The gate's truth ({evaluation_data.truth.name}) cannot tell harmful answers from harmless "
            f"ones: it catches {evaluation_data.reliability.caught:.0%} of the harmful ones and passes "
            f"{evaluation_data.reliability.passed:.0%} of the harmless ones. Align the base first with "
            "`setback align`, or name a judge with SETBACK_REFINE_JUDGE_URL"
        )
    missing = too_small(evaluation_data.sets, margin, evaluation_data.reliability.informedness)
    if missing:
        raise DataInvalid(
            f"The gate's sets are too small for a margin of {margin:.1%}: {'; '.join(missing)}. "
            "Add labelled lines with SETBACK_REFINE_GATE_FILE, or set a larger "
            "SETBACK_REFINE_GATE_MARGIN"
        )


async def evaluate_candidate(
    model: Model,
    evaluation_data: EvaluationData,
    info: ServedInfo,
    *,
    candidate: Critic,
    active: Critic,
    held_out: Sequence[FlaggedCase],
    margin: float,
    cache: Path,
) -> GateResult:
    """Measures both on the same cases, through the engine that serves, and decides.

    active: the adapter that was in force when the run began, or the base alone. margin: by how much
    the candidate may be worse, as a share. cache: keeps what was measured of an adapter before.
    Raises ServerUnavailable.
    """
    flagged = [Case(case.messages, HELD_OUT_GROUP, case.category) for case in held_out]
    measuring = Measuring(
        model, evaluation_data.sets, evaluation_data.truth, info.reminder, info.model_revision
    )
    before = await measuring.measure_once(cache, active, flagged)
    after = await measuring.measure(candidate, flagged)
    base = await fingerprint(model, "base")
    informedness = evaluation_data.reliability.informedness
    return GateResult(decide(before, after, base, Margins(margin), informedness), before, after)
