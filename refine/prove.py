"""Stage 5: measures the candidate beside the active adapter and lets the gate decide. Owns what is
measured and what is kept of it; the sets and their truth are ground.py's, the rule is gate.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine.collect import Case as FlaggedCase
from refine.gate import Decision, decide
from refine.ground import Ground
from refine.measure.fingerprint import fingerprint
from refine.measure.measure import Measures, measure, measure_once
from refine.measure.sets import Case
from refine.served import Model, ServedInfo

HELD_OUT_GROUP = "held-out flags"


@dataclass(frozen=True)
class Proof:
    """The decision, and everything that it stands on."""

    decision: Decision
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


async def prove(
    model: Model,
    ground: Ground,
    info: ServedInfo,
    *,
    candidate: int,
    active: int | None,
    held_out: Sequence[FlaggedCase],
    cache: Path,
) -> Proof:
    """Measures both on the same cases, through the engine that serves, and decides.

    active: the adapter that was in force when the run began; None is the base.
    cache: keeps what was measured of an adapter before. Raises ServerUnavailable.
    """
    flagged = [Case(case.messages, HELD_OUT_GROUP, case.category) for case in held_out]
    before = await measure_once(
        cache,
        info.model_revision,
        model,
        ground.sets,
        ground.truth,
        "base" if active is None else active,
        flagged,
    )
    after = await measure(model, ground.sets, ground.truth, candidate, flagged)
    base = await fingerprint(model, "base")
    return Proof(decide(before, after, base), before, after)
