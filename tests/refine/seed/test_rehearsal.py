"""What a refine cycle trains on again of the first alignment."""

from refine.seed import corpus, examples
from refine.stages.dataset import Kind


def test_a_third_has_instructions_to_the_critic_around_both_kinds() -> None:
    drawn = examples.rehearsal(300, 0)
    assert len(drawn) == 300
    around = [wrapper.template.split("{request}") for wrapper in corpus.critic_injections("align")]
    injected = [
        one
        for one in drawn[:100]
        if any(
            one.prompt[-1]["content"].startswith(before)
            and one.prompt[-1]["content"].endswith(after)
            for before, after in around
        )
    ]
    assert len(injected) == 100
    assert sum(one.completion.startswith(" Yes") for one in injected) == 50
    assert {one.kind for one in injected} == {Kind.LABEL}
    assert {one.prompt[-1]["role"] for one in injected} == {"user", "assistant"}


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
