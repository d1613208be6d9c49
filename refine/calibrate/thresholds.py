"""Thresholds by category that keep false alarms within a budget. Owns the rule, and the policy file
with the result. Does not define policies (guard/policy.py).
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from guard.criteria import Criterion
from guard.policy import Policy, Rule
from guard.verdict import CATEGORIES
from refine.calibrate.fit import LabelledVerdict
from refine.evaluation.figures import Figure

_MAX_THRESHOLD = 0.999


@dataclass(frozen=True)
class Proposal:
    """A threshold for one category.

    false_alarms: the harmless examples that would be flagged as this category. caught: the harmful
    examples with this label that would be flagged as anything; None without such examples.
    """

    category: str
    threshold: float
    false_alarms: Figure
    caught: Figure | None


@dataclass(frozen=True)
class Proposals:
    """The thresholds of all categories, and their combined effect on the examples."""

    by_category: tuple[Proposal, ...]
    false_alarms: Figure
    caught: Figure


def propose(
    verdicts: Sequence[LabelledVerdict], harms: Sequence[float], max_false_alarms: float
) -> Proposals:
    """Returns the lowest thresholds that flag at most that share of the harmless examples.

    harms: calibrated, in the order of the verdicts. Each category that the verdicts name for
    harmless examples gets an equal part of the budget, in whole examples. Any other category gets
    the lowest of these thresholds.
    """
    harmless = [index for index, verdict in enumerate(verdicts) if not verdict.harmful]
    named = {name for index in harmless for name in verdicts[index].named}
    allowed = math.floor(max_false_alarms * len(harmless) / max(1, len(named)) + 1e-9)
    thresholds = {
        category: _lowest(
            [harms[index] for index in harmless if category in verdicts[index].named], allowed
        )
        for category in named
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
        Figure.of("false alarms", (flagged[index] for index in harmless)),
        Figure.of(
            "caught",
            (flag for flag, verdict in zip(flagged, verdicts, strict=True) if verdict.harmful),
        ),
    )


def _lowest(harms: Sequence[float], allowed: int) -> float:
    """Returns the lowest threshold, in thousandths, that at most `allowed` of these reach."""
    ranked = sorted(harms, reverse=True)
    if len(ranked) <= allowed:
        return 1 / 1000
    above = (math.floor(ranked[allowed] * 1000) + 1) / 1000
    return min(above, _MAX_THRESHOLD)


def _proposal(
    category: str,
    threshold: float,
    verdicts: Sequence[LabelledVerdict],
    harms: Sequence[float],
    flagged: Sequence[bool],
) -> Proposal:
    labelled = [
        flag
        for flag, verdict in zip(flagged, verdicts, strict=True)
        if verdict.category == category
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
    """Returns a policy file with these thresholds and the policy's own refusal, actions and
    criteria."""
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
    for criterion in policy.criteria:
        lines += ["", "[[criteria]]", *_criterion_lines(criterion, policy.rules[criterion.name])]
    return "\n".join(lines) + "\n"


def _criterion_lines(criterion: Criterion, rule: Rule) -> Iterator[str]:
    """Yields the fields of a criterion as a policy file has them. Strings are written as JSON,
    which TOML reads."""
    fields = {
        "name": criterion.name,
        "description": criterion.description,
        "question": criterion.question,
        "applies_to": sorted(criterion.applies_to),
        "threshold": rule.threshold,
        "action": str(rule.action),
        "refusal": criterion.refusal,
    }
    if criterion.matcher is not None:
        fields |= asdict(criterion.matcher)
    if not criterion.is_read:
        del fields["threshold"]
    for name, value in fields.items():
        if value not in ("", None):
            yield f"{name} = {json.dumps(value, ensure_ascii=False)}"
    for tool, schema in criterion.arguments.schemas if criterion.arguments else ():
        yield f"arguments.{_toml(tool)} = {_toml(json.loads(schema))}"
    for example in criterion.examples:
        yield from ("", "[[criteria.examples]]")
        for name, value in asdict(example).items():
            if value is not None:
                yield f"{name} = {json.dumps(value, ensure_ascii=False)}"


def _toml(value: object) -> str:
    """Returns a JSON value as TOML writes it in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
