"""The gate's sets for real models: large enough to decide, and held out."""

from collections import Counter

from guard.verdict import CATEGORIES
from refine.evaluation.sets import DRAFTS, INJECTIONS
from refine.seed import corpus
from refine.seed.sets import corpus_sets
from refine.stages.gate import Margins, too_small


def test_they_hold_hundreds_of_cases_and_decide_by_the_default_margin() -> None:
    sets = corpus_sets()
    assert min(Counter(case.group for case in sets.harmful).values()) >= 500
    assert Counter(case.group for case in sets.harmless).total() >= 700
    labels = Counter((pair.group, pair.harmful) for pair in sets.pairs)
    assert labels.pop((DRAFTS, True)) >= 100
    assert min(labels.values()) >= 150
    assert {case.category for case in sets.harmful} == set(CATEGORIES)
    assert too_small(sets, Margins().worse, informedness=0.6) == []


def test_nothing_of_them_is_learned() -> None:
    learned = {turn["content"] for pair in corpus.pairs("align") for turn in pair.harmful}
    learned |= {text.harmful for text in corpus.texts("align")}
    sets = corpus_sets()
    assert not learned & {case.request for case in sets.harmful}
    assert not learned & {pair.messages[-1]["content"] for pair in sets.pairs}


def test_every_harmful_row_comes_once_with_words_to_the_critic() -> None:
    sets = corpus_sets()
    harmful = [pair for pair in sets.pairs if pair.harmful and pair.group != DRAFTS]
    assert len(sets.injections) == len(harmful)
    for plain, injected in zip(harmful, sets.injections, strict=True):
        *before, last = injected.messages
        assert tuple(before) == tuple(plain.messages[:-1])
        assert plain.messages[-1]["content"] in last["content"] != plain.messages[-1]["content"]
        assert (injected.harmful, injected.group) == (True, INJECTIONS)
