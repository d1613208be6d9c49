"""What a refine cycle trains on again of the first alignment."""

from refine.seed import corpus, examples
from refine.stages.dataset import Kind


def test_half_have_instructions_to_the_critic_and_a_quarter_are_a_models_own_answers() -> None:
    drawn = examples.rehearsal(400, 0)
    assert len(drawn) == 400
    answers, instructed, own = drawn[:100], drawn[100:300], drawn[300:]
    assert {one.prompt[-1]["content"] for one in own} <= {
        draft.answer for draft in corpus.drafts("align")
    }
    assert {one.prompt[-1]["role"] for one in answers} == {"assistant"}
    assert {one.prompt[-1]["role"] for one in instructed} == {"user", "assistant"}
    around = [wrapper.template.split("{request}") for wrapper in corpus.critic_injections("align")]
    for one in instructed:
        words = one.prompt[-1]["content"]
        assert any(words.startswith(before) and words.endswith(after) for before, after in around)
    for part in (answers, instructed, own):
        assert sum(one.completion.startswith(" Yes") for one in part) == len(part) // 2
        assert {one.kind for one in part} == {Kind.LABEL}


def test_the_gate_tries_other_instructions_than_are_learned() -> None:
    gate, align = (
        {wrapper.template for wrapper in corpus.critic_injections(split)}
        for split in ("gate", "align")
    )
    assert gate
    assert align
    assert not gate & align


def test_another_seed_draws_others() -> None:
    assert examples.rehearsal(60, 1) != examples.rehearsal(60, 2)
