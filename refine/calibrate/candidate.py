"""The scale of a newly trained adapter's verdicts: the gate measures it as it will be served. Owns
which fit is kept; the fit is fit.py's, and a user's own lines are `setback calibrate`'s.
"""

from collections.abc import Sequence

from guard.store.calibrations import CalibrationStore
from guard.store.runs import StoredRun
from refine.calibrate.fit import LabelledVerdict, fit
from refine.critic import Critic, raw_harms
from refine.errors import DataInvalid
from refine.evaluation.sets import Labelled
from refine.served import Model


async def calibrate_candidate(
    model: Model, store: CalibrationStore, run: StoredRun, labelled: Sequence[Labelled]
) -> Critic:
    """Fits the verdicts of the run's adapter to labelled answers and texts, and keeps the fit.

    Uncalibrated where the verdicts do not tell harmful from harmless: the gate says so better.
    Raises ServerUnavailable or StoreUnavailable.
    """
    harms = await raw_harms(model, run.id, labelled)
    verdicts = [
        LabelledVerdict(harm, each.harmful) for each, harm in zip(labelled, harms, strict=True)
    ]
    try:
        fitted = fit(verdicts).calibration
    except DataInvalid:
        return Critic(run.id)
    await store.add(
        adapter=run.id,
        model_revision=run.model_revision,
        calibration=fitted,
        rows=len(verdicts),
        by=f"run {run.id}",
    )
    return Critic(run.id, fitted)
