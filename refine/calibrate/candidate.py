"""The calibration of a newly trained adapter, so that the gate measures it as it will be served.
Owns which fit is stored. Does not fit (fit.py); `setback calibrate` fits to a user's own lines.
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
    """Fits the verdicts of the run's adapter to labelled answers and texts, and stores the fit.

    The result is uncalibrated if the verdicts do not separate harmful from harmless: the gate
    reports that better. Raises ServerUnavailable or StoreUnavailable.
    """
    harms = await raw_harms(model, run.id, labelled)
    verdicts = [
        LabelledVerdict(harm, item.harmful, is_answer=item.is_answer)
        for item, harm in zip(labelled, harms, strict=True)
    ]
    try:
        scales = fit(verdicts).scales
    except DataInvalid:
        return Critic(run.id)
    await store.add(
        adapter=run.id,
        model_revision=run.model_revision,
        scales=scales,
        rows=len(verdicts),
        by=f"run {run.id}",
    )
    return Critic(run.id, scales)
