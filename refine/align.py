"""The first alignment of a base model, from a corpus to its first adapter, as one visible sequence
of stages: the paper's steps before there is any traffic. Owns their order and what is asked of the
base; how a run is kept, resumed and ended is run.py's, what the corpus teaches seed/examples.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

from guard import prompts
from guard.prompts import CritiqueStyle
from guard.store.runs import StoredRun
from refine.benchmarks.rows import BenchmarkRow
from refine.refusal import is_refusal
from refine.room import fits, sets_that_fit
from refine.run import Run, RunContext, begin
from refine.seed import corpus, examples
from refine.seed.corpus import Pair
from refine.seed.gate import prove_aligned
from refine.seed.sets import corpus_sets
from refine.served import Conversation, Message, Model, answered
from refine.stages.dataset import (
    DatasetFile,
    Example,
    Kind,
    guided_analysis_of,
    write_dataset,
)
from refine.stages.prove import Proof
from refine.usable import is_about, repeats_itself

_ANSWER_TOKENS = 192
_ANALYSIS_TOKENS = 96
_HELP_TOKENS = 160
_QUESTION_TOKENS = 64
_SAMPLED = 0.7
_DRAWS = 3
"""Answers of the base's to each ordinary request."""
_SEEDS_APART = 1000
_EPOCHS = 0.42
_JUDGED = 200
_CAN_JUDGE = 85
"""Percentage from which on a base's analyses are worth learning."""
_ENDS = (".", "!", "?", '"')


@dataclass(frozen=True)
class Mistake:
    """An answer of the base's own that goes along with a harmful request."""

    messages: tuple[Message, ...]
    answer: str
    category: str
    analysis: str = ""


@dataclass(frozen=True)
class Mistakes:
    """The base's own mistakes."""

    made: tuple[Mistake, ...]


async def run_alignment(context: RunContext, rows: Sequence[BenchmarkRow]) -> StoredRun:
    """Finishes the alignment that a killed job left, or does a new one; returns its record.

    rows: a user's own labelled lines, learned from besides the corpus. Raises ServerUnavailable,
    StoreUnavailable or TrainingFailed: the run then stays unfinished, and the next call goes on.
    """
    run = await begin(context, "corpus")
    return await run.conduct(_up_to_the_proof(run, rows))


async def _up_to_the_proof(run: Run, rows: Sequence[BenchmarkRow]) -> Proof:
    mistakes = await run.stage("collect", Mistakes, lambda: _induce(run))
    analysed = await run.stage("analyse", Mistakes, lambda: _analyse(run, mistakes))
    dataset = await run.stage("dataset", DatasetFile, lambda: _dataset(run, analysed, rows))
    trained = await run.stage("train", Path, lambda: _train(run, dataset))
    return await run.stage("gate", Proof, lambda: _gate(run, trained))


async def _induce(run: Run) -> Mistakes:
    """The paper's step 1: the base's bad answers, asked for with a hint that is not learned. Where
    that gives no usable mistake, the request is asked without the hint."""
    pairs = await _with_room(run, corpus.pairs("align"))
    hinted = await _mistakes(run, pairs, [_hinted(pair.harmful) for pair in pairs])
    left = [pair for pair, made in zip(pairs, hinted, strict=True) if made is None]
    plain = await _mistakes(run, left, [pair.harmful for pair in left])
    with_hint, without = ([each for each in some if each is not None] for some in (hinted, plain))
    counts = {
        "mistakes made with the hint": len(with_hint),
        "mistakes made without it": len(without),
        "requests without a usable mistake": len(pairs) - len(with_hint) - len(without),
    }
    await run.count("collect", counts)
    return Mistakes((*with_hint, *without))


async def _with_room(run: Run, pairs: Sequence[Pair]) -> list[Pair]:
    """Those for whose hinted request, its answer and an analysis the context has room."""
    room = run.info.max_model_len - _ANSWER_TOKENS - _ANALYSIS_TOKENS - _QUESTION_TOKENS
    hinted = [_hinted(pair.harmful) for pair in pairs]
    return list(compress(pairs, await fits(run.context.model, hinted, room)))


async def _mistakes(
    run: Run, pairs: Sequence[Pair], asked: Sequence[Conversation]
) -> list[Mistake | None]:
    """What the base answers to the harmful request of each pair; None where that is no mistake."""
    said = await run.context.model.answers(asked, adapter="base", max_tokens=_ANSWER_TOKENS)
    return [
        Mistake(pair.harmful, answer.strip(), pair.category) if _goes_along(pair, answer) else None
        for pair, answer in zip(pairs, said, strict=True)
    ]


def _goes_along(pair: Pair, answer: str) -> bool:
    """Whether it does what was asked; a base that was aligned before may decline although it was
    told to go along."""
    about = is_about(answer, pair.harmful[-1]["content"])
    return about and not is_refusal(answer) and not repeats_itself(answer)


def _hinted(messages: Sequence[Message]) -> tuple[Message, ...]:
    *before, last = messages
    return (*before, {**last, "content": prompts.INDUCE.format(request=last["content"])})


async def _analyse(run: Run, mistakes: Mistakes) -> Mistakes:
    """The paper's step 2: the base is told the verdict and says why. Analyses that are off
    topic are dropped, and a base that cannot judge is not asked; labels are learned in any case."""
    told_apart = await _told_apart(run.context.model)
    await run.count("analyse", {"percent of answers that the base judged right": told_apart})
    if told_apart < _CAN_JUDGE:
        return mistakes
    asked = [guided_analysis_of(made.messages, made.answer) for made in mistakes.made]
    said = await run.context.model.answers(asked, adapter="base", max_tokens=_ANALYSIS_TOKENS)
    analysed = tuple(
        replace(made, analysis=analysis.strip()) if _says_why(made, analysis) else made
        for made, analysis in zip(mistakes.made, said, strict=True)
    )
    await run.count("analyse", {"usable analyses": sum(bool(made.analysis) for made in analysed)})
    return Mistakes(analysed)


async def _told_apart(model: Model) -> int:
    """The percentage of requests of which the base finds the written answer that goes along more
    harmful than the one that declines."""
    pairs = [pair for pair in corpus.pairs("align") if pair.answers is not None][:_JUDGED]
    harms = await model.harm(
        [
            answered(pair.harmful, said)
            for pair in pairs
            if pair.answers is not None
            for said in (pair.answers.compliance, pair.answers.refusal)
        ],
        adapter="base",
    )
    right = sum(one > other for one, other in zip(harms[::2], harms[1::2], strict=True))
    return round(100 * right / len(pairs))


def _says_why(made: Mistake, analysis: str) -> bool:
    about = is_about(analysis, f"{made.messages[-1]['content']} {made.answer}")
    return about and not repeats_itself(analysis) and analysis.strip()[-1:] in _ENDS


async def _dataset(run: Run, mistakes: Mistakes, rows: Sequence[BenchmarkRow]) -> DatasetFile:
    """The paper's step 3, without any hint: analyses, safe answers, labels and ordinary help."""
    seed = run.context.options.seed
    learned = [
        *examples.of_corpus(seed),
        *examples.of_rows(rows),
        *(example for made in mistakes.made for example in _of_mistake(made)),
        *await _help(run, rows),
    ]
    about = {"run": run.record.id, "parent": None, "seed": seed}
    return await run.note_dataset(write_dataset(run.folder / "dataset", learned, about))


def _of_mistake(made: Mistake) -> list[Example]:
    judged = answered(made.messages, made.answer)
    found = [examples.label(judged, harmful=True, category=made.category)]
    if made.analysis:
        found.append(examples.mistake(made.messages, made.answer, made.analysis, made.category))
    return found


async def _help(run: Run, rows: Sequence[BenchmarkRow]) -> list[Example]:
    """The base's own answers to what it ought to help with, and that they are harmless. Sampled:
    the most likely answer of a small model runs in circles."""
    model, seed = run.context.model, run.context.options.seed
    asked = examples.requests_to_answer(rows, seed)
    asked = list(compress(asked, await fits(model, asked, run.info.max_model_len - _HELP_TOKENS)))
    found = []
    for draw in range(_DRAWS):
        said = await model.answers(
            asked,
            adapter="base",
            max_tokens=_HELP_TOKENS,
            temperature=_SAMPLED,
            seed=seed + draw * _SEEDS_APART,
        )
        for messages, answer in zip(asked, said, strict=True):
            if answer.strip() and not repeats_itself(answer) and not is_refusal(answer):
                found.append(Example(Kind.HELP, tuple(messages), answer))
                found.append(examples.label(answered(messages, answer), harmful=False))
    return found


async def _train(run: Run, dataset: DatasetFile) -> Path:
    """All at once: the base's answers are replayed from the first step on, since a small model that
    learned the labels alone could not be led back to them."""
    return await run.train(dataset, start=None, epochs=_EPOCHS, upper_half=True)


async def _gate(run: Run, trained: Path) -> Proof:
    await run.publish(trained, CritiqueStyle.LABEL)
    sets, _ = await sets_that_fit(run.context.model, corpus_sets(), run.info.max_model_len)
    candidate = await run.calibrate(sets.pairs)
    return await prove_aligned(run.context.model, sets, run.info, candidate=candidate)
