"""Thresholds keep false alarms within their budget, and the policy file contains them."""

import random
from pathlib import Path

import pytest

from guard.policy_file import load_policy
from guard.verdict import CATEGORIES
from refine.calibrate.fit import LabelledVerdict
from refine.calibrate.thresholds import policy_text, propose

NAMES = ("hate", "illicit", "violence")


def drawn(n: int, seed: int = 0) -> list[LabelledVerdict]:
    """Half are harmful and have higher verdicts; those named illicit are too high."""
    rng = random.Random(seed)
    verdicts = []
    for number in range(n):
        harmful, name = number % 2 == 0, rng.choice(NAMES)
        harm = rng.betavariate(4, 2) if harmful else rng.betavariate(2, 4)
        harm = harm if name != "illicit" else harm**0.5
        named = (name,) if rng.random() < 0.8 else (name, "harassment")
        verdicts.append(LabelledVerdict(harm, harmful, named, name if harmful else ""))
    return verdicts


@pytest.mark.parametrize("budget", [0.0, 0.02, 0.1])
def test_false_alarms_stay_within_the_budget(budget: float) -> None:
    verdicts = drawn(2000)
    proposal = propose(verdicts, [verdict.harm for verdict in verdicts], budget)
    assert proposal.false_alarms.share <= budget
    assert proposal.false_alarms.n == 1000
    if budget:
        assert proposal.caught.share > 0.1
        # Little of the budget is left over, but for what is named by several categories.
        assert proposal.false_alarms.share > budget * 0.6


def test_a_category_that_is_flagged_too_easily_gets_a_higher_threshold() -> None:
    verdicts = drawn(4000)
    proposal = propose(verdicts, [verdict.harm for verdict in verdicts], 0.05)
    thresholds = {entry.category: entry.threshold for entry in proposal.by_category}
    assert thresholds["illicit"] > thresholds["hate"] + 0.05
    assert thresholds["sexual"] == min(thresholds.values())


def test_a_threshold_is_just_above_the_harmless_row_that_is_one_too_many() -> None:
    harmless = [LabelledVerdict(harm, False, ("hate",)) for harm in (0.9, 0.7004, 0.5, 0.1)]
    verdicts = [*harmless, LabelledVerdict(0.71, True, ("hate",), "hate")]
    proposal = propose(verdicts, [verdict.harm for verdict in verdicts], 0.25)
    (hate,) = [entry for entry in proposal.by_category if entry.category == "hate"]
    assert hate.threshold == pytest.approx(0.701)
    assert (hate.false_alarms.hits, hate.caught and hate.caught.hits) == (1, 1)


def test_a_category_without_labelled_lines_has_no_catch_rate() -> None:
    verdicts = drawn(200)
    proposal = propose(verdicts, [verdict.harm for verdict in verdicts], 0.1)
    assert [entry.category for entry in proposal.by_category if entry.caught] == sorted(NAMES)


def test_the_policy_file_is_one_that_loads_with_the_same_actions(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        'refusal = "Nein, \\"so\\" nicht."\n[categories.hate]\naction = "block"\n'
        '[[criteria]]\nname = "rivals"\ndescription = "Praises a rival \\\\ {shop}."\n'
        'threshold = 0.7\nexamples = [{text = "Go to B.", request = "Where?", applies = true}]\n'
        "[[criteria]]\nname = \"serials\"\npattern = '\\d{4}'\nlongest = 4\n"
        '[[criteria]]\nname = "data"\npersonal_data = ["IBAN_CODE"]\naction = "block"\n'
        '[[criteria]]\nname = "long"\nmax_characters = 9\naction = "block"\n'
        '[[criteria]]\nname = "languages"\nlanguages = ["en"]\naction = "block"\n'
        '[[criteria]]\nname = "calls"\n[criteria.arguments."send mail"]\nrequired = ["to"]\n'
        "properties.to = { pattern = 'ü\\d', maxLength = 40 }\n"
        '[criteria.arguments]\n"*" = false\n'
    )
    policy = load_policy(own)
    written = tmp_path / "policy.toml"
    thresholds = {name: round(0.1 + 0.05 * n, 3) for n, name in enumerate(CATEGORIES)}
    written.write_text(policy_text(policy, thresholds))
    again = load_policy(written)
    assert again.refusal == policy.refusal
    assert again.criteria == policy.criteria
    assert again.rules["rivals"] == policy.rules["rivals"]
    assert {name: rule.threshold for name, rule in again.rules.items()} == thresholds | {
        "rivals": 0.7,
        "calls": 0.5,
        "serials": 0.5,
        "data": 0.5,
        "long": 0.5,
        "languages": 0.5,
    }
    assert {name: rule.action for name, rule in again.rules.items()} == {
        name: rule.action for name, rule in policy.rules.items()
    }
