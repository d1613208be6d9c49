"""How a calibration changes verdicts, and which one applies to which adapter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from vllm.lora.request import LoRARequest

from guard.adapters import adapter_version
from guard.calibration import UNSCALED, Calibration, Scales, log_odds
from guard.calibrations import Calibrations
from guard.critic import Critic
from guard.scripted import Script
from guard.store.calibrations import StoredCalibration
from tests.scripted import Bench

OURS = LoRARequest("setback-3", (1 << 20) + 3, "/adapters/0003")
FOREIGN = LoRARequest("theirs", 1, "/theirs")


@pytest.mark.parametrize("harm", [0.0, 1e-12, 0.2, 0.5, 0.99, 1.0])
def test_without_a_fit_nothing_changes(harm: float) -> None:
    assert UNSCALED.answers.apply(harm) == UNSCALED.texts.apply(harm) == harm


def test_a_bias_of_one_adds_one_to_the_log_odds_and_a_temperature_divides_them() -> None:
    assert log_odds(Calibration(1, 1).apply(0.3)) == pytest.approx(log_odds(0.3) + 1)
    assert log_odds(Calibration(0.5, 0).apply(0.9)) == pytest.approx(log_odds(0.9) / 2)


@dataclass
class Fits:
    """A source of calibrations that a test sets."""

    calibrations: dict[int | None, StoredCalibration] = field(default_factory=dict)

    async def in_force(self, model_revision: str) -> Mapping[int | None, StoredCalibration]:
        assert model_revision == "rev"
        return self.calibrations

    def add(self, adapter: int | None, slope: float) -> None:
        self.calibrations[adapter] = StoredCalibration(
            adapter=adapter,
            model_revision="rev",
            scales=Scales(Calibration(slope)),
            rows=50,
            by="anna",
            created_at=datetime.now(UTC),
        )


async def test_every_adapter_has_its_own_and_others_have_none() -> None:
    fits = Fits()
    fits.add(3, 2.0)
    fits.add(None, 3.0)
    calibrations = Calibrations(fits, "rev", lambda: 3)
    assert calibrations.of(OURS) == UNSCALED
    await calibrations.refresh()
    assert calibrations.of(OURS).answers.slope == 2.0
    assert calibrations.of(None).answers.slope == 3.0
    assert calibrations.of(FOREIGN) == UNSCALED
    assert (adapter_version(OURS), adapter_version(FOREIGN), adapter_version(None)) == (
        3,
        None,
        None,
    )


async def test_an_uncalibrated_active_adapter_is_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fits, active = Fits(), [None, 3]
    calibrations = Calibrations(fits, "rev", lambda: active[0])
    await calibrations.refresh()
    await calibrations.refresh()
    fits.add(3, 2.0)
    active.pop(0)
    await calibrations.refresh()
    warned = [record.message for record in caplog.records if "not calibrated" in record.message]
    assert len(warned) == 1
    assert "the base" in warned[0]


async def test_verdicts_are_calibrated_before_the_decision(
    make_bench: Callable[..., Bench], tokenizer: Any
) -> None:
    bench = make_bench(Script(harm=lambda prompt: 0.4, category="hate"))
    critic = Critic(
        bench.engine,
        tokenizer,
        bench.chat_format,
        max_model_len=1024,
        timeout_s=5,
        scales_of=lambda _: Scales(Calibration(1, -1), Calibration(1, 1)),
    )
    subject = critic.text(bench.chat_format.encode("words"))
    verdict = await critic.judge(subject, categories_from=0.5)
    assert verdict.harm == pytest.approx(Calibration(1, 1).apply(0.4))
    answer = critic.answer({"type": "token"}, [1, 2], [3])
    judged = await critic.judge(answer, categories_from=0.5)
    assert judged.harm == pytest.approx(Calibration(1, -1).apply(0.4))
    assert verdict.category_scores is not None
    assert verdict.category_scores["hate"] == pytest.approx(verdict.harm)
