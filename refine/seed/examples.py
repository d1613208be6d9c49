"""The training examples from the seed corpus and a user's labelled rows: labels for the critic,
analyses in words and safe answers. Owns which examples follow from which row. Asks no model and
trains none.

The labels are in the label style (guard/prompts.py): they follow the end of the judged turn, so
that one read works for requests, texts and answers alike.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from refine.benchmarks.rows import BenchmarkRow
from refine.seed import corpus
from refine.seed.corpus import Answers, Draft, Injection, Pair, Wrapper
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
_MAX_HELP_REQUESTS = 4000
"""More answers than refusals, because otherwise a small model declines everything."""
_REPETITIONS = {"contrast": 3, "plain": 2, "passage": 2}
"""How often the pairs of a kind occur in one pass. Pairs in everyday English occur more often than
those written close to each other."""
_MIN_KEPT_SHARE = 0.6

Messages = Sequence[Message]


def label(messages: Messages, *, harmful: bool, category: str = "") -> Example:
    """Returns the label of the last message, without an explanation."""
    completion = harmful_label(category) if harmful else harmless_label()
    return Example(Kind.LABEL, tuple(messages), completion, after_mark=True)


def mistake(messages: Messages, answer: str, analysis: str, category: str = "") -> Example:
    """Returns a harmful answer with its label and analysis, without the hint (the paper's step
    3)."""
    completion = f"{harmful_label(category)}. {analysis}"
    return Example(Kind.MISTAKE, answered(messages, answer), completion, after_mark=True)


def of_corpus(seed: int) -> list[Example]:
    """Returns all examples from the align split, shuffled by the seed."""
    rng = random.Random(f"seed corpus {seed}")
    examples = [*_of_pairs(rng), *_of_texts(rng), *_of_ordinary(rng), *_of_drafts()]
    rng.shuffle(examples)
    systems = corpus.systems("align")
    return [
        _with_system_prompt(example, rng.choice(systems))
        if rng.random() < _SYSTEM_SHARE
        else example
        for example in examples
    ]


def rehearsal(count: int, seed: int) -> list[Example]:
    """Returns `count` examples to train on again in a later run. Half of them are contrasts of all
    kinds in instructions to the critic, which it resists less after learning from flags; a quarter
    are answers of both kinds to harmful requests, which flags are about too; a quarter are a
    model's own answers, in which it otherwise learns to see harm too rarely."""
    rng = random.Random(f"rehearsal {seed}")
    instructions = corpus.critic_injections("align")
    answers = [contrast for contrast in _contrasts() if contrast.is_of_answers]
    plain = _labels(rng.sample(answers, min(len(answers), count // 8)))
    instructed = [
        replace(example, prompt=rng.choice(instructions).around(example.prompt))
        for example in _labels(rng.sample(list(_contrasts()), count // 4))
    ]
    return [*plain, *instructed, *_of_drawn_drafts(rng, count // 8)]


def _of_drawn_drafts(rng: random.Random, count: int) -> Iterator[Example]:
    """Yields the labels of that many harmful drafts and as many harmless ones."""
    for harmful in (True, False):
        drafts = [draft for draft in corpus.drafts("align") if draft.harmful is harmful]
        yield from map(_of_draft, rng.sample(drafts, min(len(drafts), count)))


@dataclass(frozen=True)
class _Contrast:
    """A harmful last message, of a category, and a harmless one."""

    harmful: Messages
    harmless: Messages
    category: str

    @property
    def is_of_answers(self) -> bool:
        return self.harmful[-1]["role"] == "assistant"


def _contrasts() -> Iterator[_Contrast]:
    """Yields two answers to one request, two requests, or two texts."""
    for pair in corpus.pairs("align"):
        if pair.answers is None:
            yield _Contrast(pair.harmful, pair.benign, pair.category)
        else:
            yield _Contrast(
                answered(pair.harmful, pair.answers.compliance),
                answered(pair.harmful, pair.answers.refusal),
                pair.category,
            )
    for text in corpus.texts("align"):
        yield _Contrast(user_turn(text.harmful), user_turn(text.benign), text.category)


def _labels(contrasts: Sequence[_Contrast]) -> list[Example]:
    return [
        example
        for contrast in contrasts
        for example in (
            label(contrast.harmful, harmful=True, category=contrast.category),
            label(contrast.harmless, harmful=False),
        )
    ]


def _with_system_prompt(example: Example, system: str) -> Example:
    """Returns the example with an operator's system prompt, unless it has its own."""
    if example.prompt[0]["role"] == "system":
        return example
    return replace(example, prompt=({"role": "system", "content": system}, *example.prompt))


def requests_to_answer(rows: Sequence[BenchmarkRow], seed: int) -> list[Messages]:
    """Returns the requests for which the base model's own answers are trained on: ordinary ones,
    harmless twins and the harmless requests among a user's rows."""
    ordinary = [request.messages for request in corpus.ordinary("align")]
    others: list[Messages] = [pair.benign for pair in corpus.pairs("align")]
    others += [row.messages for row in rows if row.kind == "request" and not row.harmful]
    random.Random(f"helped {seed}").shuffle(others)
    return [*ordinary, *others][:_MAX_HELP_REQUESTS]


def of_rows(rows: Sequence[BenchmarkRow]) -> list[Example]:
    """Returns a label for each of a user's labelled rows."""
    return [label(row.messages, harmful=row.harmful, category=row.category) for row in rows]


def _of_pairs(rng: random.Random) -> Iterator[Example]:
    wrappers, injections = corpus.wrappers("align"), corpus.injections("align")
    for pair in corpus.pairs("align"):
        for _ in range(_REPETITIONS.get(pair.kind, 1)):
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
    conversations = [pair.harmful]
    if rng.random() < _ANSWERED_WRAPPED_SHARE:
        conversations.append(rng.choice(wrappers).around(pair.harmful))
    for messages in conversations:
        if rng.random() < _DECLINED_SHARE:
            yield Example(Kind.SAFE, messages, answers.refusal)
        yield label(answered(messages, answers.refusal), harmful=False)
        yield _harmful(messages, answers.compliance, pair)
    if answers.analysis:
        yield from _of_analysis(pair.harmful, answers, pair.category, rng)
    # In sexual/minors the compliance is harmful only together with its request.
    if rng.random() < _AS_TEXT_SHARE and pair.category != "sexual/minors":
        yield label(user_turn(answers.compliance), harmful=True, category=pair.category)
        yield label(user_turn(answers.refusal), harmful=False)
    if rng.random() < _CUT_SHARE:
        # Streams are judged before their answers end.
        yield label(answered(pair.harmful, _cut(answers.refusal, rng, 0.1)), harmful=False)
        if answers.shape == "plain":
            yield _harmful(pair.harmful, _cut(answers.compliance, rng, _MIN_KEPT_SHARE), pair)
    if rng.random() < _INJECTED_SHARE:
        # Instructions to the critic do not change a verdict.
        yield from _injected(pair, answers, rng.choice(injections))


def _injected(pair: Pair, answers: Answers, injection: Injection) -> Iterator[Example]:
    yield _harmful(pair.harmful, f"{answers.compliance}\n\n{injection.text}", pair)
    yield label(answered(pair.harmful, f"{answers.refusal}\n\n{injection.text}"), harmful=False)


def _of_analysis(
    messages: Messages, answers: Answers, category: str, rng: random.Random
) -> Iterator[Example]:
    """Yields the analysis of the compliance, unguided and guided, and the answer after it."""
    answer, analysis = answers.compliance, answers.analysis
    yield mistake(messages, answer, analysis, category)
    if rng.random() < _GUIDED_SHARE:
        yield Example(Kind.GUIDED, guided_analysis_of(messages, answer), analysis)
    if rng.random() < _REVISED_SHARE:
        yield Example(Kind.REVISION, revision_of(messages, answer, analysis), answers.refusal)


def _harmful(messages: Messages, answer: str, pair: Pair) -> Example:
    return label(answered(messages, answer), harmful=True, category=pair.category)


def _of_texts(rng: random.Random) -> Iterator[Example]:
    for pair in corpus.texts("align"):
        for _ in range(_REPETITIONS.get(pair.kind, 1)):
            yield label(user_turn(pair.harmful), harmful=True, category=pair.category)
            yield label(user_turn(pair.benign), harmful=False)
    for joined in joined_texts("align", rng):
        harmful = bool(joined.category)
        yield label(user_turn(joined.text), harmful=harmful, category=joined.category)


def _of_ordinary(rng: random.Random) -> Iterator[Example]:
    wrappers = corpus.wrappers("align")
    for request in corpus.ordinary("align"):
        yield label(request.messages, harmful=False)
        if rng.random() < _WRAPPED_SHARE:
            yield label(rng.choice(wrappers).around(request.messages), harmful=False)
    for injection in corpus.injections("align"):
        yield label(user_turn(f"{injection.task}\n\n{injection.text}"), harmful=False)


def _of_drafts() -> Iterator[Example]:
    """Returns the labels of a model's own answers, which are less clear than written ones."""
    return map(_of_draft, corpus.drafts("align"))


def _of_draft(draft: Draft) -> Example:
    category = draft.category if draft.harmful else ""
    return label(answered(draft.messages, draft.answer), harmful=draft.harmful, category=category)


def _cut(text: str, rng: random.Random, min_share: float) -> str:
    """Returns the beginning of `text` with at least that share of its words."""
    words = text.split(" ")
    return " ".join(words[: max(1, round(len(words) * rng.uniform(min_share, 1)))])
