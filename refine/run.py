"""One run of the loop, whatever its mistakes come from: its record, its folder, its stages, and how
it ends. Owns going on after a kill and cancelling; which stages there are and what each does is
cycle.py's (from flags) and align.py's (from a corpus).

Every stage writes its result whole or not at all, and is skipped when its result is there. So the
next job finishes what a killed one began, and nothing is learned twice.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from guard.prompts import CritiqueStyle
from guard.store.adapters import AdapterStore
from guard.store.calibrations import CalibrationStore
from guard.store.flags import FlagStore
from guard.store.runs import RunStatus, RunStore, Source, StoredRun
from refine.attempts import attempt
from refine.cancel import unless_cancelled
from refine.critic import Critic
from refine.errors import RunCancelled, RunGivenUp
from refine.evaluation.sets import Labelled
from refine.files import write_atomically
from refine.options import RefineOptions
from refine.served import ServedInfo, Server
from refine.stages.dataset import DatasetFile
from refine.stages.promote import promote, publish, reject
from refine.stages.prove import Proof
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
    """What runs work with, one after the other.

    adapters_dir: where published adapters live. report: is told of each step, one line at a time.
    """

    stores: Stores
    model: Server
    options: RefineOptions
    adapters_dir: Path
    report: Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One run. Its folder holds what each stage made, under the stage's name."""

    context: RunContext
    info: ServedInfo
    record: StoredRun

    @property
    def folder(self) -> Path:
        """Where this run keeps what it makes."""
        return run_folder(self.context.options.work_dir, self.record.id)

    async def conduct(self, up_to_the_proof: Coroutine[Any, Any, Proof | StoredRun]) -> StoredRun:
        """Runs the stages, and ends the run as their proof says; what was decided stands.

        up_to_the_proof: returns a finished record instead where there is nothing to prove.
        """
        try:
            proof = await unless_cancelled(
                self.context.stores.runs, self.record.id, up_to_the_proof
            )
        except RunCancelled as by:
            return await self._cancelled(str(by))
        except RunGivenUp as error:
            return await self._given_up(str(error))
        return proof if isinstance(proof, StoredRun) else await self._end(proof)

    async def stage(self, name: str, kind: type[T], make: Callable[[], Awaitable[T]]) -> T:
        """The stage's result: read if it is there, else made and kept."""
        stored: TypeAdapter[T] = TypeAdapter(kind)
        path = self.folder / f"{name}.json"
        await self.context.stores.runs.set_stage(self.record.id, name)
        if path.is_file():
            self._say(f"{name}: done before")
            return stored.validate_json(path.read_bytes())
        self._say(f"{name} ...")
        with attempt(self.folder, name):
            made = await make()
        write_atomically(path, stored.dump_json(made, indent=1).decode())
        return made

    async def count(self, stage: str, counts: Mapping[str, int]) -> None:
        """Adds to the record's counts."""
        await self.context.stores.runs.set_stage(self.record.id, stage, counts=counts)

    async def note_dataset(self, dataset: DatasetFile) -> DatasetFile:
        """Keeps in the record what the run trains on, and returns it."""
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
        """Trains an adapter, on from that in `start` or from nothing, and returns its directory.

        epochs: passes over the dataset, where the options name no number. upper_half: of the
        layers alone.
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
        await run_training(plan)
        return Path(plan.out)

    async def publish(self, trained: Path, critique: CritiqueStyle) -> None:
        """Makes what was trained a candidate that the server can load."""
        context = self.context
        await publish(context.stores.adapters, context.adapters_dir, trained, self.record, critique)

    async def calibrate(self, labelled: Sequence[Labelled]) -> Critic:
        """The published candidate, its verdicts fitted to labelled answers and texts."""
        # Imported late: it needs numpy, for which no other command should wait.
        from refine.calibrate.candidate import calibrate_candidate

        context = self.context
        return await calibrate_candidate(
            context.model, context.stores.calibrations, self.record, labelled
        )

    async def finish(
        self, status: RunStatus, reasons: Sequence[str], figures: dict[str, Any] | None
    ) -> StoredRun:
        """Ends the run with that status; returns its record."""
        runs = self.context.stores.runs
        await runs.finish(self.record.id, status, measures=figures, reasons=reasons)
        self._say(status.replace("_", " "))
        return await self._finished()

    async def _finished(self) -> StoredRun:
        finished = await self.context.stores.runs.get(self.record.id)
        assert finished is not None
        return finished

    async def _end(self, proof: Proof) -> StoredRun:
        decision, number = proof.decision, self.record.id
        adapters = self.context.stores.adapters
        await self.context.stores.runs.set_stage(number, "promote")
        if decision.promote:
            await promote(adapters, self.record)
        else:
            await reject(adapters, self.context.model, self.record)
        return await self.finish(
            "promoted" if decision.promote else "rejected", decision.reasons, proof.figures
        )

    async def _cancelled(self, by: str) -> StoredRun:
        await self._reject_candidate()
        return await self.finish("cancelled", [f"cancelled by {by}"], None)

    async def _given_up(self, why: str) -> StoredRun:
        self._say(f"given up: {why}")
        await self._reject_candidate()
        await self.context.stores.runs.finish(self.record.id, "failed", error=why)
        return await self._finished()

    async def _reject_candidate(self) -> None:
        adapters = self.context.stores.adapters
        if await adapters.get(self.record.id) is not None:
            await reject(adapters, self.context.model, self.record)

    def _say(self, line: str) -> None:
        self.context.report(f"run {self.record.id}: {line}")


async def begin(context: RunContext, source: Source) -> Run:
    """The run of that source that a killed job left, or a new one.

    A run that was begun for another base model is ended as failed. Raises ServerUnavailable or
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
    """Where run `number` keeps what it makes."""
    return work_dir / f"run-{number:04d}"
