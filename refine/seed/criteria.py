"""Training examples of criteria in words, from the seed corpus: whether a rule is true of a text or
an answer, for many rules, so that a small model learns to read the rule and not only the text. Owns
which rule is true of which row. Asks no model and trains none.

What a rule is about is a category, a kind of request, a prompt attack, a refusal, or the topic of a
row. Half of the examples are of rules that are true. The others are of a rule that is true of some
other row, so that neither the rule nor the text alone tells the label.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from refine.criterion_examples import of_criterion
from refine.seed import corpus
from refine.seed.corpus import Split
from refine.served import Message, answered, user_turn
from refine.stages.dataset import Example

_AREAS: Mapping[str, frozenset[str]] = {
    "harassment": frozenset({"abuse"}),
    "harassment/threatening": frozenset({"abuse", "violence"}),
    "hate": frozenset({"abuse"}),
    "hate/threatening": frozenset({"abuse", "violence"}),
    "illicit": frozenset({"crime"}),
    "illicit/violent": frozenset({"crime", "violence"}),
    "self-harm": frozenset({"self-harm"}),
    "self-harm/intent": frozenset({"self-harm"}),
    "self-harm/instructions": frozenset({"self-harm"}),
    "sexual": frozenset({"sexual"}),
    "sexual/minors": frozenset({"sexual", "crime", "abuse"}),
    "violence": frozenset({"violence"}),
    "violence/graphic": frozenset({"violence"}),
}
_SUBJECTS = frozenset({"code", "cooking", "health", "maths", "money", "travel"})
"""The kinds of ordinary requests that say what a request is about; the others say what it asks for.
A request has one of either, and only one of them is known."""
JAILBREAK, INJECTED, DECLINES = "jailbreak", "injected instructions", "declines"
_ORDINARY = "ordinary"
_TOPIC_FORMS = (
    "It is about {topic}.",
    "The {subject} is about {topic}.",
    "Topic: {topic}.",
    "It has to do with {topic}.",
    "It mentions or concerns {topic}.",
)
_TOPIC_QUESTIONS = ("Is the {subject} above about {topic}?", "Does it have to do with {topic}?")
_QUESTION_SHARE = 0.25
_LISTED_SHARE = 0.2
_MAX_LISTED = 3
_CLOSE_SHARE = 0.5
"""Of the rules that are not true, those put to a row that is close to one of which they are."""
_WRAPPED_SHARE = 0.15


@dataclass(frozen=True)
class _Row:
    """A text, or a conversation that ends with an answer, and what is known of it.

    group: its category, harmful or not, or what else it belongs to. topic: empty if it has none of
    its own. true: what rules that are true of it are about. maybe: what those are about that may
    be.
    """

    messages: tuple[Message, ...]
    group: str
    topic: str = ""
    true: frozenset[str] = frozenset()
    maybe: frozenset[str] = frozenset()

    @property
    def is_answer(self) -> bool:
        return self.messages[-1]["role"] == "assistant"

    def is_false(self, about: str) -> bool:
        """Whether a rule about that is not true of it."""
        return about not in self.true | self.maybe


def of_corpus(count: int, seed: int, split: Split = "align") -> list[Example]:
    """Returns up to `count` examples, half of them of topics."""
    rng = random.Random(f"criteria {split} {seed}")
    rows = list(_rows(split, rng))
    return [
        *_of_topics(rng, rows, count // 2),
        *_of_descriptions(rng, rows, split, count - count // 2),
    ]


def _of_topics(rng: random.Random, rows: Sequence[_Row], count: int) -> Iterator[Example]:
    with_topic = [row for row in rows if row.topic]
    by_group = defaultdict(list)
    for row in with_topic:
        by_group[row.group].append(row)
    for number in range(count):
        row = rng.choice(with_topic)
        applies = number % 2 == 0
        others = by_group[row.group] if rng.random() < _CLOSE_SHARE else with_topic
        topics = [one.topic for one in rng.sample(others, min(len(others), _MAX_LISTED))]
        listed = [topic for topic in topics if not _share_a_word(topic, row.topic)]
        if rng.random() >= _LISTED_SHARE:
            listed = listed[:1]
        if applies:
            listed = rng.sample([*listed[1:], row.topic], max(len(listed), 1))
        if listed:
            yield _of_topic(rng, row, " or ".join(listed), applies)


def _share_a_word(one: str, other: str) -> bool:
    return not {*one.lower().split()}.isdisjoint(other.lower().split())


def _of_topic(rng: random.Random, row: _Row, topic: str, applies: bool) -> Example:
    if rng.random() < _QUESTION_SHARE:
        question = rng.choice(_TOPIC_QUESTIONS).replace("{topic}", topic)
        return of_criterion(row.messages, question=question, applies=applies)
    description = rng.choice(_TOPIC_FORMS).replace("{topic}", topic)
    return of_criterion(row.messages, description=description, applies=applies)


def _of_descriptions(
    rng: random.Random, rows: Sequence[_Row], split: Split, count: int
) -> Iterator[Example]:
    descriptions = defaultdict(list)
    for criterion in corpus.criteria(split):
        descriptions[criterion.about].append(criterion.description)
    true = {about: [row for row in rows if about in row.true] for about in descriptions}
    false = {about: [row for row in rows if row.is_false(about)] for about in descriptions}
    close = {about: [row for row in false[about] if _is_close(row, about)] for about in true}
    subjects = [about for about in descriptions if true[about]]
    for number in range(count):
        about = rng.choice(subjects)
        applies = number % 2 == 0
        are_close = rng.random() < _CLOSE_SHARE and close[about]
        row = rng.choice(true[about] if applies else are_close or false[about])
        description = rng.choice(descriptions[about])
        yield of_criterion(row.messages, description=description, applies=applies)


def _is_close(row: _Row, about: str) -> bool:
    """Whether a row of which a rule is not true is like those of which it is."""
    if about == DECLINES:
        return row.is_answer
    if about == JAILBREAK:
        return not row.is_answer
    if about in _AREAS or about == INJECTED:
        return row.group == about
    return row.group == _ORDINARY


def _rows(split: Split, rng: random.Random) -> Iterator[_Row]:
    yield from _of_pairs(split, rng)
    yield from _of_texts(split)
    yield from _of_ordinary(split, rng)
    kinds = _kinds(split)
    for injection in corpus.injections(split):
        true = frozenset({INJECTED} if injection.harmful else ())
        yield _Row(user_turn(injection.text), INJECTED, injection.topic, true, kinds)


def _of_pairs(split: Split, rng: random.Random) -> Iterator[_Row]:
    kinds = _kinds(split)
    wrappers = corpus.wrappers(split)
    for pair in corpus.pairs(split):
        group, maybe = pair.category, _sharing(pair.category) | kinds
        true = frozenset({pair.category})
        request = user_turn(pair.harmful[-1]["content"])
        twin = user_turn(pair.benign[-1]["content"])
        wrapped = rng.random() < _WRAPPED_SHARE
        if wrapped:
            wrapper = rng.choice(wrappers)
            request, twin = wrapper.around(request), wrapper.around(twin)
        attack = frozenset({JAILBREAK} if wrapped else ())
        yield _Row(request, group, pair.topic, true | attack, maybe)
        yield _Row(twin, group, "", attack, kinds)
        if pair.answers is not None:
            complying = answered(pair.harmful, pair.answers.compliance)
            yield _Row(complying, group, pair.topic, true, maybe)
            declining = answered(pair.harmful, pair.answers.refusal)
            yield _Row(declining, group, "", frozenset({DECLINES}), kinds)
        if pair.benign_answer:
            yield _Row(answered(pair.benign, pair.benign_answer), group, "", frozenset(), kinds)


def _of_texts(split: Split) -> Iterator[_Row]:
    kinds = _kinds(split)
    for text in corpus.texts(split):
        true, maybe = frozenset({text.category}), _sharing(text.category) | kinds
        yield _Row(user_turn(text.harmful), text.category, text.topic, true, maybe)
        yield _Row(user_turn(text.benign), text.category, "", frozenset(), kinds)


def _of_ordinary(split: Split, rng: random.Random) -> Iterator[_Row]:
    kinds, wrappers = _kinds(split), corpus.wrappers(split)
    for request in corpus.ordinary(split):
        messages = user_turn(request.messages[-1]["content"])
        true = frozenset({request.kind})
        of_other_sort = kinds - _SUBJECTS if request.kind in _SUBJECTS else kinds & _SUBJECTS
        maybe = kinds if request.kind == "other languages" else of_other_sort
        yield _Row(messages, _ORDINARY, request.topic, true, maybe)
        if rng.random() < _WRAPPED_SHARE:
            wrapped = rng.choice(wrappers).around(messages)
            yield _Row(wrapped, _ORDINARY, request.topic, true | {JAILBREAK}, maybe)


def _kinds(split: Split) -> frozenset[str]:
    return frozenset(request.kind for request in corpus.ordinary(split))


def areas(category: str) -> frozenset[str]:
    """Returns what a category is about. Rows of two that share an area may be of both."""
    return _AREAS[category]


def _sharing(category: str) -> frozenset[str]:
    return frozenset(one for one in _AREAS if not areas(one).isdisjoint(areas(category)))
