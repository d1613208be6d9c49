"""The comparison on the practice model. Owns how it is started and measured there; what is compared
is refine/compare's.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from refine.compare.trial import Start, Trainee
from refine.practice.compare import figures, flags
from refine.practice.evaluation_data import ordinary
from refine.practice.reader_model import ReaderModel
from refine.practice.recipe import CONTEXT_LENGTH, MANIFEST
from refine.practice.training_wrappers import TRAINING_WRAPPERS
from refine.served import Model
from refine.stages.flagged import FlaggedCase


def practice_start(folder: Path) -> Start:
    """The practice model in `folder`, in this process."""
    weights: str = json.loads((folder / MANIFEST).read_text("utf-8"))["weights_sha256"]
    return Start(
        weights=str(folder),
        model=ReaderModel(folder),
        identity=weights,
        max_model_len=CONTEXT_LENGTH,
        trained=partial(_trained, folder),
        wrappers=TRAINING_WRAPPERS,
        ordinary=ordinary,
    )


@asynccontextmanager
async def _trained(folder: Path, adapter: Path) -> AsyncIterator[Trainee]:
    yield Trainee(ReaderModel(folder, {1: adapter}), 1)


@dataclass(frozen=True)
class PracticeTrial:
    """A refine.compare.trial.Trial. model: answers the traffic that flags are drawn from."""

    model: Model
    columns = figures.COLUMNS
    wrapper_columns = figures.WRAPPER_COLUMNS

    async def from_traffic(self, n: int, seed: int) -> list[FlaggedCase]:
        """See Trial."""
        return await flags.from_traffic(self.model, n, seed)

    async def one_per_wrapper(self, seed: int) -> list[FlaggedCase]:
        """See Trial."""
        return await flags.one_per_wrapper(self.model, seed)

    async def figures(self, trainee: Trainee, seed: int) -> Mapping[str, float]:
        """See Trial."""
        unflagged = flags.never_flagged(seed)
        return await figures.figures(trainee.model, trainee.adapter, unflagged)

    async def wrapper_figures(self, trainee: Trainee) -> Mapping[str, float]:
        """See Trial."""
        return await figures.wrapper_success(trainee.model, trainee.adapter)
