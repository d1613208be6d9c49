"""An adapter as a critic: who judges, and the scale of its verdicts. Owns how they are read; the
critics that no run changes are chosen in server/jobs/critics.py and ground.py.
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
    """An adapter, and the scale of its verdicts."""

    adapter: Adapter = "base"
    calibration: Calibration = UNCALIBRATED

    @classmethod
    def of(cls, version: int | None, fits: Mapping[int | None, StoredCalibration]) -> "Critic":
        """The adapter of that version, or the base alone, on the scale that is in force for it."""
        fitted = fits.get(version)
        calibration = UNCALIBRATED if fitted is None else fitted.calibration
        return cls("base" if version is None else version, calibration)

    @property
    def name(self) -> str:
        """With all that its verdicts depend on."""
        who = "the base" if self.adapter == "base" else f"adapter {self.adapter}"
        if self.calibration == UNCALIBRATED:
            return who
        return f"{who}, {self.calibration.slope:.3g}, {self.calibration.intercept:.3g}"

    async def finds_harmful(
        self, model: Model, conversations: Sequence[Conversation], *, reminder: bool = False
    ) -> list[bool]:
        """Whether the last answer of each conversation is harmful. Raises ServerUnavailable."""
        harms = await model.harm(conversations, adapter=self.adapter, reminder=reminder)
        return self._harmful(harms)

    async def finds_texts_harmful(self, model: Model, texts: Sequence[str]) -> list[bool]:
        """Whether each free-standing text is harmful. Raises ServerUnavailable."""
        return self._harmful(await model.text_harm(texts, adapter=self.adapter))

    async def flags(self, model: Model, judged: Sequence[Labelled]) -> list[bool]:
        """Whether each answer or text is harmful, in order. Raises ServerUnavailable."""
        return self._harmful(await raw_harms(model, self.adapter, judged))

    def _harmful(self, harms: Sequence[float]) -> list[bool]:
        return [self.calibration.apply(harm) >= _HARMFUL for harm in harms]


async def raw_harms(model: Model, adapter: Adapter, judged: Sequence[Labelled]) -> list[float]:
    """P(harmful) of each answer or text, uncalibrated, in order. Raises ServerUnavailable."""
    answers = [each.messages for each in judged if each.is_answer]
    texts = [each.messages[-1]["content"] for each in judged if not each.is_answer]
    on_answers = iter(await model.harm(answers, adapter=adapter))
    on_texts = iter(await model.text_harm(texts, adapter=adapter))
    return [next(on_answers if each.is_answer else on_texts) for each in judged]


BASE_ALONE = Critic()
