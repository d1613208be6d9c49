"""From flags to a trained model, for any method. Owns the files, and gives every method the same
flags, the same ordinary answers and the same number of steps.

A method with fewer examples or fewer flags sees each of them more often.
"""

import asyncio
import hashlib
import json
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from guard import prompts
from refine.critic import BASE_ALONE
from refine.files import write_atomically
from refine.options import RefineOptions
from refine.practice.compare.methods import Method, examples, revise
from refine.practice.evaluation_data import ordinary
from refine.practice.reader_model import ReaderModel
from refine.practice.recipe import CONTEXT_LENGTH, MANIFEST
from refine.practice.training_wrappers import TRAINING_WRAPPERS
from refine.stages.analyse import Analysed, analyse
from refine.stages.collect import FlaggedCase
from refine.stages.dataset import Example, Lesson, Ordinary, write_dataset
from refine.stages.replay import replay
from refine.stages.train import train
from refine.stages.training import TrainPlan

T = TypeVar("T")


@dataclass(frozen=True)
class Flags:
    """Flags to train on. name: identifies them in the lab's folder. variations: of each flagged
    request."""

    name: str
    cases: tuple[FlaggedCase, ...]
    variations: int
    seed: int


class Lab:
    """A base model, the options and steps of every training, and a folder for results.

    out: has a subfolder for each model, options and steps, so that results are never mixed up.
    """

    def __init__(self, model: Path, out: Path, options: RefineOptions, steps: int) -> None:
        self.base = ReaderModel(model)
        self.options = options
        self._steps = steps
        self._model = model
        weights = json.loads((model / MANIFEST).read_text("utf-8"))["weights_sha256"]
        about = [weights, prompts.VERSION, options.model_dump(mode="json"), steps]
        self.folder = out / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]

    async def cached(self, name: str, kind: type[T], make: Callable[[], Awaitable[T]]) -> T:
        """Returns the result of `make`, cached as JSON in the file `name`."""
        stored: TypeAdapter[T] = TypeAdapter(kind)
        path = self.folder / f"{name}.json"
        if path.is_file():
            return stored.validate_json(path.read_bytes())
        result = await make()
        write_atomically(path, stored.dump_json(result, indent=1).decode())
        return result

    async def trained(self, method: Method, flags: Flags, n: int) -> ReaderModel:
        """Returns a model whose adapter 1 was trained on the method's examples of `n` flags."""
        learned = await self._examples(method, flags, n)
        folder = self.folder / "trained" / f"{file_name(method.name)}-{n}-{flags.name}"
        dataset = write_dataset(folder / "dataset", learned, {"method": method.name})
        options = self.options
        plan = TrainPlan(
            base=str(self._model),
            dataset=str(dataset.path),
            out=str(folder / "adapter"),
            checkpoints=str(folder / "checkpoints"),
            start=None,
            rank=options.rank,
            learning_rate=options.learning_rate,
            epochs=1,
            batch_size=options.batch_size,
            max_length=min(options.max_length, CONTEXT_LENGTH),
            seed=flags.seed,
            max_steps=self._steps,
        )
        # The trainer prints losses, but standard output is for the tables.
        with redirect_stdout(sys.stderr):
            await asyncio.to_thread(train, plan)
        shutil.rmtree(plan.checkpoints, ignore_errors=True)
        return ReaderModel(self._model, {1: Path(plan.out)})

    async def _examples(self, method: Method, flags: Flags, n: int) -> list[Example]:
        seed = flags.seed
        lessons = await self._lessons(flags)
        revisions = await self.cached(
            f"revisions/{flags.name}", list[str], lambda: revise(self.base, lessons)
        )
        first = {case.flag_id for case in flags.cases[:n]}
        indices = [index for index, lesson in enumerate(lessons) if lesson.flag_id in first]
        return examples(
            method,
            [lessons[index] for index in indices],
            [revisions[index] for index in indices],
            await self.cached(f"ordinary/{seed}", list[Ordinary], lambda: self._ordinary(seed)),
            self.options.reminder_share,
            seed,
        )

    async def _lessons(self, flags: Flags) -> Sequence[Lesson]:
        async def make() -> Analysed:
            lesson = flags.variations
            return await analyse(
                self.base,
                flags.cases,
                critic=BASE_ALONE,
                variations=lesson,
                wrappers=TRAINING_WRAPPERS,
                seed=flags.seed,
                adapter="base",
            )

        return (await self.cached(f"lessons/{flags.name}", Analysed, make)).lessons

    async def _ordinary(self, seed: int) -> list[Ordinary]:
        requests = ordinary(self.options.replay, seed)
        share = self.options.reminder_share
        return await replay(
            self.base,
            requests,
            critic=BASE_ALONE,
            wrappers=TRAINING_WRAPPERS,
            reminder_share=share,
            seed=seed,
            max_model_len=CONTEXT_LENGTH,
        )


def file_name(text: str) -> str:
    """Returns the text with dashes for all characters but letters and digits."""
    return "".join(char if char.isalnum() else "-" for char in text)
