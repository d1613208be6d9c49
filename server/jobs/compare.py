"""The job of `setback compare`: the paper's comparison on the model of a running server. Owns how
trained adapters are published to that server and removed. The comparison is refine/compare's.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from refine.compare.cells import Cell, Cells
from refine.compare.corpus_trial import CorpusTrial
from refine.compare.lab import Lab
from refine.compare.methods import Method
from refine.compare.trial import Start, Trainee
from refine.critic import Critic
from refine.errors import DataInvalid
from refine.evaluation_data import corpus_requests
from refine.run import RunContext
from refine.seed import corpus
from refine.served import ServedInfo
from refine.stages.promote import publish
from server.jobs.critics import known_critics
from server.jobs.refine import leased_run, run_until_signal
from server.settings import Settings


@dataclass(frozen=True)
class Comparison:
    """What is compared. flags: numbers of flags to learn from. seeds, steps: of every training."""

    methods: Sequence[Method]
    flags: Sequence[int]
    seeds: int
    steps: int


@dataclass(frozen=True)
class Compared:
    """The cells of both tables."""

    methods: list[Cell]
    wrappers: list[Cell]


def compare(
    settings: Settings, comparison: Comparison, out: Path, report: Callable[[str], None]
) -> Compared:
    """Trains and measures every method on the served base model. Resumes from the results in `out`.

    Every training becomes a rejected run in the settings' database. Raises GuardError or
    RefineError when it cannot be run.
    """

    async def work(context: RunContext) -> Compared:
        info = await context.model.info()
        critic = await _critic(settings, info)
        start = _start(context, info, critic)
        trial = CorpusTrial(start.model, critic)
        cells = Cells(Lab(start, out, settings.refine, comparison.steps), trial, report)
        seeds = range(comparison.seeds)
        return Compared(
            await cells.methods(comparison.flags, seeds, comparison.methods),
            await cells.wrappers(seeds),
        )

    return run_until_signal(leased_run(settings, report, work))


async def _critic(settings: Settings, info: ServedInfo) -> Critic:
    critics = await known_critics(settings, info)
    if critics.first is None:
        raise DataInvalid(
            "No adapter of this base model was ever active, and the base model alone cannot judge "
            "harm: align it first with `setback align`"
        )
    return critics.of(critics.first)


def _start(context: RunContext, info: ServedInfo, critic: Critic) -> Start:
    return Start(
        weights=info.base,
        model=context.model,
        identity=f"{info.model_revision} judged by {critic.name}",
        max_model_len=info.max_model_len,
        trained=partial(_trained, context, info),
        wrappers=[wrapper.template for wrapper in corpus.wrappers("align")],
        ordinary=corpus_requests,
        critic=critic,
        style=info.learned_style,
        chat_template=info.chat_template,
    )


@asynccontextmanager
async def _trained(context: RunContext, info: ServedInfo, path: Path) -> AsyncIterator[Trainee]:
    """Publishes the adapter as a candidate, and removes it from the server afterwards."""
    runs = context.stores.runs
    run = await runs.start(
        model=info.model,
        model_revision=info.model_revision,
        parent=None,
        seed=context.options.seed,
        options={"compared": path.parent.name},
        stage="gate",
    )
    await publish(context.stores.adapters, context.folder, path, run, info.learned_style)
    try:
        yield Trainee(context.model, run.id)
    finally:
        await context.stores.adapters.set_status(run.id, "rejected")
        await context.model.unload(run.id)
        await runs.finish(run.id, "rejected", reasons=["trained for a comparison"])
