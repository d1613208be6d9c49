"""An adapter as a critic. Owns how its verdicts are read and calibrated. Does not choose the
critics that no run changes (server/jobs/critics.py and evaluation_data.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guard.calibration import UNCALIBRATED, Calibration
from guard.store.calibrations import StoredCalibration
from refine.evaluation.sets import Labelled
from refine.served import Adapter, Conversation, Model

_HARMFUL = 0.5


@dataclass(frozen=True)
class Critic:
    """An adapter and the calibration of its verdicts."""

    adapter: Adapter = "base"
    calibration: Calibration = UNCALIBRATED

    @classmethod
    def of(cls, version: int | None, fits: Mapping[int | None, StoredCalibration]) -> "Critic":
        """Returns an adapter, or the base model (None), with its calibration in force."""
        fit = fits.get(version)
        calibration = UNCALIBRATED if fit is None else fit.calibration
        return cls("base" if version is None else version, calibration)

    @property
    def name(self) -> str:
        """A name with everything that the verdicts depend on."""
        name = "the base" if self.adapter == "base" else f"adapter {self.adapter}"
        if self.calibration == UNCALIBRATED:
            return name
        return f"{name}, {self.calibration.slope:.3g}, {self.calibration.intercept:.3g}"

    async def finds_harmful(
        self, model: Model, conversations: Sequence[Conversation], *, reminder: bool = False
    ) -> list[bool]:
        """Returns whether each conversation's last answer is harmful. Raises ServerUnavailable."""
        harms = await model.harm(conversations, adapter=self.adapter, reminder=reminder)
        return self._harmful(harms)

    async def finds_texts_harmful(self, model: Model, texts: Sequence[str]) -> list[bool]:
        """Returns whether each free-standing text is harmful. Raises ServerUnavailable."""
        return self._harmful(await model.text_harm(texts, adapter=self.adapter))

    async def flags(self, model: Model, cases: Sequence[Labelled]) -> list[bool]:
        """Returns whether each answer or text is harmful, in order. Raises ServerUnavailable."""
        return self._harmful(await raw_harms(model, self.adapter, cases))

    def _harmful(self, harms: Sequence[float]) -> list[bool]:
        return [self.calibration.apply(harm) >= _HARMFUL for harm in harms]


async def raw_harms(model: Model, adapter: Adapter, cases: Sequence[Labelled]) -> list[float]:
    """Returns the uncalibrated P(harmful) of each answer or text. Raises ServerUnavailable."""
    answers = [case.messages for case in cases if case.is_answer]
    texts = [case.messages[-1]["content"] for case in cases if not case.is_answer]
    on_answers = iter(await model.harm(answers, adapter=adapter))
    on_texts = iter(await model.text_harm(texts, adapter=adapter))
    return [next(on_answers if case.is_answer else on_texts) for case in cases]


BASE_ALONE = Critic()
