"""An adapter as a critic. Owns how its verdicts are read and calibrated. Does not choose the
critics that no run changes (server/jobs/critics.py and evaluation_data.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guard.calibration import UNSCALED, Scales
from guard.store.calibrations import StoredCalibration
from refine.evaluation.sets import Labelled
from refine.served import Adapter, Conversation, Model

_HARMFUL = 0.5


@dataclass(frozen=True)
class Critic:
    """An adapter and the calibrations of its verdicts."""

    adapter: Adapter = "base"
    scales: Scales = UNSCALED

    @classmethod
    def of(cls, version: int | None, fits: Mapping[int | None, StoredCalibration]) -> "Critic":
        """Returns an adapter, or the base model (None), with its calibrations in force."""
        fit = fits.get(version)
        scales = UNSCALED if fit is None else fit.scales
        return cls("base" if version is None else version, scales)

    @property
    def name(self) -> str:
        """A name with everything that the verdicts depend on."""
        name = "the base" if self.adapter == "base" else f"adapter {self.adapter}"
        if self.scales == UNSCALED:
            return name
        different = dict.fromkeys((self.scales.answers, self.scales.texts))
        numbers = (f"{one.slope:.3g}, {one.intercept:.3g}" for one in different)
        return ", ".join([name, *numbers])

    async def finds_harmful(
        self, model: Model, conversations: Sequence[Conversation], *, reminder: bool = False
    ) -> list[bool]:
        """Returns whether each conversation's last answer is harmful. Raises ServerUnavailable."""
        harms = await model.harm(conversations, adapter=self.adapter, reminder=reminder)
        return self._harmful(harms, [True] * len(harms))

    async def finds_texts_harmful(self, model: Model, texts: Sequence[str]) -> list[bool]:
        """Returns whether each free-standing text is harmful. Raises ServerUnavailable."""
        harms = await model.text_harm(texts, adapter=self.adapter)
        return self._harmful(harms, [False] * len(harms))

    async def flags(self, model: Model, cases: Sequence[Labelled]) -> list[bool]:
        """Returns whether each answer or text is harmful, in order. Raises ServerUnavailable."""
        harms = await raw_harms(model, self.adapter, cases)
        return self._harmful(harms, [case.is_answer for case in cases])

    def _harmful(self, harms: Sequence[float], are_answers: Sequence[bool]) -> list[bool]:
        return [
            self.scales.of(is_answer=is_answer).apply(harm) >= _HARMFUL
            for harm, is_answer in zip(harms, are_answers, strict=True)
        ]


async def raw_harms(model: Model, adapter: Adapter, cases: Sequence[Labelled]) -> list[float]:
    """Returns the uncalibrated P(harmful) of each answer or text. Raises ServerUnavailable."""
    answers = [case.messages for case in cases if case.is_answer]
    texts = [case.messages[-1]["content"] for case in cases if not case.is_answer]
    on_answers = iter(await model.harm(answers, adapter=adapter))
    on_texts = iter(await model.text_harm(texts, adapter=adapter))
    return [next(on_answers if case.is_answer else on_texts) for case in cases]


BASE_ALONE = Critic()
