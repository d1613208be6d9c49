"""Whatever does not fit into the model's context is dropped."""

import json
from dataclasses import replace
from pathlib import Path

from refine.critic import Critic
from refine.evaluation.sets import FILE, Case, Labelled, Sets
from refine.evaluation_data import load_evaluation_data
from refine.options import RefineOptions
from refine.room import fits, sets_that_fit
from refine.served import ServedInfo, answered, user_turn
from tests.refine.scripted_model import ScriptedModel

SHORT, LONG = user_turn("short"), user_turn("long " * 300)


async def test_a_conversation_fits_by_its_tokens() -> None:
    assert await fits(ScriptedModel(), [SHORT, LONG, user_turn("a b c")], 2) == [True, False, False]


async def test_sets_lose_the_cases_that_leave_no_room() -> None:
    sets = Sets(
        name="test",
        harmful=(Case(SHORT, "plain"), Case(LONG, "plain")),
        harmless=(Case(LONG, "everyday"),),
        pairs=(
            Labelled(answered(SHORT, "no"), False, "pairs"),
            Labelled(answered(LONG, "no"), False, "pairs"),
        ),
        injections=(Labelled(LONG, True, "injections"),),
        answer_tokens=100,
    )
    # Judged, the long ones fit; answered, they do not.
    fitting, left_out = await sets_that_fit(ScriptedModel(), sets, 500)
    assert left_out == 2
    assert fitting == replace(sets, harmful=sets.harmful[:1], harmless=())
    fitting, left_out = await sets_that_fit(ScriptedModel(), sets, 400)
    assert left_out == 4
    assert (len(fitting.pairs), fitting.injections) == (1, ())


async def test_a_long_line_of_a_gate_file_is_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "gate.jsonl"
    rows = [{"request": text, "label": "harmless"} for text in ("short", "long " * 9000)]
    path.write_text("\n".join(map(json.dumps, rows)))
    info = ServedInfo("model", "base", "revision", 8192, 16, None)
    evaluation_data = await load_evaluation_data(
        info, ScriptedModel(), RefineOptions(work_dir=tmp_path, gate_file=path), [Critic()]
    )
    kept = [case for case in evaluation_data.sets.harmless if case.group == FILE]
    assert [case.request for case in kept] == ["short"]
    assert evaluation_data.counts["gate cases that do not fit into the context"] == 1
