"""The corpus' examples of criteria: balanced, true to the rows, and of one split."""

from collections import Counter, defaultdict

from guard.verdict import CATEGORIES
from refine.seed import corpus, criteria


def test_half_of_the_examples_are_true() -> None:
    labels = Counter(example.completion for example in criteria.of_corpus(400, 1))
    assert sum(labels.values()) >= 380
    assert abs(labels["Yes"] - labels["No"]) <= 20


def test_neither_a_rule_nor_a_row_alone_tells_the_label() -> None:
    labels = defaultdict(set)
    rules = {one.description: one.about for one in corpus.criteria("align")}
    for example in criteria.of_corpus(8000, 2):
        for description, about in rules.items():
            if description in example.prompt[-1]["content"]:
                labels[about].add(example.completion)
    assert {about for about, said in labels.items() if said == {"Yes", "No"}} == set(rules.values())


def test_a_category_is_never_denied_to_a_text_of_that_category() -> None:
    harmful = {
        text.harmful: text.category for text in corpus.texts("align") if len(text.harmful) > 60
    }
    about = {one.description: one.about for one in corpus.criteria("align")}
    checked = 0
    for example in criteria.of_corpus(6000, 3):
        turn = example.prompt[-1]["content"]
        category = next((name for text, name in harmful.items() if text in turn), None)
        rule = next((about[one] for one in about if one in turn), None)
        if category and rule in CATEGORIES and example.completion == "No":
            checked += 1
            assert criteria.areas(category).isdisjoint(criteria.areas(rule)), turn
    assert checked > 10


def test_no_description_is_in_two_splits() -> None:
    splits = [{one.description for one in corpus.criteria(split)} for split in corpus.SPLITS]
    assert sum(map(len, splits)) == len(set().union(*splits))
    assert {one.about for one in corpus.criteria("report")} == {
        one.about for one in corpus.criteria("align")
    }
