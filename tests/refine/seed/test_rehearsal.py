"""What a refine cycle trains on again of the first alignment."""

from refine.seed import corpus, examples
from refine.stages.dataset import Kind


def test_a_third_has_words_to_the_critic_after_answers_of_both_kinds() -> None:
    drawn = examples.rehearsal(300, 0)
    assert len(drawn) == 300
    words = [injection.text for injection in corpus.injections("align")]
    injected = [
        one
        for one in drawn[:100]
        if one.prompt[-1]["role"] == "assistant"
        and one.prompt[-1]["content"].endswith(tuple(words))
    ]
    assert len(injected) == 100
    harmful = [one for one in injected if one.completion.startswith(" Yes")]
    assert len(harmful) == 50
    assert {one.kind for one in injected} == {Kind.LABEL}


def test_another_seed_draws_others() -> None:
    assert examples.rehearsal(60, 1) != examples.rehearsal(60, 2)
