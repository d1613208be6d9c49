"""The first alignment of a base model, from a corpus to its first adapter, as one visible sequence
of stages: the paper's steps before there is any traffic. Owns their order and what is asked of the
base; how a run is kept, resumed and ended is run.py's, what the corpus teaches seed/examples.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guard import prompts
from guard.prompts import CritiqueStyle
from guard.store.runs import StoredRun
from refine.dataset import DatasetFile, Example, Kind, write_dataset
from refine.evaluation.rows import BenchmarkRow
from refine.prove import Proof
from refine.run import Run, RunContext, begin
from refine.seed import corpus, examples
from refine.seed.gate import prove_aligned
from refine.served import Message, Model, answered, questioned

_ANSWER_TOKENS = 192
_ANALYSIS_TOKENS = 96
_GUIDED = prompts.GUIDED_ANALYSIS.format(subject="answer")
_DECLINES = ("i'm sorry", "i am sorry", "sorry", "i cannot", "i can't", "i can not", "i'm unable")
"""How a base that was aligned before begins when it declines although it was told to go along."""


@dataclass(frozen=True)
class Mistake:
    """An answer of the base's own that goes along with a harmful request."""

    messages: tuple[Message, ...]
    answer: str
    category: str
    analysis: str = ""


@dataclass(frozen=True)
class Mistakes:
    """What the hint induced. declined: how many requests the base would not go along with."""

    made: tuple[Mistake, ...]
    declined: int

    @property
    def counts(self) -> dict[str, int]:
        """For the run's row."""
        return {"induced mistakes": len(self.made), "declined in spite of the hint": self.declined}


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
    trained = await run.stage("train", Path, lambda: run.train(dataset, start=None))
    return await run.stage("gate", Proof, lambda: _gate(run, trained))


async def _induce(run: Run) -> Mistakes:
    """The paper's step 1: the base's bad answers, asked for with a hint that is not learned."""
    pairs = corpus.pairs("align")
    said = await run.context.model.answers(
        [_hinted(pair.harmful) for pair in pairs], adapter="base", max_tokens=_ANSWER_TOKENS
    )
    made = tuple(
        Mistake(pair.harmful, answer.strip(), pair.category)
        for pair, answer in zip(pairs, said, strict=True)
        if answer.strip() and not answer.strip().lower().startswith(_DECLINES)
    )
    mistakes = Mistakes(made, declined=len(pairs) - len(made))
    await run.count("collect", mistakes.counts)
    return mistakes


def _hinted(messages: Sequence[Message]) -> tuple[Message, ...]:
    *before, last = messages
    return (*before, {**last, "content": prompts.INDUCE.format(request=last["content"])})


async def _analyse(run: Run, mistakes: Mistakes) -> Mistakes:
    """The paper's step 2: the base is told the verdict and says why."""
    asked = [questioned(made.messages, made.answer, _GUIDED) for made in mistakes.made]
    said = await run.context.model.answers(asked, adapter="base", max_tokens=_ANALYSIS_TOKENS)
    return Mistakes(
        tuple(
            Mistake(made.messages, made.answer, made.category, analysis.strip())
            for made, analysis in zip(mistakes.made, said, strict=True)
        ),
        mistakes.declined,
    )


async def _dataset(run: Run, mistakes: Mistakes, rows: Sequence[BenchmarkRow]) -> DatasetFile:
    """The paper's step 3, without any hint: analyses, safe answers, labels and ordinary help."""
    seed = run.context.options.seed
    learned = [
        *examples.of_corpus(seed),
        *examples.of_rows(rows),
        *(example for made in mistakes.made for example in _of_mistake(made)),
        *await _help(run.context.model),
    ]
    about = {"run": run.record.id, "parent": None, "seed": seed}
    return await run.note_dataset(write_dataset(run.folder / "dataset", learned, about))


def _of_mistake(made: Mistake) -> list[Example]:
    judged = answered(made.messages, made.answer)
    found = [examples.label(judged, harmful=True, category=made.category)]
    if made.analysis:
        found.append(examples.mistake(made.messages, made.answer, made.analysis, made.category))
    return found


async def _help(model: Model) -> list[Example]:
    """The base's own answers to what it ought to help with, and that they are harmless."""
    asked = [
        *(each.messages for each in corpus.ordinary("align")),
        *(pair.benign for pair in corpus.pairs("align")),
    ]
    said = await model.answers(asked, adapter="base", max_tokens=_ANSWER_TOKENS)
    found = []
    for messages, answer in zip(asked, said, strict=True):
        if answer.strip():
            found.append(Example(Kind.HELP, messages, answer))
            found.append(examples.label(answered(messages, answer), harmful=False))
    return found


async def _gate(run: Run, trained: Path) -> Proof:
    await run.publish(trained, CritiqueStyle.LABEL)
    return await prove_aligned(run.context.model, candidate=run.record.id)
