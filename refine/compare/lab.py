"""From flags to a trained adapter, for any method. Owns the files, and gives every method the same
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

from guard import prompts
from refine.compare.methods import Method, examples, revise
from refine.compare.preferences import preferences, train_on_preferences
from refine.compare.trial import Start
from refine.files import cached
from refine.options import RefineOptions
from refine.stages.analyse import Analysed, analyse
from refine.stages.dataset import Example, Lesson, Ordinary, write_dataset
from refine.stages.flagged import FlaggedCase
from refine.stages.replay import REQUESTS_PER_ANSWER, replay
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
    """A model to start from, the options and steps of every training, and a folder for results.

    out: has a subfolder for each start, options and steps, so that results are never mixed up.
    """

    def __init__(self, start: Start, out: Path, options: RefineOptions, steps: int) -> None:
        self.start = start
        self.options = options
        self._steps = steps
        about = [start.identity, prompts.VERSION, options.model_dump(mode="json"), steps]
        self.folder = out / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]

    async def cached(self, name: str, kind: type[T], make: Callable[[], Awaitable[T]]) -> T:
        """Returns the result of `make`, cached as JSON in the file `name`."""
        return await cached(self.folder / f"{name}.json", kind, make)

    async def train(self, method: Method, flags: Flags, n: int) -> Path:
        """Returns the PEFT directory of an adapter that was trained on the method's examples of the
        first `n` flags."""
        folder = self.folder / "trained" / f"{file_name(method.name)}-{n}-{flags.name}"
        first = {case.flag_id for case in flags.cases[:n]}
        if method.preferences:
            lessons = [one for one in await self._lessons(flags) if one.flag_id in first]
            plan, pairs = self._plan(folder, Path(), flags.seed), preferences(lessons)
            await self._quietly(lambda: train_on_preferences(plan, pairs))
        else:
            learned = await self._examples(method, flags, first)
            dataset = write_dataset(folder / "dataset", learned, {"method": method.name})
            plan = self._plan(folder, dataset.path, flags.seed)
            await self._quietly(lambda: train(plan))
        shutil.rmtree(plan.checkpoints, ignore_errors=True)
        return Path(plan.out)

    def _plan(self, folder: Path, dataset: Path, seed: int) -> TrainPlan:
        options = self.options
        return TrainPlan(
            base=self.start.weights,
            dataset=str(dataset),
            out=str(folder / "adapter"),
            checkpoints=str(folder / "checkpoints"),
            start=None,
            rank=options.rank,
            learning_rate=options.learning_rate,
            epochs=1,
            batch_size=options.batch_size,
            max_length=min(options.max_length, self.start.max_model_len),
            seed=seed,
            max_steps=self._steps,
            chat_template=self.start.chat_template,
        )

    async def _quietly(self, trainer: Callable[[], Path]) -> None:
        # A trainer prints its losses; standard output is for the tables.
        with redirect_stdout(sys.stderr):
            await asyncio.to_thread(trainer)

    async def _examples(self, method: Method, flags: Flags, first: set[int]) -> list[Example]:
        seed, start = flags.seed, self.start
        lessons = await self._lessons(flags)
        revisions = await self.cached(
            f"revisions/{flags.name}",
            list[str],
            lambda: revise(start.model, start.critic, lessons),
        )
        indices = [index for index, lesson in enumerate(lessons) if lesson.flag_id in first]
        return examples(
            method,
            [lessons[index] for index in indices],
            [revisions[index] for index in indices],
            await self.cached(f"ordinary/{seed}", list[Ordinary], lambda: self._ordinary(seed)),
            self.options.reminder_share,
            seed,
            start.style,
        )

    async def _lessons(self, flags: Flags) -> Sequence[Lesson]:
        async def make() -> Analysed:
            return await analyse(
                self.start.model,
                flags.cases,
                critic=self.start.critic,
                variations=flags.variations,
                wrappers=self.start.wrappers,
                seed=flags.seed,
                adapter="base",
                style=self.start.style,
            )

        return (await self.cached(f"lessons/{flags.name}", Analysed, make)).lessons

    async def _ordinary(self, seed: int) -> list[Ordinary]:
        start = self.start
        return await replay(
            start.model,
            start.ordinary(REQUESTS_PER_ANSWER * self.options.replay, seed),
            answers=self.options.replay,
            critic=start.critic,
            wrappers=start.wrappers,
            reminder_share=self.options.reminder_share,
            seed=seed,
            max_model_len=start.max_model_len,
            style=start.style,
        )


def file_name(text: str) -> str:
    """Returns the text with dashes for all characters but letters and digits."""
    return "".join(char if char.isalnum() else "-" for char in text)
