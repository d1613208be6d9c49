"""A critic that no run changes. Owns how its verdicts are read; which adapters may be one is
server/references.py's, what is measured by it measure/truth.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from guard.calibration import UNCALIBRATED, Calibration
from refine.served import Adapter, Conversation, Model

_HARMFUL = 0.5


@dataclass(frozen=True)
class Reference:
    """An adapter that judges, and the scale of its verdicts."""

    adapter: Adapter = "base"
    calibration: Calibration = UNCALIBRATED

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

    def _harmful(self, harms: Sequence[float]) -> list[bool]:
        return [self.calibration.apply(harm) >= _HARMFUL for harm in harms]


BASE_ALONE = Reference()
