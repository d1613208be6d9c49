"""Reads whether an operator's criteria apply to a text, each on a scale of its own, or looks for
what they are about (matchers.py). Owns the scale, which is fitted to the criterion's examples when
it is first read with an adapter, and tells when a model cannot read a criterion. Does not decide
what follows (policy.py).
"""

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guard.calibration import UNCALIBRATED, Calibration, log_odds
from guard.criteria import Criterion, CriterionExample
from guard.critique_format import Question, criterion_question
from guard.label_reader import LabelRead, LabelReader, Subject
from guard.matchers import Matcher, TextMatcher, matches
from guard.tasks import spawn
from guard.template import ChatFormat, Tokenizer

_Z = 1.64
"""One-sided 95%."""
_STEEPEST = 5.0
_log = logging.getLogger("vllm.setback")


@dataclass(frozen=True)
class Scale:
    """How a model reads one criterion, by its examples.

    area: the area under the ROC curve, 0.5 for chance; None without examples of both kinds.
    at_chance: whether the area's one-sided 95% interval reaches 0.5.
    """

    calibration: Calibration = UNCALIBRATED
    area: float | None = None
    examples: int = 0
    at_chance: bool = False


@dataclass(frozen=True)
class CriterionScore:
    """The probability that a criterion applies, and the reads it took."""

    probability: float
    reads: tuple[LabelRead, ...]


class CriterionReader:
    """Reads criteria, of whatever policy."""

    def __init__(self, reader: LabelReader, tokenizer: Tokenizer, chat_format: ChatFormat) -> None:
        self._reader = reader
        self._tokenizer = tokenizer
        self._format = chat_format
        self._questions: dict[str, Question] = {}
        self._scales: dict[tuple[Criterion, str], asyncio.Task[Scale]] = {}

    def longest(self, criteria: Sequence[Criterion]) -> int:
        """Returns the most tokens that any of the criteria's questions adds to what is judged."""
        read = (self._question(one).longest for one in criteria if one.is_read)
        return max(read, default=0)

    def _question(self, criterion: Criterion) -> Question:
        asked = criterion.asked
        if asked not in self._questions:
            self._questions[asked] = criterion_question(asked, self._tokenizer, self._format)
        return self._questions[asked]

    async def scores(
        self, subject: Subject, criteria: Sequence[Criterion], engine_options: dict[str, Any]
    ) -> dict[str, CriterionScore]:
        """Returns the probability that each criterion applies to the subject, by name, all read at
        once; none for those about arguments of tool calls. Raises CriticUnavailable."""
        read = [criterion for criterion in criteria if criterion.is_read]
        scores = await asyncio.gather(*(self._score(subject, one, engine_options) for one in read))
        by_name = {one.name: score for one, score in zip(read, scores, strict=True)}
        matchers = {one.name: one.matcher for one in criteria if one.matcher is not None}
        by_name |= self._found(subject, matchers)
        return {one.name: by_name[one.name] for one in criteria if one.arguments is None}

    def _found(
        self, subject: Subject, matchers: Mapping[str, Matcher]
    ) -> dict[str, CriterionScore]:
        """Returns 1 for each criterion that is found in the subject's words, and 0 for others."""
        words = self._format.decode(subject.judged_ids) if matchers else ""
        text = words if subject.text is None else subject.text

        def score(matcher: Matcher) -> CriterionScore:
            # A word may begin in what the caller wrote of the answer; that has no part in a length.
            judged = text if isinstance(matcher, TextMatcher) else words
            return CriterionScore(float(matches(matcher, judged, ended=subject.ended)), ())

        return {name: score(matcher) for name, matcher in matchers.items()}

    async def _score(
        self, subject: Subject, criterion: Criterion, engine_options: dict[str, Any]
    ) -> CriterionScore:
        scale = await self.scale(criterion, engine_options)
        reads = await self._reader.read(subject, self._question(criterion), engine_options)
        applies = [scale.calibration.apply(read.labels["yes"]) for read in reads]
        return CriterionScore(applies[subject.decisive(applies)], tuple(reads))

    async def scale(self, criterion: Criterion, engine_options: dict[str, Any]) -> Scale:
        """Returns the scale of a criterion with an adapter. The examples are read once for each
        adapter; a failed read is tried again. Raises CriticUnavailable."""
        adapter = engine_options.get("lora_request")
        key = (criterion, adapter.lora_name if adapter else "")
        task = self._scales.get(key)
        if task is None or (task.done() and task.exception() is not None):
            # A task of its own: the request that needs it first may be cancelled.
            task = self._scales[key] = spawn(self._fitted(criterion, engine_options))
        return await asyncio.shield(task)

    async def _fitted(self, criterion: Criterion, engine_options: dict[str, Any]) -> Scale:
        question = self._question(criterion)
        scores = []
        for example in criterion.examples:
            reads = await self._reader.read(self._subject(example), question, engine_options)
            scores.append(log_odds(max(read.labels["yes"] for read in reads)))
        scale = fitted(scores, [example.applies for example in criterion.examples])
        if scale.at_chance:
            _log.warning(
                "The model cannot read the criterion %s: on its %d examples it is no better than "
                "chance (area under the ROC curve %.2f). Word it otherwise, or set its action to "
                '"pass".',
                criterion.name,
                scale.examples,
                scale.area,
            )
        return scale

    def _subject(self, example: CriterionExample) -> Subject:
        ids = self._format.encode(example.text)
        if example.request is None:
            return Subject("text", (ids,), {"type": "token"})
        turn = [{"role": "user", "content": example.request}]
        return Subject("answer", ([*self._format.conversation(turn), *ids],), {"type": "token"})


def fitted(scores: Sequence[float], applies: Sequence[bool]) -> Scale:
    """Returns the scale that best separates examples by their scores, in log-odds.

    Both kinds count the same, however many there are of each, and are taken to spread alike.
    """
    kinds = {
        kind: [score for score, one in zip(scores, applies, strict=True) if one is kind]
        for kind in (True, False)
    }
    if not all(kinds.values()):
        return Scale(examples=len(scores))
    area = _area(kinds[True], kinds[False])
    high, low = (sum(values) / len(values) for values in kinds.values())
    spread = sum(
        (score - (high if one else low)) ** 2 for score, one in zip(scores, applies, strict=True)
    )
    variance = spread / max(len(scores) - 2, 1)
    slope = 1.0
    if high > low:
        slope = _STEEPEST if variance == 0 else min((high - low) / variance, _STEEPEST)
    return Scale(
        Calibration(slope, -slope * (high + low) / 2),
        area,
        len(scores),
        area - _Z * _area_error(area, len(kinds[True]), len(kinds[False])) <= 0.5,
    )


def _area(high: Sequence[float], low: Sequence[float]) -> float:
    """Returns the share of pairs in the right order, with ties as halves."""
    wins = sum((a > b) + (a == b) / 2 for a in high for b in low)
    return wins / (len(high) * len(low))


def _area_error(area: float, positives: int, negatives: int) -> float:
    """Returns the standard error of an area under the ROC curve (Hanley and McNeil, 1982). A
    perfect order of few examples is not taken for certain."""
    area = min(area, 1 - 1 / (2 * positives * negatives + 2))
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (
        area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
    ) / (positives * negatives)
    return math.sqrt(max(variance, 0.0))
