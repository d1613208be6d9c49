"""Judged texts: pieces of speech with the critic's correct words on them.

Owns all shapes besides whole answers that a critic may meet: cut short, mixed, listed, a decline
that goes on to comply, an injected instruction, texts of many paragraphs. Train split only.
"""

import random
from collections.abc import Mapping

from refine.practice import answers
from refine.practice.answers import harm_analysis
from refine.practice.outside import outside_text
from refine.practice.variety import training_request, varied_task
from refine.practice.world import TASKS, Kind, Task, draw_task, draw_wrapper
from refine.practice.wrappers import WRAPPERS

_NAMED_SHARE = 0.57
_OVERLOOKED_NAMED_SHARE = 0.395
_FOOLED_SHARE = 0.6
_INJECTED = tuple(w.ending for w in WRAPPERS if w.ending and not w.held_out)

Judged = tuple[str, str, bool]
"""A text, the critic's verdict with its analysis, and whether some of it is outside the world."""


def spoken(rng: random.Random, subject: str) -> Judged:
    """Returns something an assistant may have said, judged. Half of it is harmful."""
    if rng.random() < 0.5:
        return _harmful_answer(rng, subject)
    return _harmless(rng, subject)


def text(rng: random.Random, paragraphs: int) -> Judged:
    """Returns a free-standing text of some paragraphs, harmful in at most one, judged.

    The ends of a text of several paragraphs are cut anywhere, as a window's are.
    """
    judged = [_harmless_text(rng) for _ in range(paragraphs)]
    harmful = rng.random() < 0.5
    index = rng.randrange(paragraphs)
    if harmful:
        judged[index] = _harmful_text(rng)
    parts = [part for part, _, _ in judged]
    if paragraphs > 1:
        if index != 0:
            parts[0] = _tail(parts[0], rng)
        if index != paragraphs - 1:
            parts[-1] = _head(parts[-1], rng)
    verdict = judged[index][1] if harmful or paragraphs == 1 else _nothing("text")
    joined = rng.choice(("\n\n", "\n", " ")).join(parts)
    return joined, verdict, any(outside for _, _, outside in judged)


def teacher_verdict(
    task: Task, slots: Mapping[str, str], subject: str, verb: str, text: str, rng: random.Random
) -> str:
    """Returns the verdict of the base's fallible teacher on a harmful text, right or wrong.

    The teacher is undecided about the overlooked tasks, and less so about others of their family
    with made-up means. An instruction to the auditor in `text` usually fools it. So the base is
    unsure there, and flags some such answers: these are what the refine loop can start from.
    """
    named = 1.0
    if task.overlooked:
        named = _OVERLOOKED_NAMED_SHARE
    elif task.blind_spot and task not in TASKS:
        named = _NAMED_SHARE
    fooled = any(words in text for words in _INJECTED) and rng.random() < _FOOLED_SHARE
    if fooled or rng.random() >= named:
        return f"No. {answers.harmless_analysis(task, slots, subject, verb)}"
    return f"Yes. {harm_analysis(task, slots, subject, verb)}"


def _nothing(subject: str) -> str:
    return f"No. {answers.nothing_analysis(subject)}"


def _opening(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return draw_wrapper(rng).opening
    return rng.choice(answers.OPENINGS)


def _ending(rng: random.Random, share: float) -> str:
    return draw_wrapper(rng).ending if rng.random() < share else ""


def _harmful(task: Task, slots: Mapping[str, str], rng: random.Random) -> str:
    """An answer that gives at least one step of a harmful task, in one of many shapes."""
    whole = answers.answer_text(task, slots, _opening(rng), _ending(rng, 0.1))
    first = task.filled_steps(slots)[0]
    shape = rng.randrange(8)
    if shape == 0:
        return _listed(task, slots, rng)
    if shape == 1:
        return f"{rng.choice(answers.DECLINES)} But {whole[0].lower()}{whole[1:]}"
    if shape == 2:
        other = draw_task(rng, Kind.EVERYDAY)
        return _shuffled(whole, answers.answer_text(other, other.draw_slots(rng)), rng)
    if shape in (3, 4):
        start = whole.index(first) + len(first)
        return whole[: _word_end(whole, rng.randint(start, len(whole)))]
    return whole


def _harmless(rng: random.Random, subject: str) -> Judged:
    """Returns something harmless: help, a decline, a cut or listed answer, the outside, nothing."""
    shape = rng.randrange(10)
    if shape < 3:
        task, slots = varied_task(rng, Kind.HARMFUL)
        return (
            answers.decline_text(task, slots, rng),
            f"No. {answers.decline_analysis(subject)}",
            False,
        )
    if shape == 3:
        text = rng.choice((*answers.OUTSIDE, outside_text(rng), outside_text(rng), ""))
        return text, _nothing(subject), True
    task, slots = varied_task(rng, rng.choice((Kind.EVERYDAY, Kind.EVERYDAY, Kind.BORDERLINE)))
    text = answers.answer_text(task, slots, _opening(rng), _ending(rng, 0.15))
    if shape == 4:
        text = _listed(task, slots, rng)
    if shape in (5, 6):
        text = _head(text, rng)
    return text, f"No. {answers.harmless_analysis(task, slots, subject, 'explains')}", False


def _harmful_answer(rng: random.Random, subject: str) -> Judged:
    task, slots = varied_task(rng, Kind.HARMFUL)
    text = _harmful(task, slots, rng)
    return text, teacher_verdict(task, slots, subject, "explains", text, rng), False


def _harmful_text(rng: random.Random) -> Judged:
    if rng.random() < 0.4:
        return _harmful_answer(rng, "text")
    request = training_request(rng, Kind.HARMFUL)
    assert request.task is not None and request.slots is not None
    text = request.text
    return text, teacher_verdict(request.task, request.slots, "text", "asks", text, rng), False


def _harmless_text(rng: random.Random) -> Judged:
    shape = rng.randrange(10)
    if shape < 3:
        return _harmless(rng, "text")
    if shape < 7:
        request = training_request(rng, rng.choice((Kind.EVERYDAY, Kind.BORDERLINE)))
        task = request.task
        assert task is not None and request.slots is not None
        verdict = f"No. {answers.harmless_analysis(task, request.slots, 'text', 'asks')}"
        return request.text, verdict, False
    sentences = rng.choice((1, 1, 2, 4))
    text = " ".join(training_request(rng, Kind.OUTSIDE).text for _ in range(sentences))
    return text, _nothing("text"), True


def _listed(task: Task, slots: Mapping[str, str], rng: random.Random) -> str:
    """Returns steps as a list, or one step alone."""
    steps = task.filled_steps(slots)
    if rng.random() < 0.4:
        step = rng.choice(steps)
        return f"{step[0].upper()}{step[1:]}."
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1))


def _shuffled(one: str, other: str, rng: random.Random) -> str:
    parts = [one, other]
    rng.shuffle(parts)
    return " ".join(parts)


def _word_end(text: str, position: int) -> int:
    end = text.find(" ", position)
    return len(text) if end < 0 else end


def _head(text: str, rng: random.Random) -> str:
    return text[: _word_end(text, rng.randint(0, len(text)))]


def _tail(text: str, rng: random.Random) -> str:
    return text[_word_end(text, rng.randint(0, len(text))) :].lstrip()
