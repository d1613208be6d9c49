"""The seed corpus: its splits share nothing, every kind occurs, and none of it is public data."""

import csv
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from guard.verdict import CATEGORIES
from refine.benchmarks.formats import read_set
from refine.seed import corpus, examples, lines
from refine.seed.corpus import SPLITS, Split
from refine.seed.joined import joined_texts
from refine.served import Message, answered
from refine.stages.dataset import Kind

PUBLIC_DATA = Path(__file__).parents[4] / "shared" / "data"
ROWS: tuple[Callable[[Split], Sequence[Any]], ...] = (
    corpus.pairs,
    corpus.texts,
    corpus.ordinary,
    corpus.injections,
)


def requests(split: Split) -> Iterator[tuple[Message, ...]]:
    for pair in corpus.pairs(split):
        yield pair.harmful
        yield pair.benign
    for request in corpus.ordinary(split):
        yield request.messages


def texts(split: Split) -> Iterator[str]:
    """Everything that is judged or trained on, except earlier turns."""
    for messages in requests(split):
        yield messages[-1]["content"]
    for pair in corpus.pairs(split):
        if pair.answers is not None:
            yield pair.answers.refusal
            # For the category on minors all agree in one neutral sentence.
            if pair.category != "sexual/minors":
                yield pair.answers.compliance
    for text in corpus.texts(split):
        yield text.harmful
        yield text.benign
    for injection in corpus.injections(split):
        yield injection.text


def normal(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


def test_no_topic_and_no_wrapper_stands_in_two_splits() -> None:
    for rows_of in ROWS:
        keys = [
            {(getattr(row, "category", ""), row.topic) for row in rows_of(split)}
            for split in SPLITS
        ]
        assert not keys[0] & keys[1] | keys[0] & keys[2] | keys[1] & keys[2]
    families = [{row.family for row in corpus.wrappers(split)} for split in SPLITS]
    assert not families[0] & families[1] | families[0] & families[2] | families[1] & families[2]
    assert sum(map(len, families)) >= 20
    assert len(families[2]) * 3 >= sum(map(len, families))


def test_every_category_has_its_harmful_requests_and_their_twins() -> None:
    counts = Counter(pair.category for split in SPLITS for pair in corpus.pairs(split))
    assert set(counts) == set(CATEGORIES)
    assert min(counts.values()) >= 60
    for split in SPLITS:
        assert {pair.category for pair in corpus.pairs(split)} == set(CATEGORIES)
        assert {pair.category for pair in corpus.texts(split)} == set(CATEGORIES)


def test_the_corpus_is_as_large_as_it_is_said_to_be() -> None:
    conversations = [messages for split in SPLITS for messages in requests(split)]
    assert len(conversations) >= 2400
    assert sum(len(corpus.ordinary(split)) for split in SPLITS) >= 500
    assert sum(len(corpus.injections(split)) for split in SPLITS) >= 80
    with_answers = [pair for split in SPLITS for pair in corpus.pairs(split) if pair.answers]
    assert len(with_answers) >= 700
    assert {pair.answers.shape for pair in with_answers if pair.answers} == {
        "plain",
        "long",
        "padded",
        "small_part",
    }
    in_turns = sum(len(messages) > 1 for messages in conversations)
    assert in_turns > 800


def test_every_conversation_ends_with_the_user_and_every_wrapper_holds_the_request() -> None:
    for split in SPLITS:
        assert all(messages[-1]["role"] == "user" for messages in requests(split))
        assert all(row.template.count("{request}") == 1 for row in corpus.wrappers(split))


def test_no_text_comes_twice() -> None:
    """For conversations, which may end in the same words, the whole conversation counts."""
    conversations = Counter(
        normal(" ".join(turn["content"] for turn in messages))
        for split in SPLITS
        for messages in requests(split)
    )
    lasts = {normal(messages[-1]["content"]) for split in SPLITS for messages in requests(split)}
    others = Counter(normal(text) for split in SPLITS for text in texts(split))
    assert [text for text, n in conversations.items() if n > 1] == []
    assert [text for text, n in others.items() if n > 1 and text not in lasts] == []


def test_no_text_stands_in_a_public_set() -> None:
    if not PUBLIC_DATA.is_dir():
        pytest.skip("the public data are not on this machine")
    public = {normal(text) for text in _public_texts()}
    assert len(public) > 10_000
    assert [t for split in SPLITS for t in texts(split) if normal(t) in public] == []


def _public_texts() -> Iterator[str]:
    for path in PUBLIC_DATA.rglob("*.jsonl.gz"):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield from (value for value in json.loads(line).values() if isinstance(value, str))
    with (PUBLIC_DATA / "xstest_prompts.csv").open(encoding="utf-8", newline="") as file:
        yield from (row["prompt"] for row in csv.DictReader(file))


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_can_be_written_as_labelled_lines(
    split: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines.main([split])
    path = tmp_path / "split.jsonl"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    counts = Counter((row.kind, row.harmful) for row in read_set("jsonl", path).rows)
    pairs, texts = corpus.pairs(split), corpus.texts(split)
    with_answers = sum(pair.answers is not None for pair in pairs)
    assert counts == {
        ("request", True): len(pairs),
        ("request", False): len(pairs) + len(corpus.ordinary(split)),
        ("answer", True): with_answers,
        ("answer", False): with_answers,
        ("text", True): len(texts),
        ("text", False): len(texts),
    }


def test_examples_depend_on_the_seed_and_use_only_the_align_split() -> None:
    learned = examples.of_corpus(seed=1)
    assert learned == examples.of_corpus(seed=1) != examples.of_corpus(seed=2)
    kinds = Counter(example.kind for example in learned)
    assert set(kinds) == {Kind.LABEL, Kind.MISTAKE, Kind.SAFE, Kind.GUIDED, Kind.REVISION}
    others = {normal(text) for split in ("gate", "report") for text in texts(split)}
    learned_texts = {normal(turn["content"]) for example in learned for turn in example.prompt}
    assert not learned_texts & others


@pytest.mark.parametrize("split", SPLITS)
def test_joined_texts_are_of_one_split_and_known_by_what_is_in_them(split: Split) -> None:
    harmful = {text.harmful for text in corpus.texts(split)}
    joined = list(joined_texts(split, random.Random(0)))
    assert joined == list(joined_texts(split, random.Random(0)))
    assert len(joined) == 2 * len(corpus.texts(split))
    for item in random.Random(0).sample(joined, min(400, len(joined))):
        assert bool(item.category) == any(text in item.text for text in harmful)
    lengths = [len(item.text.split()) for item in joined]
    assert max(lengths) > 300


def test_system_prompts_stand_before_some_of_what_is_learned_and_never_twice() -> None:
    learned = examples.of_corpus(seed=0)
    systems = set(corpus.systems("align"))
    under = [e for e in learned if e.prompt[0]["content"] in systems]
    assert 0.1 < len(under) / len(learned) < 0.3
    roles = [[turn["role"] for turn in e.prompt] for e in learned]
    assert max(conversation.count("system") for conversation in roles) == 1
    assert not any("system" in conversation[1:] for conversation in roles)


@pytest.mark.parametrize(("split", "least"), [("align", 300), ("gate", 100)])
def test_labelled_drafts_answer_requests_of_their_split(split: Split, least: int) -> None:
    drafts = corpus.drafts(split)
    topics = {(pair.category, pair.topic) for pair in corpus.pairs(split)}
    topics |= {("", topic) for _, topic in topics}
    assert {(draft.category, draft.topic) for draft in drafts} <= topics
    assert not any(draft.harmful and not draft.category for draft in drafts)
    assert "sexual/minors" not in {draft.category for draft in drafts}
    assert Counter(draft.harmful for draft in drafts).most_common()[-1][1] >= least


def test_of_the_drafts_only_those_of_the_align_split_are_learned() -> None:
    drafts = corpus.drafts("align")
    learned = {example.prompt[-1]["content"] for example in examples.of_corpus(seed=0)}
    assert {draft.answer for draft in drafts} <= learned
    prompts = {json.dumps(example.prompt) for example in examples.of_corpus(seed=0)}
    for draft in corpus.drafts("gate"):
        assert json.dumps(answered(draft.messages, draft.answer)) not in prompts
    assert not corpus.drafts("report")


def test_harmful_and_harmless_labels_are_in_balance() -> None:
    labels = [e.completion for e in examples.of_corpus(seed=0) if e.kind is Kind.LABEL]
    harmful = sum(label.startswith(" Yes") for label in labels)
    assert 0.35 < harmful / len(labels) < 0.65
