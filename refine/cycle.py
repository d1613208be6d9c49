"""One refine cycle, as one visible sequence of stages. Owns their order, the run's record and
going on after a kill. Each stage's work is in the file of its name.

Every stage writes its result whole or not at all, and is skipped when its result is there. So the
next job finishes what a killed one began, and nothing is learned twice.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from guard.adapter_files import adapter_path
from guard.store.adapters import AdapterStore
from guard.store.flags import FlagStore
from guard.store.runs import RunStatus, RunStore, StoredRun
from refine.analyse import Analysed, analyse
from refine.cancel import unless_cancelled
from refine.collect import Collection, collect
from refine.dataset import DatasetFile, Dismissed, build, earlier_examples, write_dataset
from refine.errors import RunCancelled
from refine.files import write_atomically
from refine.ground import Ground
from refine.options import RefineOptions
from refine.promote import promote, publish, reject
from refine.prove import Proof, prove
from refine.replay import replay
from refine.served import ServedInfo, Server
from refine.training import TrainPlan, run_training

T = TypeVar("T")

_MOST_FLAGS_READ = 10_000


@dataclass(frozen=True)
class Stores:
    """The stores of one database."""

    flags: FlagStore
    runs: RunStore
    adapters: AdapterStore


@dataclass(frozen=True)
class Setting:
    """What cycles work with, one after the other.

    adapters_dir: where published adapters live. report: is told of each step, one line at a time.
    """

    stores: Stores
    model: Server
    ground: Ground
    options: RefineOptions
    adapters_dir: Path
    report: Callable[[str], None]


async def run_cycle(setting: Setting) -> StoredRun:
    """Finishes the run that a killed job left, or does a new one; returns its record.

    Raises ServerUnavailable, StoreUnavailable or TrainingFailed: the run then stays unfinished and
    the next call goes on with it.
    """
    info = await setting.model.info()
    record = await setting.stores.runs.unfinished()
    if record is not None and _of_another_base(record, info):
        await setting.stores.runs.finish(
            record.id, "failed", error="it was begun for another base model, which is gone"
        )
        record = None
    record = record or await setting.stores.runs.start(
        model=info.model,
        model_revision=info.model_revision,
        parent=info.active,
        seed=setting.options.seed,
        options=setting.options.model_dump(mode="json", exclude={"api_key"}),
    )
    return await Cycle(setting, info, record).run()


def _of_another_base(record: StoredRun, info: ServedInfo) -> bool:
    return record.model_revision != info.model_revision


@dataclass(frozen=True)
class Cycle:
    """One run. Its folder holds what each stage made, under the stage's name."""

    setting: Setting
    info: ServedInfo
    record: StoredRun

    async def run(self) -> StoredRun:
        """The sequence, to its end or until it is cancelled; what was decided stands."""
        try:
            proof = await unless_cancelled(
                self.setting.stores.runs, self.record.id, self._up_to_the_proof()
            )
        except RunCancelled as by:
            return await self._cancelled(str(by))
        return proof if isinstance(proof, StoredRun) else await self._end(proof)

    async def _up_to_the_proof(self) -> Proof | StoredRun:
        collection = await self._stage("collect", Collection, self._collect)
        if len(collection.learn) < self.setting.options.min_flags:
            return await self._too_few(collection)
        analysed = await self._stage("analyse", Analysed, lambda: self._analyse(collection))
        dataset = await self._stage(
            "dataset", DatasetFile, lambda: self._dataset(collection, analysed)
        )
        trained = await self._stage("train", Path, lambda: self._train(dataset))
        return await self._stage("gate", Proof, lambda: self._gate(collection, trained))

    @property
    def folder(self) -> Path:
        """Where this run keeps what it makes."""
        return run_folder(self.setting.options.work_dir, self.record.id)

    async def _stage(self, name: str, kind: type[T], make: Callable[[], Awaitable[T]]) -> T:
        """The stage's result: read if it is there, else made and kept."""
        stored: TypeAdapter[T] = TypeAdapter(kind)
        path = self.folder / f"{name}.json"
        await self.setting.stores.runs.set_stage(self.record.id, name)
        if path.is_file():
            self._say(f"{name}: done before")
            return stored.validate_json(path.read_bytes())
        self._say(f"{name} ...")
        made = await make()
        write_atomically(path, stored.dump_json(made, indent=1).decode())
        return made

    async def _collect(self) -> Collection:
        flags = self.setting.stores.flags
        collection = collect(
            await flags.unlearned(_MOST_FLAGS_READ), await flags.held_out(), self.setting.options
        )
        await self.setting.stores.runs.set_flags(self.record.id, collection.uses)
        await self._count("collect", collection.counts)
        return collection

    async def _analyse(self, collection: Collection) -> Analysed:
        options = self.setting.options
        analysed = await analyse(
            self.setting.model,
            collection.learn,
            variations=options.variations,
            seed=options.seed,
        )
        await self._count("analyse", analysed.counts)
        return analysed

    async def _dataset(self, collection: Collection, analysed: Analysed) -> DatasetFile:
        options = self.setting.options
        ordinary = await replay(
            self.setting.model,
            self.setting.ground.ordinary(options.replay, options.seed),
            reminder_share=options.reminder_share,
            seed=options.seed,
        )
        examples = build(
            analysed.lessons,
            ordinary,
            [Dismissed(case.flag_id, case.messages, case.answer) for case in collection.fine],
            reminder_share=options.reminder_share,
            seed=options.seed,
        )
        most = options.rehearsal if options.start == "active" else None
        reviews = await self.setting.stores.flags.reviews()
        # What this run takes anew stands in place of what was taught of it before.
        kept = {flag: review for flag, review in reviews.items() if flag not in collection.uses}
        earlier = earlier_examples(await self._ancestors(), kept, most, options.seed)
        about = {"run": self.record.id, "parent": self.record.parent, "seed": options.seed}
        dataset = write_dataset(self.folder / "dataset", [*examples, *earlier], about)
        await self.setting.stores.runs.set_stage(
            self.record.id, "dataset", counts=dataset.counts, dataset_sha256=dataset.sha256
        )
        return dataset

    async def _ancestors(self) -> list[Path]:
        """The datasets that the active adapter learned from, newest first."""
        if self.record.parent is None:
            return []
        lineage = await self.setting.stores.runs.learned_from(self.record.parent)
        work_dir = self.setting.options.work_dir
        return [run_folder(work_dir, number) / "dataset" for number in lineage.runs]

    async def _train(self, dataset: DatasetFile) -> Path:
        options = self.setting.options
        start = None
        if self.record.parent is not None and options.start == "active":
            start = str(adapter_path(self.setting.adapters_dir, self.record.parent))
        plan = TrainPlan(
            base=self.info.base,
            dataset=str(dataset.path),
            out=str(self.folder / "adapter"),
            checkpoints=str(self.folder / "checkpoints"),
            start=start,
            rank=min(options.rank, self.info.max_lora_rank),
            learning_rate=options.learning_rate,
            epochs=options.epochs,
            batch_size=options.batch_size,
            max_length=min(options.max_length, self.info.max_model_len),
            seed=options.seed,
        )
        await run_training(plan)
        return Path(plan.out)

    async def _gate(self, collection: Collection, trained: Path) -> Proof:
        setting = self.setting
        await publish(setting.stores.adapters, setting.adapters_dir, trained, self.record)
        return await prove(
            setting.model,
            setting.ground,
            self.info,
            candidate=self.record.id,
            active=self.record.parent,
            held_out=collection.held_out,
            cache=setting.options.work_dir / "measures",
        )

    async def _end(self, proof: Proof) -> StoredRun:
        decision, number = proof.decision, self.record.id
        await self.setting.stores.runs.set_stage(number, "promote")
        if decision.promote:
            await promote(self.setting.stores.adapters, self.record)
        else:
            await reject(self.setting.stores.adapters, self.setting.model, self.record)
        return await self._finish(
            "promoted" if decision.promote else "rejected", decision.reasons, proof.figures
        )

    async def _cancelled(self, by: str) -> StoredRun:
        adapters = self.setting.stores.adapters
        if await adapters.get(self.record.id) is not None:
            await reject(adapters, self.setting.model, self.record)
        return await self._finish("cancelled", [f"cancelled by {by}"], None)

    async def _too_few(self, collection: Collection) -> StoredRun:
        needed = self.setting.options.min_flags
        counts = ", ".join(f"{name}: {n}" for name, n in collection.counts.items())
        reason = f"{len(collection.learn)} flags to learn from and {needed} needed ({counts})"
        return await self._finish("too_few", [reason], None)

    async def _finish(
        self, status: RunStatus, reasons: Sequence[str], figures: dict[str, Any] | None
    ) -> StoredRun:
        runs = self.setting.stores.runs
        await runs.finish(self.record.id, status, measures=figures, reasons=reasons)
        self._say(status.replace("_", " "))
        finished = await runs.get(self.record.id)
        assert finished is not None
        return finished

    async def _count(self, stage: str, counts: Mapping[str, int]) -> None:
        await self.setting.stores.runs.set_stage(self.record.id, stage, counts=counts)

    def _say(self, line: str) -> None:
        self.setting.report(f"run {self.record.id}: {line}")


def run_folder(work_dir: Path, number: int) -> Path:
    """Where run `number` keeps what it makes."""
    return work_dir / f"run-{number:04d}"
