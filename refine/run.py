"""One run of the refine loop, whatever its source: its record, folder, stages and end. Owns
resuming after a kill, and cancellation. Does not define the stages (cycle.py for flags, align.py
for a corpus).

Every stage writes its result atomically, and is skipped if its result exists. So the next job
completes what a killed job began, and nothing is trained twice.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from guard.adapter_folder import AdapterFolder
from guard.prompts import CritiqueStyle
from guard.store.adapters import AdapterStore
from guard.store.calibrations import CalibrationStore
from guard.store.flags import FlagStore
from guard.store.runs import RunStatus, RunStore, Source, StoredRun
from refine.attempts import attempt
from refine.cancel import run_unless_cancelled
from refine.criteria import CriterionInForce
from refine.critic import Critic
from refine.errors import RunCancelled, RunGivenUp
from refine.evaluation.sets import Labelled
from refine.files import cached
from refine.options import RefineOptions
from refine.served import ServedInfo, Server
from refine.stages.dataset import DatasetFile
from refine.stages.evaluate import GateResult
from refine.stages.promote import promote, publish, reject
from refine.stages.training import TrainPlan, run_training

T = TypeVar("T")


@dataclass(frozen=True)
class Stores:
    """The stores of one database."""

    flags: FlagStore
    runs: RunStore
    adapters: AdapterStore
    calibrations: CalibrationStore


@dataclass(frozen=True)
class RunContext:
    """What all runs of a job share.

    folder: where published adapters are stored. report: called with each progress line. criteria:
    in force, as far as the model reads them of answers.
    """

    stores: Stores
    model: Server
    options: RefineOptions
    folder: AdapterFolder
    report: Callable[[str], None]
    criteria: Sequence[CriterionInForce] = ()


@dataclass(frozen=True)
class Run:
    """One run. Its folder holds the result of each stage under the stage's name."""

    context: RunContext
    info: ServedInfo
    record: StoredRun

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return run_folder(self.context.options.work_dir, self.record.id)

    async def conduct(self, stages: Coroutine[Any, Any, GateResult | StoredRun]) -> StoredRun:
        """Runs the stages, then promotes or rejects the candidate as the gate decided.

        stages: returns a finished record instead if there is nothing to decide.
        """
        try:
            gate_result = await run_unless_cancelled(
                self.context.stores.runs, self.record.id, stages
            )
        except RunCancelled as by:
            return await self._cancelled(str(by))
        except RunGivenUp as error:
            return await self._given_up(str(error))
        return gate_result if isinstance(gate_result, StoredRun) else await self._end(gate_result)

    async def stage(self, name: str, kind: type[T], make: Callable[[], Awaitable[T]]) -> T:
        """Returns the stage's result: reads it if it exists, otherwise computes and stores it."""
        path = self.folder / f"{name}.json"
        await self.context.stores.runs.set_stage(self.record.id, name)
        self._report(f"{name}: done before" if path.is_file() else f"{name} ...")

        async def attempted() -> T:
            with attempt(self.folder, name):
                return await make()

        return await cached(path, kind, attempted)

    async def count(self, stage: str, counts: Mapping[str, int]) -> None:
        """Adds to the record's counts."""
        await self.context.stores.runs.set_stage(self.record.id, stage, counts=counts)

    async def note_dataset(self, dataset: DatasetFile) -> DatasetFile:
        """Stores the training data's hash and counts in the record, and returns the dataset."""
        await self.context.stores.runs.set_stage(
            self.record.id, "dataset", counts=dataset.counts, dataset_sha256=dataset.sha256
        )
        return dataset

    async def train(
        self,
        dataset: DatasetFile,
        *,
        start: Path | None,
        epochs: float,
        upper_half: bool = False,
    ) -> Path:
        """Trains an adapter, from the one in `start` if given. Returns its directory.

        epochs: passes over the dataset, unless the options set them. upper_half: train only the
        upper half of the layers.
        """
        options, info = self.context.options, self.info
        plan = TrainPlan(
            base=info.base,
            dataset=str(dataset.path),
            out=str(self.folder / "adapter"),
            checkpoints=str(self.folder / "checkpoints"),
            start=None if start is None else str(start),
            rank=min(options.rank, info.max_lora_rank),
            learning_rate=options.learning_rate,
            epochs=options.epochs or epochs,
            batch_size=options.batch_size,
            max_length=min(options.max_length, info.max_model_len),
            seed=options.seed,
            upper_half=upper_half,
            chat_template=info.chat_template,
        )
        await run_training(plan, options.train_command)
        return Path(plan.out)

    async def publish(self, trained: Path, critique: CritiqueStyle) -> None:
        """Makes the trained adapter a candidate that the server can load."""
        context = self.context
        await publish(context.stores.adapters, context.folder, trained, self.record, critique)

    async def calibrate(self, labelled: Sequence[Labelled]) -> Critic:
        """Returns the published candidate, calibrated on labelled answers and texts."""
        # Imported here because it imports numpy, which other commands do not need.
        from refine.calibrate.candidate import calibrate_candidate

        context = self.context
        return await calibrate_candidate(
            context.model, context.stores.calibrations, self.record, labelled
        )

    async def finish(
        self, status: RunStatus, reasons: Sequence[str], figures: dict[str, Any] | None
    ) -> StoredRun:
        """Ends the run with that status and returns its record."""
        runs = self.context.stores.runs
        await runs.finish(self.record.id, status, measures=figures, reasons=reasons)
        self._report(status.replace("_", " "))
        return await self._finished()

    async def _finished(self) -> StoredRun:
        finished = await self.context.stores.runs.get(self.record.id)
        assert finished is not None
        return finished

    async def _end(self, gate_result: GateResult) -> StoredRun:
        decision, number = gate_result.decision, self.record.id
        adapters = self.context.stores.adapters
        await self.context.stores.runs.set_stage(number, "promote")
        if decision.promote:
            await promote(adapters, self.record)
        else:
            await reject(adapters, self.context.model, self.record)
        return await self.finish(
            "promoted" if decision.promote else "rejected", decision.reasons, gate_result.figures
        )

    async def _cancelled(self, by: str) -> StoredRun:
        await self._reject_candidate()
        return await self.finish("cancelled", [f"cancelled by {by}"], None)

    async def _given_up(self, why: str) -> StoredRun:
        self._report(f"given up: {why}")
        await self._reject_candidate()
        await self.context.stores.runs.finish(self.record.id, "failed", error=why)
        return await self._finished()

    async def _reject_candidate(self) -> None:
        adapters = self.context.stores.adapters
        if await adapters.get(self.record.id) is not None:
            await reject(adapters, self.context.model, self.record)

    def _report(self, line: str) -> None:
        self.context.report(f"run {self.record.id}: {line}")


async def begin(context: RunContext, source: Source) -> Run:
    """Returns the unfinished run of that source that a killed job left, or a new one.

    An unfinished run of another base model is ended as failed. Raises ServerUnavailable or
    StoreUnavailable.
    """
    runs = context.stores.runs
    info = await context.model.info()
    record = await runs.unfinished(source)
    if record is not None and record.model_revision != info.model_revision:
        await runs.finish(
            record.id, "failed", error="it was begun for another base model, which is gone"
        )
        record = None
    record = record or await runs.start(
        model=info.model,
        model_revision=info.model_revision,
        parent=info.active,
        seed=context.options.seed,
        options=context.options.model_dump(mode="json", exclude={"api_key", "judge_api_key"}),
        source=source,
    )
    return Run(context, info, record)


def run_folder(work_dir: Path, number: int) -> Path:
    """Returns the folder of run `number`."""
    return work_dir / f"run-{number:04d}"
