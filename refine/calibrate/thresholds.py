"""Thresholds by category that keep false alarms within a budget, and the policy file that holds
them. Owns the rule and the file's form; what a policy means is guard/policy.py's.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guard.policy import Policy
from guard.verdict import CATEGORIES
from refine.calibrate.fit import LabelledVerdict
from refine.evaluation.figures import Figure

_SURE = 0.999


@dataclass(frozen=True)
class Proposal:
    """A threshold for one category.

    false_alarms: of all harmless rows, those that would be flagged as this category. caught: of the
    harmful rows labelled with it, those that would be flagged as anything; None without labels.
    """

    category: str
    threshold: float
    false_alarms: Figure
    caught: Figure | None


@dataclass(frozen=True)
class Proposals:
    """All categories' thresholds, and what they come to together on the rows."""

    by_category: tuple[Proposal, ...]
    false_alarms: Figure
    caught: Figure


def propose(
    verdicts: Sequence[LabelledVerdict], harms: Sequence[float], most_false_alarms: float
) -> Proposals:
    """The lowest thresholds at which at most that share of the harmless rows is flagged.

    harms: calibrated, in the order of the verdicts. Each category that harmless rows are taken for
    gets an equal part of the budget, in whole rows; any other one gets the lowest of these.
    """
    harmless = [i for i, verdict in enumerate(verdicts) if not verdict.harmful]
    taken_for = {name for i in harmless for name in verdicts[i].named}
    allowed = math.floor(most_false_alarms * len(harmless) / max(1, len(taken_for)) + 1e-9)
    thresholds = {
        category: _lowest([harms[i] for i in harmless if category in verdicts[i].named], allowed)
        for category in taken_for
    }
    lowest = min(thresholds.values(), default=0.5)
    thresholds |= {name: lowest for name in CATEGORIES if name not in thresholds}
    flagged = [
        any(harm >= thresholds[name] for name in verdict.named)
        for verdict, harm in zip(verdicts, harms, strict=True)
    ]
    return Proposals(
        tuple(
            _proposal(category, thresholds[category], verdicts, harms, flagged)
            for category in CATEGORIES
        ),
        Figure.of("false alarms", (flagged[i] for i in harmless)),
        Figure.of("caught", (f for f, v in zip(flagged, verdicts, strict=True) if v.harmful)),
    )


def _lowest(harms: Sequence[float], allowed: int) -> float:
    """The lowest threshold, in thousandths, that at most `allowed` of these reach."""
    ranked = sorted(harms, reverse=True)
    if len(ranked) <= allowed:
        return 1 / 1000
    above = (math.floor(ranked[allowed] * 1000) + 1) / 1000
    return min(above, _SURE)


def _proposal(
    category: str,
    threshold: float,
    verdicts: Sequence[LabelledVerdict],
    harms: Sequence[float],
    flagged: Sequence[bool],
) -> Proposal:
    labelled = [
        f for f, verdict in zip(flagged, verdicts, strict=True) if verdict.category == category
    ]
    alarms = [
        category in verdict.named and harm >= threshold
        for harm, verdict in zip(harms, verdicts, strict=True)
        if not verdict.harmful
    ]
    return Proposal(
        category,
        threshold,
        Figure.of("false alarms", alarms),
        Figure.of("caught", labelled) if labelled else None,
    )


def policy_text(policy: Policy, thresholds: Mapping[str, float]) -> str:
    """A policy file with these thresholds and the policy's own refusal and actions."""
    lines = [
        "# Written by `setback calibrate`; see guard/policy.toml for what each field means.",
        f"refusal = {json.dumps(policy.refusal, ensure_ascii=False)}",
    ]
    for category, threshold in thresholds.items():
        lines += [
            "",
            f"[categories.{json.dumps(category)}]",
            f"threshold = {threshold:g}",
            f"action = {json.dumps(str(policy.rules[category].action))}",
        ]
    return "\n".join(lines) + "\n"
