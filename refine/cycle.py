"""One refine cycle, from flags to the next adapter, as one visible sequence of stages. Owns their
order; how a run is kept, resumed and ended is run.py's, and each stage's work is in the file of its
name.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from guard import prompts
from guard.adapter_files import adapter_path
from guard.store.flags import StoredFlag
from guard.store.runs import StoredRun
from refine.critic import Critic
from refine.files import made_once
from refine.run import Run, RunContext, begin, run_folder
from refine.served import answered
from refine.stages.analyse import TOKENS_ABOUT_A_CASE, Analysed, analyse
from refine.stages.collect import Collection, case_of, collect
from refine.stages.dataset import (
    DatasetFile,
    Dismissed,
    Ordinary,
    build,
    earlier_examples,
    write_dataset,
)
from refine.stages.prove import Proof, check_sets, prove
from refine.stages.replay import replay
from refine.world import Ground

_MOST_FLAGS_READ = 10_000
_EPOCHS = 3


async def run_cycle(context: RunContext, ground: Ground) -> StoredRun:
    """Finishes the run that a killed job left, or does a new one; returns its record.

    Raises ServerUnavailable, StoreUnavailable or TrainingFailed: the run then stays unfinished and
    the next call goes on with it. Raises DataInvalid, before it begins, when the gate's sets are
    too small to decide, or its truth cannot tell.
    """
    check_sets(ground, context.options.gate_margin)
    run = await begin(context, "flags")
    return await run.conduct(_up_to_the_proof(run, ground))


async def _up_to_the_proof(run: Run, ground: Ground) -> Proof | StoredRun:
    collection = await run.stage("collect", Collection, lambda: _collect(run))
    if len(collection.learn) < run.context.options.min_flags:
        return await _too_few(run, collection)
    analysed = await run.stage("analyse", Analysed, lambda: _analyse(run, ground, collection))
    dataset = await run.stage(
        "dataset", DatasetFile, lambda: _dataset(run, ground, collection, analysed)
    )
    trained = await run.stage(
        "train", Path, lambda: run.train(dataset, start=_start(run), epochs=_EPOCHS)
    )
    return await run.stage("gate", Proof, lambda: _gate(run, ground, collection, trained))


async def _collect(run: Run) -> Collection:
    stored = run.context.stores.flags
    flags = await stored.unlearned(_MOST_FLAGS_READ)
    unusable = await _unusable(run, flags)
    collection = collect(flags, await stored.held_out(), run.context.options, unusable)
    await run.context.stores.runs.set_flags(run.record.id, collection.uses)
    await run.count("collect", collection.counts)
    return collection


async def _unusable(run: Run, flags: Sequence[StoredFlag]) -> dict[int, str]:
    """Ids of the flags that the model cannot be asked about, and why: one such flag would fail the
    whole stage."""
    cases = [case for case in map(case_of, flags) if case is not None]
    lengths = await run.context.model.lengths(
        [answered(case.messages, case.answer) for case in cases]
    )
    room = run.info.max_model_len - TOKENS_ABOUT_A_CASE
    found = {}
    for case, length in zip(cases, lengths, strict=True):
        if length is None:
            found[case.flag_id] = "refused by the chat template"
        elif length > room:
            found[case.flag_id] = f"longer than {room} tokens, which the context has room for"
    return found


async def _analyse(run: Run, ground: Ground, collection: Collection) -> Analysed:
    options = run.context.options
    analysed = await analyse(
        run.context.model,
        collection.learn,
        critic=ground.critic,
        variations=options.variations,
        wrappers=ground.wrappers,
        seed=options.seed,
    )
    await run.count("analyse", analysed.counts)
    return analysed


async def _dataset(
    run: Run, ground: Ground, collection: Collection, analysed: Analysed
) -> DatasetFile:
    options, stores = run.context.options, run.context.stores
    share = options.reminder_share if run.info.reminder else 0.0
    ordinary = await _ordinary(run, ground, share)
    examples = build(
        analysed.lessons,
        ordinary,
        [Dismissed(case.flag_id, case.messages, case.answer) for case in collection.fine],
        reminder_share=share,
        seed=options.seed,
        style=run.info.learned_style,
    )
    most = options.rehearsal if options.start == "active" else None
    reviews = await stores.flags.reviews()
    # What this run takes anew stands in place of what was taught of it before.
    kept = {flag: review for flag, review in reviews.items() if flag not in collection.uses}
    earlier = earlier_examples(await _ancestors(run), kept, most, options.seed)
    about = {"run": run.record.id, "parent": run.record.parent, "seed": options.seed}
    dataset = write_dataset(run.folder / "dataset", [*examples, *earlier], about)
    return await run.note_dataset(dataset)


async def _ordinary(run: Run, ground: Ground, reminder_share: float) -> list[Ordinary]:
    """The base's ordinary answers, which are the same from run to run: they are asked for once."""
    options = run.context.options
    requests = ground.ordinary(options.replay, options.seed)
    about = [
        *(run.info.model_revision, prompts.VERSION, run.info.max_model_len, ground.critic.name),
        *(requests, list(ground.wrappers), reminder_share, options.seed),
    ]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    return await made_once(
        options.work_dir / "replay" / f"{key}.json",
        list[Ordinary],
        lambda: replay(
            run.context.model,
            requests,
            critic=ground.critic,
            wrappers=ground.wrappers,
            reminder_share=reminder_share,
            seed=options.seed,
            max_model_len=run.info.max_model_len,
        ),
    )


async def _ancestors(run: Run) -> list[Path]:
    """The datasets that the active adapter learned from, newest first."""
    if run.record.parent is None:
        return []
    lineage = await run.context.stores.runs.learned_from(run.record.parent)
    work_dir = run.context.options.work_dir
    return [run_folder(work_dir, number) / "dataset" for number in lineage.runs]


def _start(run: Run) -> Path | None:
    """The adapter to train on from, or None for a new one."""
    parent = run.record.parent
    if parent is None or run.context.options.start == "fresh":
        return None
    return adapter_path(run.context.adapters_dir, parent)


async def _gate(run: Run, ground: Ground, collection: Collection, trained: Path) -> Proof:
    context = run.context
    await run.count("gate", ground.counts)
    await run.publish(trained, run.info.learned_style)
    candidate = await run.calibrate(ground.sets.pairs)
    return await prove(
        context.model,
        ground,
        run.info,
        candidate=candidate,
        active=await _in_force(run),
        held_out=collection.held_out,
        margin=context.options.gate_margin,
        cache=context.options.work_dir / "measures",
    )


async def _in_force(run: Run) -> Critic:
    """The adapter that was active when the run began, on its scale."""
    fits = await run.context.stores.calibrations.in_force(run.record.model_revision)
    return Critic.of(run.record.parent, fits)


async def _too_few(run: Run, collection: Collection) -> StoredRun:
    needed = run.context.options.min_flags
    counts = ", ".join(f"{name}: {n}" for name, n in collection.counts.items())
    reason = f"{len(collection.learn)} flags to learn from and {needed} needed ({counts})"
    return await run.finish("too_few", [reason], None)
