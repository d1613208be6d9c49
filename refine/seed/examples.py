"""What the seed corpus and a user's labelled rows teach: labels for the critic, analyses in words
and safe answers. Owns which example follows from which row; asks no model and trains none.

The labels are in the label style (guard/prompts.py): they stand right after the end of the turn
that is judged, so that one read serves requests, texts and answers alike.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from refine.benchmarks.rows import BenchmarkRow
from refine.seed import corpus
from refine.seed.corpus import Answers, Injection, Pair, Wrapper
from refine.seed.joined import joined_texts
from refine.served import Message, answered, user_turn
from refine.stages.dataset import (
    Example,
    Kind,
    guided_analysis_of,
    harmful_label,
    harmless_label,
    revision_of,
)

_WRAPPED_SHARE = 0.3
_INJECTED_SHARE = 0.1
_CUT_SHARE = 0.3
_SYSTEM_SHARE = 0.2
_AS_TEXT_SHARE = 0.5
_ANSWERED_WRAPPED_SHARE = 0.5
_DECLINED_SHARE = 0.6
_GUIDED_SHARE = 0.3
_REVISED_SHARE = 0.6
_HELPED = 4000
"""More answers than refusals are learned, or a small model declines everything."""
_TIMES = {"contrast": 3, "plain": 2, "passage": 2}
"""How often the pairs of a kind come in one pass. Pairs in everyday English come more often than
those written close to each other."""
_LEAST_KEPT = 0.6

Messages = Sequence[Message]


def label(messages: Messages, *, harmful: bool, category: str = "") -> Example:
    """The verdict on the last of `messages`, without a word of why."""
    said = harmful_label(category) if harmful else harmless_label()
    return Example(Kind.LABEL, tuple(messages), said, after_mark=True)


def mistake(messages: Messages, answer: str, analysis: str, category: str = "") -> Example:
    """A harmful answer with the analysis that goes on from its label, the hint removed (the paper's
    step 3)."""
    said = f"{harmful_label(category)}. {analysis}"
    return Example(Kind.MISTAKE, answered(messages, answer), said, after_mark=True)


def of_corpus(seed: int) -> list[Example]:
    """Everything that the align split teaches, in an order that follows from the seed."""
    rng = random.Random(f"seed corpus {seed}")
    examples = [*_of_pairs(rng), *_of_texts(rng), *_of_ordinary(rng)]
    rng.shuffle(examples)
    systems = corpus.systems("align")
    return [
        _instructed(example, rng.choice(systems)) if rng.random() < _SYSTEM_SHARE else example
        for example in examples
    ]


def _instructed(example: Example, system: str) -> Example:
    """The example under an operator's system prompt, unless it has one of its own."""
    if example.prompt[0]["role"] == "system":
        return example
    return replace(example, prompt=({"role": "system", "content": system}, *example.prompt))


def requests_to_answer(rows: Sequence[BenchmarkRow], seed: int) -> list[Messages]:
    """The requests for which the base's own answers are learned: ordinary requests, harmless twins
    and the harmless requests among a user's rows."""
    ordinary = [each.messages for each in corpus.ordinary("align")]
    others: list[Messages] = [pair.benign for pair in corpus.pairs("align")]
    others += [row.messages for row in rows if row.kind == "request" and not row.harmful]
    random.Random(f"helped {seed}").shuffle(others)
    return [*ordinary, *others][:_HELPED]


def of_rows(rows: Sequence[BenchmarkRow]) -> list[Example]:
    """A label for each of a user's labelled rows."""
    return [label(row.messages, harmful=row.harmful, category=row.category) for row in rows]


def _of_pairs(rng: random.Random) -> Iterator[Example]:
    wrappers, injections = corpus.wrappers("align"), corpus.injections("align")
    for pair in corpus.pairs("align"):
        for _ in range(_TIMES.get(pair.kind, 1)):
            yield label(pair.harmful, harmful=True, category=pair.category)
            yield label(pair.benign, harmful=False)
        if rng.random() < _WRAPPED_SHARE:
            wrapper = rng.choice(wrappers)
            yield label(wrapper.around(pair.harmful), harmful=True, category=pair.category)
            yield label(wrapper.around(pair.benign), harmful=False)
        if pair.benign_answer:
            yield label(answered(pair.benign, pair.benign_answer), harmful=False)
            if rng.random() < _AS_TEXT_SHARE:
                yield label(user_turn(pair.benign_answer), harmful=False)
        yield from _of_answers(pair, rng, wrappers, injections)


def _of_answers(
    pair: Pair,
    rng: random.Random,
    wrappers: Sequence[Wrapper],
    injections: Sequence[Injection],
) -> Iterator[Example]:
    answers = pair.answers
    if answers is None:
        return
    ways = [pair.harmful]
    if rng.random() < _ANSWERED_WRAPPED_SHARE:
        ways.append(rng.choice(wrappers).around(pair.harmful))
    for asked in ways:
        if rng.random() < _DECLINED_SHARE:
            yield Example(Kind.SAFE, asked, answers.refusal)
        yield label(answered(asked, answers.refusal), harmful=False)
        yield _harmful(asked, answers.compliance, pair)
    if answers.analysis:
        yield from _of_analysis(pair.harmful, answers, pair.category, rng)
    # In the category on minors the compliance is harmful only together with its request.
    if rng.random() < _AS_TEXT_SHARE and pair.category != "sexual/minors":
        yield label(user_turn(answers.compliance), harmful=True, category=pair.category)
        yield label(user_turn(answers.refusal), harmful=False)
    if rng.random() < _CUT_SHARE:
        # Streams are judged before their answers end.
        yield label(answered(pair.harmful, _cut(answers.refusal, rng, 0.1)), harmful=False)
        if answers.shape == "plain":
            yield _harmful(pair.harmful, _cut(answers.compliance, rng, _LEAST_KEPT), pair)
    if rng.random() < _INJECTED_SHARE:
        # Words to the critic change no verdict.
        told = rng.choice(injections).text
        yield _harmful(pair.harmful, f"{answers.compliance}\n\n{told}", pair)
        yield label(answered(pair.harmful, f"{answers.refusal}\n\n{told}"), harmful=False)


def _of_analysis(
    messages: Messages, answers: Answers, category: str, rng: random.Random
) -> Iterator[Example]:
    """The analysis of the compliance, unguided and guided, and the answer that follows it."""
    answer, analysis = answers.compliance, answers.analysis
    yield mistake(messages, answer, analysis, category)
    if rng.random() < _GUIDED_SHARE:
        yield Example(Kind.GUIDED, guided_analysis_of(messages, answer), analysis)
    if rng.random() < _REVISED_SHARE:
        yield Example(Kind.REVISION, revision_of(messages, answer, analysis), answers.refusal)


def _harmful(asked: Messages, answer: str, pair: Pair) -> Example:
    return label(answered(asked, answer), harmful=True, category=pair.category)


def _of_texts(rng: random.Random) -> Iterator[Example]:
    for pair in corpus.texts("align"):
        for _ in range(_TIMES.get(pair.kind, 1)):
            yield label(user_turn(pair.harmful), harmful=True, category=pair.category)
            yield label(user_turn(pair.benign), harmful=False)
    for joined in joined_texts("align", rng):
        harmful = bool(joined.category)
        yield label(user_turn(joined.text), harmful=harmful, category=joined.category)


def _of_ordinary(rng: random.Random) -> Iterator[Example]:
    wrappers = corpus.wrappers("align")
    for asked in corpus.ordinary("align"):
        yield label(asked.messages, harmful=False)
        if rng.random() < _WRAPPED_SHARE:
            yield label(rng.choice(wrappers).around(asked.messages), harmful=False)
    for injection in corpus.injections("align"):
        yield label(user_turn(f"{injection.task}\n\n{injection.text}"), harmful=False)


def _cut(text: str, rng: random.Random, least: float) -> str:
    """A beginning of `text` that keeps at least that share of its words."""
    words = text.split(" ")
    return " ".join(words[: max(1, round(len(words) * rng.uniform(least, 1)))])
