"""The fit recovers the calibration of generated verdicts, and refuses useless verdicts."""

import math
import random
from dataclasses import replace

import pytest

from guard.calibration import Calibration, log_odds
from refine.calibrate.fit import MIN_PER_LABEL, LabelledVerdict, fit
from refine.errors import DataInvalid


def drawn(n: int, slope: float, intercept: float, seed: int = 0) -> list[LabelledVerdict]:
    """Returns verdicts that are right as often as Calibration(slope, intercept) says."""
    rng = random.Random(seed)
    verdicts = []
    for _ in range(n):
        harm = rng.random()
        truth = Calibration(slope, intercept).apply(harm)
        verdicts.append(LabelledVerdict(harm, rng.random() < truth))
    return verdicts


def test_the_scale_that_verdicts_were_made_with_is_found() -> None:
    fitted = fit(drawn(6000, slope=0.5, intercept=-1.0))
    assert fitted.scales.answers.slope == pytest.approx(0.5, abs=0.06)
    assert fitted.scales.answers.intercept == pytest.approx(-1.0, abs=0.1)
    before, after = fitted.before.calibration_error, fitted.after.calibration_error
    assert before is not None
    assert after is not None
    assert after.value < 0.05 < before.value


def test_the_scores_after_are_of_rows_that_the_fit_has_not_seen() -> None:
    """Random verdicts look calibrated if they are scored on the data of the fit."""
    verdicts = drawn(400, slope=1.0, intercept=0.0)
    fitted = fit(verdicts)
    harms = [fitted.scales.answers.apply(verdict.harm) for verdict in verdicts]
    assert fitted.after.average_precision is not None
    assert len({round(harm, 9) for harm in harms}) > 300
    assert fitted.after.n == len(verdicts)


def test_answers_and_texts_have_scales_of_their_own() -> None:
    answers = drawn(3000, slope=0.5, intercept=-1.0)
    texts = [replace(one, is_answer=False) for one in drawn(3000, slope=1.0, intercept=1.0, seed=1)]
    fitted = fit([*answers, *texts])
    assert fitted.scales.answers.intercept == pytest.approx(-1.0, abs=0.15)
    assert fitted.scales.texts.intercept == pytest.approx(1.0, abs=0.15)
    assert fitted.apply(texts[0]) == fitted.scales.texts.apply(texts[0].harm)
    assert fitted.after.calibration_error is not None
    assert fitted.after.calibration_error.value < 0.05


def test_a_kind_with_too_few_lines_has_the_scale_of_all() -> None:
    answers = drawn(3000, slope=0.5, intercept=-1.0)
    few = [replace(one, is_answer=False) for one in drawn(20, slope=1.0, intercept=1.0)]
    scales = fit([*answers, *few]).scales
    assert scales.answers == fit(answers).scales.answers
    assert scales.texts.slope == pytest.approx(0.5, abs=0.1)


def test_verdicts_without_exception_still_give_a_finite_scale() -> None:
    clean = [LabelledVerdict(0.9, True)] * 50 + [LabelledVerdict(0.1, False)] * 50
    scale = fit(clean).scales.answers
    assert math.isfinite(scale.slope)
    assert 0.95 < scale.apply(0.9) < 0.999
    assert log_odds(scale.apply(0.9)) == pytest.approx(-log_odds(scale.apply(0.1)), abs=1e-6)


@pytest.mark.parametrize("label", [True, False])
def test_too_few_lines_of_one_label_are_refused(label: bool) -> None:
    few = [LabelledVerdict(0.5, label)] * (MIN_PER_LABEL - 1)
    many = [LabelledVerdict(0.5, not label)] * 100
    with pytest.raises(DataInvalid, match=f"{MIN_PER_LABEL - 1} .*give at least {MIN_PER_LABEL}"):
        fit([*few, *many])


def test_verdicts_that_are_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(DataInvalid, match="do not separate"):
        fit(drawn(500, slope=-1.0, intercept=0.0))
