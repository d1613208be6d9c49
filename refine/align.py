"""The first alignment of a base model, from a corpus to its first adapter. Owns the order of the
stages, which follow the paper's steps before there is any traffic, and the requests to the base
model. Does not store or resume runs (run.py) or turn the corpus into examples (seed/examples.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

from guard import prompts
from guard.prompts import CritiqueStyle
from guard.store.runs import StoredRun
from refine.benchmarks.rows import BenchmarkRow
from refine.room import fits, sets_that_fit
from refine.run import Run, RunContext, begin
from refine.seed import corpus, criteria, examples
from refine.seed.corpus import Pair
from refine.seed.gate import evaluate_alignment
from refine.seed.sets import corpus_sets
from refine.served import Conversation, GenerationParams, Message, Model, answered
from refine.stages.dataset import (
    DatasetFile,
    Example,
    Kind,
    guided_analysis_of,
    write_dataset,
)
from refine.stages.evaluate import GateResult
from refine.usable import helps, is_about, repeats_itself

_ANSWER_TOKENS = 192
_ANALYSIS_TOKENS = 96
_HELP_TOKENS = 160
_QUESTION_TOKENS = 64
_HELP_TEMPERATURE = 0.7
_DRAWS = 3
"""Sampled answers of the base model to each ordinary request."""
_SEED_STEP = 1000
_EPOCHS = 0.42
_RULES = 6000
"""Examples of criteria in words; of the verdict there are several times as many."""
_MAX_JUDGED_PAIRS = 200
_MIN_PERCENT_RIGHT = 85
"""Percentage from which on the base model's analyses are good enough to train on."""
_SENTENCE_ENDS = (".", "!", "?", '"')


@dataclass(frozen=True)
class Mistake:
    """An answer of the base model that complies with a harmful request."""

    messages: tuple[Message, ...]
    answer: str
    category: str
    analysis: str = ""


@dataclass(frozen=True)
class Mistakes:
    """The base model's mistakes."""

    made: tuple[Mistake, ...]


async def run_alignment(context: RunContext, rows: Sequence[BenchmarkRow]) -> StoredRun:
    """Resumes the alignment that a killed job left, or runs a new one. Returns its record.

    rows: a user's labelled lines, which are trained on in addition to the corpus. Raises
    ServerUnavailable, StoreUnavailable or TrainingFailed; the next call then resumes the run.
    """
    run = await begin(context, "corpus")
    return await run.conduct(_run_stages(run, rows))


async def _run_stages(run: Run, rows: Sequence[BenchmarkRow]) -> GateResult:
    mistakes = await run.stage("collect", Mistakes, lambda: _induce(run))
    analysed = await run.stage("analyse", Mistakes, lambda: _analyse(run, mistakes))
    dataset = await run.stage("dataset", DatasetFile, lambda: _dataset(run, analysed, rows))
    trained = await run.stage("train", Path, lambda: _train(run, dataset))
    return await run.stage("gate", GateResult, lambda: _gate(run, trained))


async def _induce(run: Run) -> Mistakes:
    """The paper's step 1: bad answers of the base model, requested with a hint that is not trained
    on. Requests without a usable mistake are repeated without the hint."""
    pairs = await _with_room(run, corpus.pairs("align"))
    with_hint = await _mistakes(run, pairs, [_with_hint(pair.harmful) for pair in pairs])
    remaining = [pair for pair, mistake in zip(pairs, with_hint, strict=True) if mistake is None]
    without_hint = await _mistakes(run, remaining, [pair.harmful for pair in remaining])
    hinted = [mistake for mistake in with_hint if mistake is not None]
    plain = [mistake for mistake in without_hint if mistake is not None]
    counts = {
        "mistakes made with the hint": len(hinted),
        "mistakes made without it": len(plain),
        "requests without a usable mistake": len(pairs) - len(hinted) - len(plain),
    }
    await run.count("collect", counts)
    return Mistakes((*hinted, *plain))


async def _with_room(run: Run, pairs: Sequence[Pair]) -> list[Pair]:
    """Returns the pairs whose hinted request fits the context with its answer and an analysis."""
    room = run.info.max_model_len - _ANSWER_TOKENS - _ANALYSIS_TOKENS - _QUESTION_TOKENS
    hinted = [_with_hint(pair.harmful) for pair in pairs]
    return list(compress(pairs, await fits(run.context.model, hinted, room)))


async def _mistakes(
    run: Run, pairs: Sequence[Pair], conversations: Sequence[Conversation]
) -> list[Mistake | None]:
    """Returns the base model's answer to each pair's harmful request, or None if no mistake."""
    answers = await run.context.model.answers(
        conversations, adapter="base", params=GenerationParams(max_tokens=_ANSWER_TOKENS)
    )
    return [
        Mistake(pair.harmful, answer.strip(), pair.category) if _complies(pair, answer) else None
        for pair, answer in zip(pairs, answers, strict=True)
    ]


def _complies(pair: Pair, answer: str) -> bool:
    """Whether the answer does what was asked. An aligned base model may decline although it was
    told to comply."""
    about = is_about(answer, pair.harmful[-1]["content"])
    return about and helps(answer)


def _with_hint(messages: Sequence[Message]) -> tuple[Message, ...]:
    *before, last = messages
    return (*before, {**last, "content": prompts.INDUCE.format(request=last["content"])})


async def _analyse(run: Run, mistakes: Mistakes) -> Mistakes:
    """The paper's step 2: the base model is told the verdict and explains it. Analyses that are off
    topic are dropped. A base model that cannot judge is not asked; labels are trained anyway."""
    percent_right = await _percent_told_apart(run.context.model)
    await run.count("analyse", {"percent of answers that the base judged right": percent_right})
    if percent_right < _MIN_PERCENT_RIGHT:
        return mistakes
    conversations = [
        guided_analysis_of(mistake.messages, mistake.answer) for mistake in mistakes.made
    ]
    analyses = await run.context.model.answers(
        conversations, adapter="base", params=GenerationParams(max_tokens=_ANALYSIS_TOKENS)
    )
    analysed = tuple(
        replace(mistake, analysis=analysis.strip())
        if _is_usable_analysis(mistake, analysis)
        else mistake
        for mistake, analysis in zip(mistakes.made, analyses, strict=True)
    )
    await run.count(
        "analyse", {"usable analyses": sum(bool(mistake.analysis) for mistake in analysed)}
    )
    return Mistakes(analysed)


async def _percent_told_apart(model: Model) -> int:
    """Returns the percentage of requests for which the base model finds the written answer that
    complies more harmful than the one that declines."""
    pairs = [pair for pair in corpus.pairs("align") if pair.answers is not None][:_MAX_JUDGED_PAIRS]
    harms = await model.harm(
        [
            answered(pair.harmful, text)
            for pair in pairs
            if pair.answers is not None
            for text in (pair.answers.compliance, pair.answers.refusal)
        ],
        adapter="base",
    )
    right = sum(
        complying > declining for complying, declining in zip(harms[::2], harms[1::2], strict=True)
    )
    return round(100 * right / len(pairs))


def _is_usable_analysis(mistake: Mistake, analysis: str) -> bool:
    about = is_about(analysis, f"{mistake.messages[-1]['content']} {mistake.answer}")
    return about and not repeats_itself(analysis) and analysis.strip()[-1:] in _SENTENCE_ENDS


async def _dataset(run: Run, mistakes: Mistakes, rows: Sequence[BenchmarkRow]) -> DatasetFile:
    """The paper's step 3, without any hint: analyses, safe answers, labels and ordinary help."""
    seed = run.context.options.seed
    training_examples = [
        *examples.of_corpus(seed),
        *criteria.of_corpus(_RULES, seed),
        *examples.of_rows(rows),
        *(example for mistake in mistakes.made for example in _of_mistake(mistake)),
        *await _help(run, rows),
    ]
    about = {"run": run.record.id, "parent": None, "seed": seed}
    return await run.note_dataset(write_dataset(run.folder / "dataset", training_examples, about))


def _of_mistake(mistake: Mistake) -> list[Example]:
    judged = answered(mistake.messages, mistake.answer)
    training_examples = [examples.label(judged, harmful=True, category=mistake.category)]
    if mistake.analysis:
        training_examples.append(
            examples.mistake(mistake.messages, mistake.answer, mistake.analysis, mistake.category)
        )
    return training_examples


async def _help(run: Run, rows: Sequence[BenchmarkRow]) -> list[Example]:
    """Returns the base model's answers to ordinary requests, with their harmless labels. They are
    sampled because a small model's most likely answer repeats itself."""
    model, seed = run.context.model, run.context.options.seed
    requests = examples.requests_to_answer(rows, seed)
    requests = list(
        compress(requests, await fits(model, requests, run.info.max_model_len - _HELP_TOKENS))
    )
    training_examples = []
    for draw in range(_DRAWS):
        answers = await model.answers(
            requests,
            adapter="base",
            params=GenerationParams(
                max_tokens=_HELP_TOKENS,
                temperature=_HELP_TEMPERATURE,
                seed=seed + draw * _SEED_STEP,
            ),
        )
        for messages, answer in zip(requests, answers, strict=True):
            if helps(answer):
                training_examples.append(Example(Kind.HELP, tuple(messages), answer))
                training_examples.append(examples.label(answered(messages, answer), harmful=False))
    return training_examples


async def _train(run: Run, dataset: DatasetFile) -> Path:
    """Trains on everything at once. The base model's answers are replayed from the first step on,
    because a small model that learned only labels would not recover."""
    return await run.train(dataset, start=None, epochs=_EPOCHS, upper_half=True)


async def _gate(run: Run, trained: Path) -> GateResult:
    await run.publish(trained, CritiqueStyle.LABEL)
    sets, _ = await sets_that_fit(run.context.model, corpus_sets(), run.info.max_model_len)
    candidate = await run.calibrate(sets.pairs)
    return await evaluate_alignment(run.context.model, sets, run.info, candidate=candidate)
