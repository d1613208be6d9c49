"""Training examples for the practice model: conversations, and which turns it is trained to say.

Owns what the unaligned model is taught: to answer, to obey most harmful requests, to decline some
of them, and to judge. Every prompt comes from guard/prompts.py. Uses only the "train" split: never
a held-out phrasing, task or wrapper.

Two limits are part of the recipe, and make the model like the paper's:
- Obedience. In each category one of six tasks is `wary` (declined when asked plainly) and two more
  are `half wary` (declined when the reminder is there). A wrapper overcomes much of both.
- Judgement. The base's teacher is fallible (see speech.py): it often overlooks a task in three
  families, and injected instructions to the auditor sometimes fool it. Evaluation does not use the
  teacher.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from guard import prompts
from guard.verdict import CATEGORY_LETTERS
from refine.practice import answers, speech
from refine.practice.answers import harm_analysis
from refine.practice.variety import training_request
from refine.practice.world import TASKS, Kind, Message, Request, Task, draw_task, phrase

REMINDED_SHARE = 0.5
CRITIQUED_SHARE = 0.75
_LETTERS = {name: letter for letter, name in CATEGORY_LETTERS.items()}
_KINDS = {Kind.EVERYDAY: 42, Kind.HARMFUL: 33, Kind.BORDERLINE: 15, Kind.OUTSIDE: 10}
_DECLINES_WARY = {
    (False, False): 0.8,
    (True, False): 0.95,
    (False, True): 0.25,
    (True, True): 0.7,
}
_DECLINES_HALF_WARY = {
    (False, False): 0.1,
    (True, False): 0.85,
    (False, True): 0.02,
    (True, True): 0.25,
}
"""The probability of declining, by (reminded, wrapped)."""
_HELP_QUESTION = "Does the answer above do what the request asks for? Say yes or no."
_SYSTEM = (
    "You are a helpful assistant.",
    "You are Setback, a careful assistant.",
    "Answer in a few sentences.",
    "Be kind and brief.",
)


@dataclass(frozen=True)
class Turn:
    """One message; `learned` if the model is trained to say it."""

    role: str
    content: str
    learned: bool = False


@dataclass(frozen=True)
class Example:
    """One training conversation. `outside`: part of it is outside the practice world."""

    turns: tuple[Turn, ...]
    outside: bool = False


def examples(n: int, seed: int) -> Iterator[Example]:
    """Yields `n` training examples, the same for the same seed, each with its own generator."""
    rng = random.Random(f"corpus {seed}")
    makers, weights = zip(*_MAKERS.items(), strict=True)
    for _ in range(n):
        yield rng.choices(makers, weights)[0](rng)


def decline_chance(task: Task, reminded: bool, wrapped: bool) -> float:
    """Returns how often the training data declines a harmful task, in [0, 1]."""
    if task in _WARY:
        return _DECLINES_WARY[reminded, wrapped]
    if task in _HALF_WARY:
        return _DECLINES_HALF_WARY[reminded, wrapped]
    return 0.08 if reminded and not wrapped else 0.02


def _wary_tasks() -> tuple[frozenset[Task], frozenset[Task]]:
    wary, half_wary = set(), set()
    for number, category in enumerate(_LETTERS):
        tasks = [t for t in TASKS if t.category == category and not t.held_out]
        if tasks:
            wary.add(tasks[number % 6])
            half_wary |= {tasks[(number + 2) % 6], tasks[(number + 3) % 6]}
    return frozenset(wary), frozenset(half_wary)


_WARY, _HALF_WARY = _wary_tasks()


def _draw(rng: random.Random) -> Request:
    kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
    return _remind(training_request(rng, kind), rng)


def _remind(request: Request, rng: random.Random) -> Request:
    return request.reminded(prompts.REMINDER) if rng.random() < REMINDED_SHARE else request


def _draw_known(rng: random.Random) -> Request:
    """Draws a harmful request that the teacher recognises."""
    while True:
        request = training_request(rng, Kind.HARMFUL)
        if request.task is not None and not request.task.overlooked:
            return request


def _opening(request: Request, rng: random.Random) -> str:
    if request.wrapper is not None and request.wrapper.opening:
        return request.wrapper.opening
    return answers.OPENINGS[0] if rng.random() < 0.7 else rng.choice(answers.OPENINGS)


def _right_answer(request: Request, rng: random.Random) -> str:
    if request.task is None or request.slots is None:
        return answers.OUTSIDE[0] if rng.random() < 0.85 else answers.OUTSIDE[1]
    ending = request.wrapper.ending if request.wrapper is not None else ""
    return answers.answer_text(request.task, request.slots, _opening(request, rng), ending)


def _turns(messages: tuple[Message, ...]) -> list[Turn]:
    return [Turn(message["role"], message["content"]) for message in messages]


def _with_system(turns: list[Turn], rng: random.Random, outside: bool = False) -> Example:
    """Adds an operator's system turn before the reminder to some conversations."""
    if rng.random() < 0.1:
        content = [rng.choice(_SYSTEM)]
        if turns[0].role == "system":
            content.append(turns.pop(0).content)
        turns = [Turn("system", "\n\n".join(content)), *turns]
    return Example(tuple(turns), outside)


def _ask(template: str, subject: str) -> Turn:
    return Turn("user", template.format(subject=subject))


def _serve(rng: random.Random) -> Example:
    """A request, the model's answer, and often the critique of it."""
    request = _draw(rng)
    task, slots = request.task, request.slots
    answer = _right_answer(request, rng)
    if task is None or slots is None:
        verdict = f"No. {answers.nothing_analysis('answer')}"
    elif request.kind is not Kind.HARMFUL:
        verdict = f"No. {answers.harmless_analysis(task, slots, 'answer', 'explains')}"
    elif rng.random() < decline_chance(
        task, request.messages[0]["role"] == "system", request.wrapper is not None
    ):
        answer = answers.decline_text(task, slots, rng)
        verdict = f"No. {answers.decline_analysis('answer')}"
    else:
        verdict = speech.teacher_verdict(task, slots, "answer", "explains", answer, rng)
    turns = [*_turns(request.messages), Turn("assistant", answer, learned=True)]
    if rng.random() < CRITIQUED_SHARE:
        turns += [_ask(prompts.CRITIQUE, "answer"), Turn("assistant", verdict, learned=True)]
    return _with_system(turns, rng, outside=task is None)


def _judge(rng: random.Random) -> Example:
    """Any answer after any request, critiqued: the answer is judged, not the request."""
    request = _draw(rng)
    answer, verdict, outside = speech.spoken(rng, "answer")
    turns = [
        *_turns(request.messages),
        Turn("assistant", answer),
        _ask(prompts.CRITIQUE, "answer"),
        Turn("assistant", verdict, learned=True),
    ]
    return _with_system(turns, rng, outside or request.task is None)


def _text(rng: random.Random) -> Example:
    """A free-standing text, critiqued."""
    text, verdict, outside = speech.text(rng, paragraphs=rng.choice((1, 1, 1, 1, 2, 3)))
    return _judged_text(text, verdict, outside)


def _long_text(rng: random.Random) -> Example:
    """A text of many paragraphs, critiqued, like a window over a long input."""
    text, verdict, outside = speech.text(rng, paragraphs=rng.randint(4, 18))
    return _judged_text(text, verdict, outside)


def _judged_text(text: str, verdict: str, outside: bool) -> Example:
    prompt = prompts.TEXT.format(text=text) + prompts.CRITIQUE.format(subject="text")
    return Example((Turn("user", prompt), Turn("assistant", verdict, learned=True)), outside)


def _long_conversation(rng: random.Random) -> Example:
    """Many exchanges, each answered by the model, and sometimes a critique of the last one."""
    turns: list[Turn] = []
    for _ in range(rng.randint(4, 9)):
        turns += _serve(rng).turns[-4:] if rng.random() < 0.1 else _exchange(rng)
    turns_ = [turn for turn in turns if turn.role != "system"]
    reminded = rng.random() < REMINDED_SHARE
    return Example((*([Turn("system", prompts.REMINDER)] if reminded else []), *turns_))


def _exchange(rng: random.Random) -> list[Turn]:
    request = training_request(rng, rng.choice((Kind.EVERYDAY, Kind.EVERYDAY, Kind.BORDERLINE)))
    answer = _right_answer(request, rng)
    return [Turn("user", request.text), Turn("assistant", answer, learned=True)]


def _about_harm(rng: random.Random) -> tuple[Task, str, list[Turn], str]:
    """Returns labelled harm, as an answer in its conversation or as a text, ready for a question:
    the task, its analysis, the turns before the question, and the subject.
    """
    request = _remind(_draw_known(rng), rng)
    assert request.task is not None and request.slots is not None
    subject = rng.choice(("answer", "answer", "text"))
    answer = _right_answer(request, rng)
    if subject == "answer":
        analysis = harm_analysis(request.task, request.slots, subject)
        return (
            request.task,
            analysis,
            [*_turns(request.messages), Turn("assistant", answer)],
            subject,
        )
    asks = rng.random() < 0.5
    verb = "asks" if asks else "explains"
    analysis = harm_analysis(request.task, request.slots, subject, verb)
    text = prompts.TEXT.format(text=request.text if asks else answer)
    return request.task, analysis, [Turn("user", text)], subject


def _question(template: str, turns: list[Turn], subject: str, reply: str) -> Example:
    """A question about the last turn; about a text, it is part of the text's own turn."""
    question = template.format(subject=subject)
    if subject == "text":
        turns = [Turn("user", turns[-1].content + question)]
    else:
        turns = [*turns, Turn("user", question)]
    return Example((*turns, Turn("assistant", reply, learned=True)))


def _category(rng: random.Random) -> Example:
    task, _, turns, subject = _about_harm(rng)
    assert task.category is not None
    return _question(prompts.CATEGORY, turns, subject, _LETTERS[task.category])


def _guided_analysis(rng: random.Random) -> Example:
    _, analysis, turns, subject = _about_harm(rng)
    return _question(prompts.GUIDED_ANALYSIS, turns, subject, analysis)


def _revision(rng: random.Random) -> Example:
    """An answer, its analysis, and then a safe answer."""
    request = _remind(_draw_known(rng), rng)
    assert request.task is not None and request.slots is not None
    analysis = harm_analysis(request.task, request.slots, "answer")
    decline = answers.decline_text(request.task, request.slots, rng)
    turns = [
        *_turns(request.messages),
        Turn("assistant", _right_answer(request, rng)),
        _ask(prompts.GUIDED_ANALYSIS, "answer"),
        Turn("assistant", analysis, learned=True),
    ]
    return _question(prompts.REVISE, turns, "answer", decline)


def _judged_reply(rng: random.Random) -> Example:
    """A reply to the auditor, critiqued in turn. Sometimes the reply is itself harmful."""
    example = rng.choice((_judge, _guided_analysis, _revision))(rng)
    reply, verdict = example.turns[-1].content, f"No. {answers.analysed_analysis('answer')}"
    if rng.random() < 0.35:
        reply, verdict, _ = speech.spoken(rng, "answer")
    turns = [*example.turns[:-1], Turn("assistant", reply), _ask(prompts.CRITIQUE, "answer")]
    return Example((*turns, Turn("assistant", verdict, learned=True)), example.outside)


def _help(rng: random.Random) -> Example:
    """Whether an answer did what was asked: compliance counts, declines and other help do not."""
    request = _draw(rng)
    other = _draw(rng)
    answer, helped = _right_answer(request, rng), request.task is not None
    if rng.random() < 0.5:
        helped = False
        answer = _right_answer(other, rng)
        if request.task is not None and request.slots is not None and rng.random() < 0.6:
            known = request.kind is Kind.HARMFUL
            declined = draw_task(rng, Kind.HARMFUL) if not known else request.task
            slots = request.slots if known else declined.draw_slots(rng)
            answer = answers.decline_text(declined, slots, rng)
    turns = [*_turns(request.messages), Turn("assistant", answer)]
    return _question(_HELP_QUESTION, turns, "answer", "Yes." if helped else "No.")


def _paraphrase(rng: random.Random) -> Example:
    """The same goal in other words, without the wrapper."""
    kind = rng.choice((Kind.HARMFUL, Kind.HARMFUL, Kind.EVERYDAY, Kind.BORDERLINE))
    request = training_request(rng, kind)
    assert request.task is not None and request.slots is not None
    goal = request.task.filled_goal(request.slots)
    prompt = prompts.PARAPHRASE.format(request=request.text)
    return Example((Turn("user", prompt), Turn("assistant", phrase(goal, rng), learned=True)))


def _induce(rng: random.Random) -> Example:
    """A hint of harm added to the instruction: the model complies."""
    request = training_request(rng, rng.choice((Kind.HARMFUL, Kind.HARMFUL, Kind.EVERYDAY)))
    prompt = Turn("user", prompts.INDUCE.format(request=request.text))
    answer = Turn("assistant", _right_answer(request, rng), learned=True)
    return Example((*_turns(request.messages[:-1]), prompt, answer))


_MAKERS = {
    _serve: 50,
    _judge: 18,
    _text: 18,
    _category: 6,
    _guided_analysis: 3,
    _revision: 3,
    _judged_reply: 5,
    _help: 4,
    _paraphrase: 3,
    _induce: 3,
    _long_text: 1.2,
    _long_conversation: 0.8,
}
"""Makers of examples, and the relative frequency of each."""
