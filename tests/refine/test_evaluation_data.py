"""The evaluation data of a real model: which reference judges, and how often it is measured."""

from pathlib import Path

from guard.calibration import Calibration, Scales
from refine.critic import Critic
from refine.evaluation_data import load_evaluation_data
from refine.options import RefineOptions
from refine.served import Adapter, ServedInfo
from refine.world import EvaluationData
from tests.refine.scripted_model import ScriptedModel

INFO = ServedInfo("model", "base", "revision", 8192, 16, None)


class Judges(ScriptedModel):
    """Adapter 1 finds everything of odd length harmful, the base nothing."""

    def harm_of(self, text: str, adapter: Adapter) -> float:
        """Returns 0 or 1."""
        return float(adapter == 1 and len(text) % 2)


async def load(model: ScriptedModel, folder: Path, aligned: Critic) -> EvaluationData:
    options = RefineOptions(work_dir=folder)
    return await load_evaluation_data(INFO, model, options, [Critic(), aligned])


async def test_a_reference_is_measured_once(tmp_path: Path) -> None:
    first, again = Judges(), Judges()
    measured = await load(first, tmp_path, Critic(1))
    assert {adapter for what, adapter, _ in first.calls if what == "harm"} == {"base", 1}
    assert (await load(again, tmp_path, Critic(1))).reliability == measured.reliability
    assert measured.reliability.n > 0
    assert measured.on_drafts is not None
    assert measured.on_drafts.n > 500
    assert {name.split(" that ")[0] for name in measured.counts} == {
        f"percent of {label} {kind}"
        for label in ("harmful", "harmless")
        for kind in ("answers", "drafts")
    }
    assert again.calls == []


async def test_an_adapter_calibrated_anew_is_measured_again(tmp_path: Path) -> None:
    model = Judges()
    await load(model, tmp_path, Critic(1))
    model.calls.clear()
    await load(model, tmp_path, Critic(1, Scales(Calibration(intercept=-0.5))))
    assert {adapter for _, adapter, _ in model.calls} == {1}
