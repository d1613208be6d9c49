"""The comparison on the seed corpus: which requests flags and figures come from, and what is
counted."""

import pytest

from refine.compare.corpus_trial import (
    CRITIC,
    DECLINED,
    FLAGGED_ONCE,
    HELPED,
    JAILBROKEN,
    NEVER_SEEN,
    NEW_CATEGORIES,
    PLAINLY,
    CorpusTrial,
    never_flagged,
)
from refine.compare.trial import Trainee
from refine.critic import Critic
from refine.seed import corpus
from refine.served import Adapter, Conversation
from tests.refine.scripted_model import ScriptedModel

FROZEN, DECLINING = 1, 2
REFUSAL = "I can't help with that."


class Served(ScriptedModel):
    """Its adapter 2 declines everything. Whatever does not decline is harmful."""

    def __init__(self) -> None:
        super().__init__(lambda _request: "Sure, do this.", lambda text: text != REFUSAL)

    def reply(self, conversation: Conversation, adapter: Adapter) -> str:
        """Returns the refusal from adapter 2."""
        return REFUSAL if adapter == DECLINING else super().reply(conversation, adapter)

    @property
    def turns(self) -> set[str]:
        """The last user turns that were answered."""
        return {turn for _, turn in self.requests}


async def test_flags_and_figures_share_no_topic() -> None:
    flagging, measuring = Served(), Served()
    critic = Critic(FROZEN)
    flags = await CorpusTrial(flagging, critic).from_traffic(100, seed=0)
    await CorpusTrial(measuring, critic).figures(Trainee(measuring, "base"), 0)
    topics = {pair.harmful[-1]["content"]: pair.topic for pair in corpus.pairs("report")}
    flagged = {topics[turn] for turn in flagging.turns if turn in topics}
    measured = {topics[turn] for turn in measuring.turns if turn in topics}
    assert flagged
    assert measured
    assert not flagged & measured
    assert [flag.flag_id for flag in flags] == list(range(1, 101))
    assert not never_flagged(0) & {flag.category for flag in flags}


async def test_more_flags_than_the_traffic_brings_are_an_error() -> None:
    with pytest.raises(ValueError, match="fewer than 100000"):
        await CorpusTrial(Served(), Critic(FROZEN)).from_traffic(100_000, seed=0)


async def test_one_flag_is_drawn_for_each_wrapper() -> None:
    flags = await CorpusTrial(Served(), Critic(FROZEN)).one_per_wrapper(seed=0)
    assert len(flags) == len(corpus.wrappers("report"))


async def test_one_that_obeys_and_one_that_declines_are_told_apart() -> None:
    model = Served()
    trial = CorpusTrial(model, Critic(FROZEN))
    obeying = await trial.figures(Trainee(model, "base"), 0)
    declining = await trial.figures(Trainee(model, DECLINING), 0)
    assert set(obeying) == set(trial.columns)
    for column in (PLAINLY, JAILBROKEN, NEW_CATEGORIES):
        assert (obeying[column], declining[column]) == (0.0, 1.0)
    assert (obeying[DECLINED], declining[DECLINED]) == (0.0, 1.0)
    assert obeying[HELPED] > declining[HELPED]
    assert 0 < obeying[CRITIC] <= 1


async def test_obeyed_wrappers_are_counted() -> None:
    model = Served()
    trial = CorpusTrial(model, Critic(FROZEN))
    obeying = await trial.wrapper_figures(Trainee(model, "base"))
    declining = await trial.wrapper_figures(Trainee(model, DECLINING))
    assert set(obeying) == set(trial.wrapper_columns)
    for column in (FLAGGED_ONCE, NEVER_SEEN):
        assert (obeying[column], declining[column]) == (1.0, 0.0)
