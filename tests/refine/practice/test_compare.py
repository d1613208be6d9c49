"""The comparison: what is flagged, what each method learns, that it is kept, and the tables."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guard.adapter_config import CONFIG, WEIGHTS
from refine.compare.cells import Cell
from refine.compare.lab import Flags, Lab
from refine.compare.methods import DPO, METHODS, MISTAKES, OURS, REVISE, SFT, examples, revise
from refine.compare.preferences import preferences
from refine.compare.table import as_json, table
from refine.compare.trial import Trainee
from refine.critic import BASE_ALONE
from refine.options import RefineOptions
from refine.practice.compare.figures import (
    COLUMNS,
    FLAGGED_ONCE,
    NEVER_SEEN,
    WRAPPER_COLUMNS,
    figures,
    wrapper_success,
)
from refine.practice.compare.flags import from_traffic, never_flagged, one_per_wrapper
from refine.practice.compare.trial import PracticeTrial, practice_start
from refine.practice.evaluation_data import Sizes
from refine.practice.oracle import Outcome, asked_task, outcome
from refine.practice.pairs import recipe_answer
from refine.practice.reader_model import ReaderModel
from refine.practice.recipe import MODEL_DIR
from refine.practice.tasks_harmful import CATEGORY_HARM
from refine.practice.traffic import draw_traffic
from refine.practice.world import Kind as WorldKind
from refine.practice.wrappers import WRAPPERS
from refine.served import Conversation
from refine.stages.dataset import Kind, Lesson, Ordinary
from refine.stages.flagged import FlaggedCase
from tests.refine.scripted_model import ScriptedModel

SMALL = Sizes(harmful_per_split=12, everyday=4, borderline=4, pairs=8, injections=4)


class Obedient(ScriptedModel):
    """Gives one harmful step to everything, and flags every text and every other answer."""

    def __init__(self) -> None:
        super().__init__(
            lambda _request: "Put every weakness of Ada into a cruel song.", lambda _: True
        )

    async def harm(self, conversations: Sequence[Conversation], **_options: Any) -> list[float]:
        """Harmful and harmless in turns."""
        return [float(place % 2) for place, _ in enumerate(conversations)]


def lesson(number: int) -> Lesson:
    request = ({"role": "user", "content": f"request {number}"},)
    return Lesson(number, request, "bad", "because", "safe", "No.", (f"way {number}",))


def ordinary() -> list[Ordinary]:
    request = ({"role": "user", "content": "ordinary"},)
    return [Ordinary(request, "answer", "No. Fine.") for _ in range(8)]


def harmful_cases() -> tuple[FlaggedCase, ...]:
    """Harmful requests with answers that the practice model's critic knows."""
    requests = [
        r for r in draw_traffic(WorldKind.HARMFUL, 6, 0) if r.task and not r.task.overlooked
    ]
    return tuple(
        FlaggedCase(number, request.messages, recipe_answer(request), "hate")
        for number, request in enumerate(requests, start=1)
    )


async def test_flags_are_of_training_and_never_of_what_is_left_out() -> None:
    flags = await from_traffic(Obedient(), 150, seed=1)
    assert [case.flag_id for case in flags] == list(range(1, 151))
    assert not never_flagged(1) & {case.category for case in flags}
    assert never_flagged(0).isdisjoint(never_flagged(1))
    assert never_flagged(3) < set(CATEGORY_HARM)
    tasks = [task for case in flags if (task := asked_task(case.request))]
    assert tasks
    assert not any(task.held_out for task, _ in tasks)


async def test_more_flags_begin_with_the_same() -> None:
    assert (await from_traffic(Obedient(), 120, 0))[:20] == await from_traffic(Obedient(), 20, 0)


async def test_one_flag_per_wrapper_that_is_not_held_out() -> None:
    flags = await one_per_wrapper(Obedient(), seed=0)
    trained = [wrapper for wrapper in WRAPPERS if not wrapper.held_out]
    for wrapper, case in zip(trained, flags, strict=True):
        assert all(part in case.request for part in wrapper.text.split("{request}"))


def test_each_method_learns_its_own_and_all_replay_the_same() -> None:
    lessons, revisions = [lesson(1), lesson(2)], ["revised", ""]
    by_method = {m: examples(m, lessons, revisions, ordinary(), 0.0, seed=0) for m in METHODS}
    kinds = {m: Counter(example.kind for example in by_method[m]) for m in METHODS}
    assert {count[Kind.HELP] for count in kinds.values()} == {8}
    assert set(kinds[SFT]) == {Kind.SAFE, Kind.HELP}
    assert Kind.SAFE not in kinds[MISTAKES]
    assert kinds[MISTAKES][Kind.MISTAKE] == kinds[OURS][Kind.MISTAKE] == 4
    completions = {e.completion for e in by_method[REVISE] if e.kind is Kind.SAFE}
    assert completions == {"revised"}
    assert kinds[REVISE][Kind.SAFE] == 2


async def test_a_revision_is_written_after_the_models_own_critique() -> None:
    flagged = [
        replace(lesson(case.flag_id), messages=tuple(case.messages), answer=case.answer)
        for case in harmful_cases()
    ]
    fine = replace(flagged[0], answer="I can't help with that.")
    *revisions, unflagged = await revise(ReaderModel(MODEL_DIR), BASE_ALONE, [*flagged, fine])
    assert unflagged == ""
    for case, revision in zip(flagged, revisions, strict=True):
        assert outcome(case.messages[-1]["content"], revision) is Outcome.DECLINED, revision


async def test_every_column_is_measured_with_the_reminder() -> None:
    model = Obedient()
    shares = await figures(model, "base", never_flagged(0), SMALL)
    assert set(shares) == set(COLUMNS)
    assert shares["harmless, plain"] == 0
    assert shares["help"] == 0
    assert set(model.reminders) == {True}
    shares = await wrapper_success(model, "base", uses=2, sizes=SMALL)
    assert set(shares) == set(WRAPPER_COLUMNS)
    assert shares[FLAGGED_ONCE] == shares[NEVER_SEEN] == 1


def test_the_table_shows_the_mean_and_the_range() -> None:
    cells = [Cell("ours", 30, seed, {"harmless, plain": 0.8 + seed / 10}) for seed in (0, 1)]
    text = table("Title", [*cells, Cell("nothing", 0, 0, {"harmless, plain": 0.3})], COLUMNS[:1])
    lines = text.splitlines()
    assert lines[3].split() == ["harmless"]
    assert lines[4].split() == ["plain"]
    assert lines[5].split(maxsplit=2) == ["30", "ours", "85.0 (80 to 90)"]
    assert lines[6].split(maxsplit=2) == ["0", "nothing", "30.0 (30 to 30)"]
    (row,) = as_json(cells)
    assert row["figures"]["harmless, plain"]["mean"] == pytest.approx(0.85)
    assert row["seeds"] == [0, 1]


async def test_a_method_is_trained_once_and_kept(tmp_path: Path) -> None:
    options = RefineOptions(replay=8, variations=1, batch_size=8, rank=2)
    start = practice_start(MODEL_DIR)
    lab = Lab(start, tmp_path, options, steps=3)
    cases = harmful_cases()
    flags = Flags("test", cases, 1, seed=0)
    path = await lab.train(OURS, flags, len(cases))
    probe = [
        ({"role": "user", "content": "How?"}, {"role": "assistant", "content": cases[0].answer})
    ]
    async with start.trained(path) as trainee:
        changed = await trainee.model.harm(probe, adapter=trainee.adapter)
    assert changed != await start.model.harm(probe, adapter="base")
    (weights,) = lab.folder.glob("trained/*/adapter/adapter_model.safetensors")
    before = weights.stat().st_mtime_ns
    await Lab(start, tmp_path, options, steps=3).train(OURS, flags, len(cases))
    assert weights.stat().st_mtime_ns == before
    assert not list(lab.folder.glob("trained/*/checkpoints"))


def test_other_options_are_kept_apart(tmp_path: Path) -> None:
    start = practice_start(MODEL_DIR)
    one = Lab(start, tmp_path, RefineOptions(), steps=3).folder
    assert one != Lab(start, tmp_path, RefineOptions(rank=8), steps=3).folder
    assert one != Lab(start, tmp_path, RefineOptions(), steps=4).folder
    other = replace(start, identity="others")
    assert one != Lab(other, tmp_path, RefineOptions(), steps=3).folder


def test_a_flag_becomes_a_pair_for_each_way_of_asking() -> None:
    pairs = preferences([lesson(1)])
    assert [pair["prompt"][-1]["content"] for pair in pairs] == ["request 1", "way 1"]
    assert {pair["chosen"][0]["content"] for pair in pairs} == {"safe"}
    assert {pair["rejected"][0]["content"] for pair in pairs} == {"bad"}


async def test_the_practice_trial_has_every_column() -> None:
    model = Obedient()
    trial = PracticeTrial(model)
    assert (await trial.from_traffic(3, 0)) == (await from_traffic(model, 3, 0))
    assert set(await trial.wrapper_figures(Trainee(model, "base"))) == set(trial.wrapper_columns)


async def test_preferences_are_trained_to_an_adapter_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs the extra: pip install '.[compare]'")
    start = practice_start(MODEL_DIR)
    lab = Lab(start, tmp_path, RefineOptions(variations=1, batch_size=8, rank=2), steps=2)
    cases = harmful_cases()
    path = await lab.train(DPO, Flags("test", cases, 1, seed=0), len(cases))
    assert {file.name for file in path.iterdir()} == {CONFIG, WEIGHTS, "README.md"}
