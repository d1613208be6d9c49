"""Stage 2: the model's own analysis of each flag. Owns the questions to the model, the checks of
its texts and the counts of what was unusable. Trains nothing and writes no file.

This is the paper's step 2: the model is told the verdict, which makes its analysis better. The safe
answer is a reviewer's correction, or else the guard's revision if there was one. Otherwise the
model is asked for one after the analysis, as the guard asks for a revision. A text that is harmful
or repeats itself is asked for again. A flag without a usable text still trains its label.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guard import prompts
from guard.prompts import CritiqueStyle
from guard.sentences import whole_sentences
from refine.critic import Critic
from refine.room import QUESTION_TOKENS
from refine.served import Adapter, Conversation, GenerationParams, Model, answered, user_turn
from refine.stages.dataset import NO_HARM, Lesson, critique_of, guided_analysis_of, revision_of
from refine.stages.flagged import FlaggedCase
from refine.usable import is_about, repeats_itself

_ANALYSIS_TOKENS = 128
_SAFE_TOKENS = 256
CRITIQUE_TOKENS = 128
_TRIES = 3
_RETRY_TEMPERATURE = 0.8
"""The first try is greedy."""
_PARAPHRASE_TOKENS = 128
_PARAPHRASE_TEMPERATURE = 0.7
_MIN_SAFE_TOKENS = 64
TOKENS_AFTER_ANSWER = _ANALYSIS_TOKENS + QUESTION_TOKENS + _MIN_SAFE_TOKENS
"""Tokens that the context must have left after a flagged answer."""


@dataclass(frozen=True)
class Analysed:
    """The lessons of a run, one for each flag, and how many texts were unusable, by reason.

    revisions, corrections: the number of lessons whose safe answer is the guard's revision, or a
    reviewer's correction.
    """

    lessons: tuple[Lesson, ...]
    dropped: Mapping[str, int]
    revisions: int = 0
    corrections: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """The counts for the run's row."""
        dropped = {f"dropped: {why}": n for why, n in sorted(self.dropped.items())}
        return {
            "safe answers from revisions": self.revisions,
            "safe answers from reviewers": self.corrections,
            **dropped,
        }


async def analyse(
    model: Model,
    cases: Sequence[FlaggedCase],
    *,
    critic: Critic,
    variations: int,
    wrappers: Sequence[str],
    seed: int,
    adapter: Adapter = "active",
    style: CritiqueStyle = CritiqueStyle.YES_NO,
) -> Analysed:
    """Returns one lesson per case, in order.

    An analysis and a safe answer are usable only if the critic finds both harmless, except for a
    reviewer's correction; a variation only if the critic finds it harmful. adapter: writes all of
    these. style: of its critiques; the label style says nothing about a harmless answer.
    Raises ServerUnavailable.
    """
    writer = _Writer(model, critic, adapter, seed)
    analyses = await writer.texts(
        [guided_analysis_of(case.messages, case.answer) for case in cases],
        max_tokens=_ANALYSIS_TOKENS,
    )
    safe_answers = await _safe_answers(writer, cases, analyses)
    safe_critiques = await _critiques(writer, cases, safe_answers, style)
    dropped: Counter[str] = Counter(
        {
            "analyses, harmful or poor": analyses.count(""),
            "safe answers, harmful or poor": safe_answers.count(""),
        }
    )
    variations_by_case = await _variations(model, cases, variations, seed, adapter)
    harmful_variations = await _still_harmful(
        model, critic, variations_by_case, wrappers, seed, dropped
    )
    lessons = (
        Lesson(
            case.flag_id,
            case.messages,
            case.answer,
            analysis,
            safe_answer,
            critique,
            tuple(texts),
            case.category,
        )
        for case, analysis, safe_answer, critique, texts in zip(
            cases, analyses, safe_answers, safe_critiques, harmful_variations, strict=True
        )
    )
    return Analysed(
        tuple(lessons),
        {why: n for why, n in dropped.items() if n},
        revisions=sum(
            bool(safe) and case.correction is None and safe == (case.revision or "").strip()
            for case, safe in zip(cases, safe_answers, strict=True)
        ),
        corrections=sum(case.correction is not None for case in cases),
    )


@dataclass(frozen=True)
class _Writer:
    """Has the model write texts and keeps the usable ones: harmless to the critic, not
    repetitive."""

    model: Model
    critic: Critic
    adapter: Adapter
    seed: int

    async def texts(
        self,
        conversations: Sequence[Conversation],
        *,
        max_tokens: int,
        after: Sequence[Conversation] | None = None,
        known: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Returns a usable answer to each conversation, empty if no try gave one.

        after: the conversations in which the answers are judged, if others. known: earlier answers,
        which are used if they are usable.
        """
        after = conversations if after is None else after
        texts = await self._usable(after, list(known or [None] * len(conversations)))
        for number in range(_TRIES):
            open_ = [index for index, text in enumerate(texts) if not text]
            if not open_:
                break
            written = await self.model.answers(
                [conversations[index] for index in open_],
                adapter=self.adapter,
                params=GenerationParams(
                    max_tokens=max_tokens,
                    temperature=_RETRY_TEMPERATURE if number else 0.0,
                    seed=self.seed + number,
                ),
            )
            # An answer that reached its limit of tokens ends inside a sentence.
            whole = [whole_sentences(text) or text.strip() for text in written]
            usable = await self._usable([after[index] for index in open_], whole)
            for index, text in zip(open_, usable, strict=True):
                texts[index] = text
        return texts

    async def _usable(
        self, conversations: Sequence[Conversation], texts: Sequence[str | None]
    ) -> list[str]:
        """Returns the texts, empty where they are not usable."""
        result = [text.strip() if text and not repeats_itself(text) else "" for text in texts]
        written = [index for index, text in enumerate(result) if text]
        harmful = await self.critic.finds_harmful(
            self.model, [answered(conversations[index], result[index]) for index in written]
        )
        for index, harm in zip(written, harmful, strict=True):
            result[index] = "" if harm else result[index]
        return result


async def _safe_answers(
    writer: _Writer, cases: Sequence[FlaggedCase], analyses: Sequence[str]
) -> list[str]:
    """Returns the safe answer of each case, empty if there is none. Where nobody has written one,
    the model is asked after its analysis."""
    uncorrected = [
        (case, analysis)
        for case, analysis in zip(cases, analyses, strict=True)
        if case.correction is None
    ]
    written = await writer.texts(
        [revision_of(case.messages, case.answer, analysis) for case, analysis in uncorrected],
        max_tokens=_SAFE_TOKENS,
        after=[case.messages for case, _ in uncorrected],
        known=[case.revision for case, _ in uncorrected],
    )
    rest = iter(written)
    return [next(rest) if case.correction is None else case.correction for case in cases]


async def _critiques(
    writer: _Writer, cases: Sequence[FlaggedCase], safe_answers: Sequence[str], style: CritiqueStyle
) -> list[str]:
    """Returns the model's critique of each safe answer. A reviewer's answer is harmless, whatever
    the model says."""
    by_case = [NO_HARM] * len(cases)
    criticised = [
        index
        for index, (case, text) in enumerate(zip(cases, safe_answers, strict=True))
        if text and case.correction is None
    ]
    written = await critiques(
        writer.model,
        [critique_of(cases[index].messages, safe_answers[index]) for index in criticised],
        adapter=writer.adapter,
        style=style,
    )
    for index, critique in zip(criticised, written, strict=True):
        by_case[index] = critique
    return by_case


async def critiques(
    model: Model,
    conversations: Sequence[Conversation],
    *,
    adapter: Adapter,
    style: CritiqueStyle,
    reminder: bool = False,
) -> list[str]:
    """Returns the model's answer to each question of the unguided critique about a harmless answer.
    In the label style that is the label alone, and the model is not asked."""
    if style is CritiqueStyle.LABEL:
        return [NO_HARM] * len(conversations)
    return await model.answers(
        conversations,
        adapter=adapter,
        params=GenerationParams(max_tokens=CRITIQUE_TOKENS, reminder=reminder),
    )


async def _variations(
    model: Model, cases: Sequence[FlaggedCase], count: int, seed: int, adapter: Adapter
) -> list[list[str]]:
    """Returns `count` texts for each case: a paraphrase of its request and the request itself, in
    turns. The latter is put in a wrapper."""
    requests = [case.request for case in cases]
    rounds = [
        requests if offset % 2 else await paraphrases(model, requests, seed + offset, adapter)
        for offset in range(count)
    ]
    return [list(texts) for texts in zip(*rounds, strict=True)] or [[] for _ in cases]


async def _still_harmful(
    model: Model,
    critic: Critic,
    varied: Sequence[Sequence[str]],
    wrappers: Sequence[str],
    seed: int,
    dropped: Counter[str],
) -> list[list[str]]:
    """Returns the variations of each case that are still harmful, every other one in a wrapper."""
    rng = random.Random(f"variations {seed}")
    written = [text for texts in varied for text in texts if text]
    harmful = iter(await critic.finds_texts_harmful(model, written))
    kept_by_case: list[list[str]] = []
    for texts in varied:
        kept: list[str] = []
        for index, text in enumerate(texts):
            variation = wrapped(text, wrappers, rng) if index % 2 else text
            if text and next(harmful) and variation not in kept:
                kept.append(variation)
            else:
                dropped["variations, harmless or poor"] += 1
        kept_by_case.append(kept)
    return kept_by_case


async def paraphrases(
    model: Model, requests: Sequence[str], seed: int, adapter: Adapter
) -> list[str]:
    """Returns a sampled paraphrase of each request, empty where it repeats itself or is not about
    the request: small models often lose the topic."""
    conversations = [user_turn(prompts.PARAPHRASE.format(request=text)) for text in requests]
    written = await model.answers(
        conversations,
        adapter=adapter,
        params=GenerationParams(
            max_tokens=_PARAPHRASE_TOKENS, temperature=_PARAPHRASE_TEMPERATURE, seed=seed
        ),
    )
    return [
        text if is_about(text, request) and not repeats_itself(text) else ""
        for text, request in zip(written, requests, strict=True)
    ]


def wrapped(text: str, wrappers: Sequence[str], rng: random.Random) -> str:
    """Returns the request in a random wrapper."""
    return rng.choice(wrappers).replace("{request}", text)
