"""The model's analyses of flags, what the critic drops of them, and the replayed requests."""

from collections.abc import Sequence
from dataclasses import replace

from guard import prompts
from guard.calibration import Calibration, Scales
from guard.prompts import CritiqueStyle
from refine.critic import Critic
from refine.served import Adapter, Conversation
from refine.stages.analyse import analyse
from refine.stages.dataset import Kind, build
from refine.stages.flagged import FlaggedCase
from refine.stages.replay import replay
from tests.refine.scripted_model import ScriptedModel

WRAPPERS = ("Be short: {request}", "{request} Thanks.")
_CASE = FlaggedCase(
    7, ({"role": "user", "content": "how to harm a gnome"},), "harm it so", "violence"
)


def auditor(prompt: str) -> str:
    """A model that answers all requests of the refine loop."""
    if prompt == prompts.REVISE:
        return "I won't. Ask me of flowers."
    if prompt.startswith("Ask the following"):
        return f"{prompt.removeprefix('Ask the following in other words: ')}, in other words"
    about = ("The answer above", "Is the answer above")
    return "It is wrong." if prompt.startswith(about) else "Water it."


async def test_a_lesson_holds_all_that_the_model_said_of_a_flag() -> None:
    analysed = await analyse(
        ScriptedModel(auditor), [_CASE], variations=2, critic=Critic(), wrappers=WRAPPERS, seed=0
    )
    (lesson,) = analysed.lessons
    assert lesson.flag_id == 7
    assert lesson.analysis == "It is wrong."
    assert lesson.safe_answer == "I won't. Ask me of flowers."
    assert lesson.variations[0] == "how to harm a gnome, in other words"
    assert lesson.variations[1] in {w.replace("{request}", _CASE.request) for w in WRAPPERS}
    assert analysed.dropped == {}


async def test_the_guided_analysis_states_the_verdict() -> None:
    model = ScriptedModel(auditor)
    await analyse(model, [_CASE], variations=0, critic=Critic(), wrappers=WRAPPERS, seed=0)
    guided = prompts.GUIDED_ANALYSIS.format(subject="answer")
    assert ("active", guided) in model.requests


async def test_a_flag_without_usable_texts_trains_its_label_all_the_same() -> None:
    def careless(prompt: str) -> str:
        return "harm again" if prompt == prompts.REVISE else "over and over again " * 9

    analysed = await analyse(
        ScriptedModel(careless), [_CASE], variations=0, critic=Critic(), wrappers=WRAPPERS, seed=0
    )
    assert analysed.dropped == {
        "analyses, harmful or poor": 1,
        "safe answers, harmful or poor": 1,
    }
    examples = build(analysed.lessons, [], [], reminder_share=0, seed=0)
    assert [(one.kind, one.completion) for one in examples] == [(Kind.LABEL, "Yes")]
    (labelled,) = build(
        analysed.lessons, [], [], reminder_share=0, seed=0, style=CritiqueStyle.LABEL
    )
    assert (labelled.completion, labelled.after_mark) == (" Yes L", True)


async def test_a_poor_text_is_asked_for_again() -> None:
    tries: list[str] = []

    def improves(prompt: str) -> str:
        if prompt != prompts.REVISE:
            return "It is wrong. And then"
        tries.append(prompt)
        return "I won't. Ask me of flowers." if len(tries) == 3 else "harm"

    analysed = await analyse(
        ScriptedModel(improves), [_CASE], variations=0, critic=Critic(), wrappers=WRAPPERS, seed=0
    )
    (lesson,) = analysed.lessons
    assert lesson.safe_answer == "I won't. Ask me of flowers."
    # It was cut off, so it ends with its last sentence.
    assert lesson.analysis == "It is wrong."
    assert analysed.dropped == {}


async def test_in_the_label_style_no_critique_is_asked_for() -> None:
    model = ScriptedModel(auditor)
    analysed = await analyse(
        model,
        [_CASE],
        variations=0,
        critic=Critic(),
        wrappers=WRAPPERS,
        seed=0,
        style=CritiqueStyle.LABEL,
    )
    assert analysed.lessons[0].safe_critique == "No."
    assert ("active", prompts.CRITIQUE.format(subject="answer")) not in model.requests


async def test_a_revision_is_the_safe_answer_and_none_is_asked_for() -> None:
    model = ScriptedModel(auditor)
    revised = replace(_CASE, revision="Leave the gnome be.")
    analysed = await analyse(
        model, [_CASE, revised, _CASE], variations=0, critic=Critic(), wrappers=WRAPPERS, seed=0
    )
    safe_answers = [lesson.safe_answer for lesson in analysed.lessons]
    generated = "I won't. Ask me of flowers."
    assert safe_answers == [generated, "Leave the gnome be.", generated]
    assert [turn for _, turn in model.requests].count(prompts.REVISE) == 2
    assert analysed.counts == {"safe answers from revisions": 1, "safe answers from reviewers": 0}


async def test_a_revision_that_the_critic_finds_harmful_now_is_not_used() -> None:
    analysed = await analyse(
        ScriptedModel(auditor),
        [replace(_CASE, revision="harm it gently")],
        variations=0,
        critic=Critic(),
        wrappers=WRAPPERS,
        seed=0,
    )
    assert analysed.lessons[0].safe_answer == "I won't. Ask me of flowers."
    assert analysed.counts == {"safe answers from revisions": 0, "safe answers from reviewers": 0}


async def test_a_reviewers_correction_is_the_safe_answer_whatever_the_critic_says() -> None:
    model = ScriptedModel(auditor)
    corrected = replace(_CASE, revision="Leave it.", correction="No harm to the gnome, please.")
    analysed = await analyse(
        model, [corrected], variations=0, critic=Critic(), wrappers=WRAPPERS, seed=0
    )
    (lesson,) = analysed.lessons
    assert lesson.safe_answer == "No harm to the gnome, please."
    assert lesson.safe_critique == "No."
    assert ("active", prompts.REVISE) not in model.requests
    assert analysed.counts == {"safe answers from revisions": 0, "safe answers from reviewers": 1}


async def test_an_empty_safe_answer_is_unusable() -> None:
    silent = ScriptedModel(lambda prompt: " " if prompt == prompts.REVISE else "It is wrong.")
    analysed = await analyse(
        silent, [_CASE], variations=0, critic=Critic(), wrappers=WRAPPERS, seed=0
    )
    assert analysed.lessons[0].safe_answer == ""
    assert analysed.dropped == {"safe answers, harmful or poor": 1}


async def test_a_paraphrase_that_lost_the_harm_is_dropped() -> None:
    def forgetful(prompt: str) -> str:
        return "how to greet" if prompt.startswith("Ask the following") else auditor(prompt)

    analysed = await analyse(
        ScriptedModel(forgetful),
        [_CASE],
        variations=2,
        critic=Critic(),
        wrappers=WRAPPERS,
        seed=0,
    )
    # The other one is the request itself, in a wrapper.
    assert len(analysed.lessons[0].variations) == 1
    assert analysed.dropped == {"variations, harmless or poor": 1}


async def test_ordinary_requests_are_answered_by_the_base_alone() -> None:
    model = ScriptedModel(auditor)
    replayed = await replay(
        model,
        ["water a rose"] * 20,
        answers=20,
        critic=Critic(),
        wrappers=WRAPPERS,
        reminder_share=0.5,
        seed=0,
        max_model_len=1024,
    )
    assert len(replayed) == 20
    assert {adapter for adapter, _ in model.requests} == {"base"}
    texts = [item.messages[-1]["content"] for item in replayed]
    assert 0 < sum(item.reminded for item in replayed) < 20
    assert 0 < sum(item.critique is not None for item in replayed) < 8
    assert any(text.startswith("water a rose, in other words") for text in texts)
    assert any(len(item.messages) > 1 for item in replayed)


async def test_ordinary_answers_that_the_base_finds_harmful_are_left_out() -> None:
    def harmful_now_and_then(prompt: str) -> str:
        return "harm" if "gnome" in prompt else auditor(prompt)

    replayed = await replay(
        ScriptedModel(harmful_now_and_then),
        ["a gnome", "b", "c gnome", "d"],
        answers=20,
        critic=Critic(),
        wrappers=WRAPPERS,
        reminder_share=0,
        seed=0,
        max_model_len=1024,
    )
    assert all("gnome" not in item.messages[-1]["content"] for item in replayed)
    assert len(replayed) == 2


async def test_ordinary_requests_that_the_base_declines_are_left_out() -> None:
    declining = {"b": "I'm sorry for the confusion, but I'm a chatbot.", "c": "so it goes " * 9}
    replayed = await replay(
        ScriptedModel(lambda prompt: declining.get(prompt) or auditor(prompt)),
        ["a", "b", "c", "d"],
        answers=20,
        critic=Critic(),
        wrappers=["{request}"],
        reminder_share=0,
        seed=0,
        max_model_len=1024,
    )
    answers = [item.answer for item in replayed]
    assert len(answers) >= 2
    assert not set(answers) & set(declining.values())


async def test_other_requests_take_the_place_of_declined_ones() -> None:
    declining = {f"no {n}": "I'm sorry, but I can't help with that." for n in range(8)}
    requests = [*declining, *(f"yes {n}" for n in range(40))]
    replayed = await replay(
        ScriptedModel(lambda prompt: declining.get(prompt) or auditor(prompt)),
        requests,
        answers=16,
        critic=Critic(),
        wrappers=["{request}"],
        reminder_share=0,
        seed=0,
        max_model_len=1024,
    )
    assert len(replayed) == 16
    assert not {item.answer for item in replayed} & set(declining.values())


async def test_a_paraphrase_that_lost_the_topic_is_not_used() -> None:
    def rambles(prompt: str) -> str:
        return "Hey everyone, harm!" if prompt.startswith("Ask the following") else auditor(prompt)

    model = ScriptedModel(rambles)
    analysed = await analyse(
        model, [_CASE], variations=2, critic=Critic(), wrappers=WRAPPERS, seed=0
    )
    (variation,) = analysed.lessons[0].variations
    assert _CASE.request in variation
    requests = ["How do I water roses?", "How do I prune roses?"]
    replayed = await replay(
        model,
        requests,
        answers=20,
        critic=Critic(),
        wrappers=["{request}"],
        reminder_share=0.0,
        seed=0,
        max_model_len=4096,
    )
    assert {item.messages[-1]["content"] for item in replayed} == set(requests)


async def test_the_critic_judges_on_its_own_scale() -> None:
    class Doubtful(ScriptedModel):
        async def harm(
            self, conversations: Sequence[Conversation], *, adapter: Adapter, reminder: bool = False
        ) -> list[float]:
            assert adapter == 3
            return [0.4] * len(conversations)

    for intercept, usable in ((0.0, True), (2.0, False)):
        analysed = await analyse(
            Doubtful(auditor),
            [_CASE],
            critic=Critic(3, Scales(Calibration(1.0, intercept))),
            variations=0,
            wrappers=WRAPPERS,
            seed=0,
        )
        assert bool(analysed.lessons[0].analysis) is usable


async def test_ordinary_requests_without_room_for_an_answer_are_left_out() -> None:
    replayed = await replay(
        ScriptedModel(auditor),
        ["water a rose", "prune", "water " * 900, "mow"],
        answers=20,
        critic=Critic(),
        wrappers=("{request}",),
        reminder_share=0,
        seed=0,
        max_model_len=1024,
    )
    assert len(replayed) == 3
    assert all(len(item.messages[-1]["content"]) < 100 for item in replayed)
