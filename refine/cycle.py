"""One refine cycle, from flags to the next adapter. Owns the order of the stages. Does not store,
resume or end runs (run.py). Each stage is in the file of its name in stages/.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from guard import prompts
from guard.prompts import CritiqueStyle
from guard.store.flags import StoredFlag
from guard.store.runs import StoredRun
from refine.criteria import cases_that_fit, criterion_series, labelled_cases
from refine.criterion_examples import examples_of_cases
from refine.critic import Critic
from refine.files import cache_key, cached
from refine.run import Run, RunContext, begin, run_folder
from refine.served import answered
from refine.stages.analyse import TOKENS_AFTER_ANSWER, Analysed, analyse
from refine.stages.collect import Collection, collect
from refine.stages.criterion_cases import collect_criteria
from refine.stages.dataset import (
    DatasetFile,
    Dismissed,
    Example,
    Ordinary,
    build,
    earlier_examples,
    write_dataset,
)
from refine.stages.evaluate import GateInputs, GateResult, check_sets, evaluate_candidate
from refine.stages.flagged import case_of
from refine.stages.replay import REQUESTS_PER_ANSWER, replay
from refine.world import EvaluationData

_MAX_FLAGS_READ = 10_000
_RULES_PER_REHEARSAL = 2
"""One example of a rule for so many of the verdict."""
_EPOCHS, _FURTHER_EPOCHS = 3, 1.5
"""Passes for a new adapter, and to train on from one; the second was measured on SmolLM2."""


async def run_cycle(context: RunContext, data: EvaluationData) -> StoredRun:
    """Resumes the run that a killed job left, or runs a new one. Returns its record.

    Raises ServerUnavailable, StoreUnavailable or TrainingFailed; the next call then resumes the
    run. Raises DataInvalid, before anything starts, when the gate's sets are too small or its
    ground truth is unreliable.
    """
    check_sets(data, context.options.gate_margin)
    run = await begin(context, "flags")
    return await run.conduct(_run_stages(run, data))


async def _run_stages(run: Run, data: EvaluationData) -> GateResult | StoredRun:
    collection = await run.stage("collect", Collection, lambda: _collect(run))
    if collection.lessons < run.context.options.min_flags:
        return await _too_few(run, collection)
    analysed = await run.stage("analyse", Analysed, lambda: _analyse(run, data, collection))
    dataset = await run.stage(
        "dataset", DatasetFile, lambda: _dataset(run, data, collection, analysed)
    )
    start = await _start(run)
    epochs = _EPOCHS if start is None else _FURTHER_EPOCHS
    trained = await run.stage("train", Path, lambda: run.train(dataset, start=start, epochs=epochs))
    return await run.stage("gate", GateResult, lambda: _gate(run, data, collection, trained))


async def _collect(run: Run) -> Collection:
    stored, options = run.context.stores.flags, run.context.options
    flags = await stored.unlearned(_MAX_FLAGS_READ)
    unusable = await _unusable(run, flags)
    held_out = await stored.held_out()
    names = {one.name for one in run.context.criteria}
    criterion_cases = collect_criteria(flags, held_out, names, options, unusable)
    collection = collect(flags, held_out, options, unusable, criterion_cases)
    await run.context.stores.runs.set_flags(run.record.id, collection.uses)
    await run.count("collect", collection.counts)
    return collection


async def _unusable(run: Run, flags: Sequence[StoredFlag]) -> dict[int, str]:
    """Returns the flags that the model cannot be asked about, with the reason: one of them would
    make the whole stage fail."""
    cases = [case for case in map(case_of, flags) if case is not None]
    lengths = await run.context.model.lengths(
        [answered(case.messages, case.answer) for case in cases]
    )
    limit = run.info.max_model_len - TOKENS_AFTER_ANSWER
    reasons = {}
    for case, length in zip(cases, lengths, strict=True):
        if length is None:
            reasons[case.flag_id] = "refused by the chat template"
        elif length > limit:
            reasons[case.flag_id] = f"longer than {limit} tokens, which the context has room for"
    return reasons


async def _analyse(run: Run, data: EvaluationData, collection: Collection) -> Analysed:
    options = run.context.options
    analysed = await analyse(
        run.context.model,
        collection.learn,
        critic=data.critic,
        variations=options.variations,
        wrappers=data.wrappers,
        seed=options.seed,
        style=run.info.learned_style,
    )
    await run.count("analyse", analysed.counts)
    return analysed


async def _dataset(
    run: Run, data: EvaluationData, collection: Collection, analysed: Analysed
) -> DatasetFile:
    options, stores = run.context.options, run.context.stores
    share = options.reminder_share if run.info.reminder else 0.0
    ordinary = await _ordinary(run, data, share)
    examples = build(
        analysed.lessons,
        ordinary,
        [Dismissed(case.flag_id, case.messages, case.answer) for case in collection.fine],
        reminder_share=share,
        seed=options.seed,
        style=run.info.learned_style,
    )
    examples += examples_of_cases(
        run.context.criteria,
        collection.criteria.learn,
        [answered(item.messages, item.answer) for item in ordinary],
        options.seed,
    )
    max_earlier = options.rehearsal if options.start == "active" else None
    reviews = await stores.flags.reviews()
    # This run's flags replace what earlier runs trained from them.
    usable_reviews = {
        flag: review for flag, review in reviews.items() if flag not in collection.uses
    }
    earlier = earlier_examples(await _ancestors(run), usable_reviews, max_earlier, options.seed)
    about = {"run": run.record.id, "parent": run.record.parent, "seed": options.seed}
    trained_on = [*examples, *earlier, *_first_examples(run, data)]
    dataset = write_dataset(run.folder / "dataset", trained_on, about)
    return await run.note_dataset(dataset)


def _first_examples(run: Run, data: EvaluationData) -> list[Example]:
    """Returns examples of the corpus that the adapter was aligned with, whose verdicts a few flags
    would blur. They are in the label style, as aligned adapters are. Where a policy has criteria,
    examples of other rules come in addition."""
    options = run.context.options
    if run.info.learned_style is not CritiqueStyle.LABEL:
        return []
    rules = options.rehearsal // _RULES_PER_REHEARSAL if run.context.criteria else 0
    rehearsed = data.rehearsal(options.rehearsal, options.seed)
    return [*rehearsed, *data.rules(rules, options.seed)]


async def _ordinary(run: Run, data: EvaluationData, reminder_share: float) -> list[Ordinary]:
    """Returns the base model's ordinary answers, cached: they do not change between runs."""
    options = run.context.options
    requests = data.ordinary(REQUESTS_PER_ANSWER * options.replay, options.seed)
    about = [
        *(run.info.model_revision, prompts.VERSION, run.info.max_model_len, data.critic.name),
        *(requests, list(data.wrappers), reminder_share, options.seed, run.info.learned_style),
    ]
    return await cached(
        options.work_dir / "replay" / f"{cache_key(about)}.json",
        list[Ordinary],
        lambda: replay(
            run.context.model,
            requests,
            answers=options.replay,
            critic=data.critic,
            wrappers=data.wrappers,
            reminder_share=reminder_share,
            seed=options.seed,
            max_model_len=run.info.max_model_len,
            style=run.info.learned_style,
        ),
    )


async def _ancestors(run: Run) -> list[Path]:
    """Returns the datasets that the active adapter was trained on, newest first."""
    if run.record.parent is None:
        return []
    lineage = await run.context.stores.runs.learned_from(run.record.parent)
    work_dir = run.context.options.work_dir
    return [run_folder(work_dir, number) / "dataset" for number in lineage.runs]


async def _start(run: Run) -> Path | None:
    """Returns the adapter to train from, or None to train a new one."""
    parent = run.record.parent
    if parent is None or run.context.options.start == "fresh":
        return None
    registered = await run.context.stores.adapters.get(parent)
    assert registered is not None, f"run {run.record.id} has an unregistered parent"
    return await asyncio.to_thread(run.context.folder.fetch, parent, registered.sha256)


async def _gate(
    run: Run, data: EvaluationData, collection: Collection, trained: Path
) -> GateResult:
    context = run.context
    await run.count("gate", data.counts)
    await run.publish(trained, run.info.learned_style)
    candidate, active = await run.calibrate(data.sets.pairs), await _active_critic(run)
    criteria = context.criteria
    criterion_cases = await cases_that_fit(
        context.model,
        criteria,
        (*collection.criteria.held_out, *labelled_cases(data.criterion_rows, criteria)),
        run.info.max_model_len,
    )
    inputs = GateInputs(
        candidate,
        active=active,
        held_out=collection.held_out,
        margin=context.options.gate_margin,
        on_criteria={
            critic.adapter: await criterion_series(
                context.model, criteria, criterion_cases, critic.adapter
            )
            for critic in (active, candidate)
        },
    )
    cache = context.options.work_dir / "measures"
    result = await evaluate_candidate(context.model, data, run.info, inputs, cache=cache)
    await run.count("gate", {"percent of the gate's cases that were needed": result.percent})
    return result


async def _active_critic(run: Run) -> Critic:
    """Returns the adapter that was active when the run began, as a calibrated critic."""
    fits = await run.context.stores.calibrations.in_force(run.record.model_revision)
    return Critic.of(run.record.parent, fits)


async def _too_few(run: Run, collection: Collection) -> StoredRun:
    min_flags = run.context.options.min_flags
    counts = ", ".join(f"{name}: {n}" for name, n in collection.counts.items())
    reason = f"{collection.lessons} flags to learn from and {min_flags} needed ({counts})"
    return await run.finish("too_few", [reason], None)
