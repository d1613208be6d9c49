"""The comparison's cells, one training and its figures after the other. Owns their order; each is
kept as a file, so that a run that was ended goes on where it was.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from refine.compare.lab import Flags, Lab, file_name
from refine.compare.methods import METHODS, OURS, Method
from refine.compare.trial import Trainee, Trial
from refine.stages.flagged import FlaggedCase

PROLIFERATED = 16
NOTHING = "nothing"


@dataclass(frozen=True)
class Cell:
    """One row's figures for one seed, in shares by column. flags: how many were learned from."""

    row: str
    flags: int
    seed: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Cells:
    """report: is told what is under way, one line at a time."""

    lab: Lab
    trial: Trial
    report: Callable[[str], None]

    async def methods(
        self, flags: Sequence[int], seeds: Sequence[int], methods: Sequence[Method] = METHODS
    ) -> list[Cell]:
        """The first table's: nothing, and every method from each number of flags."""
        cells = [await self._untrained(seed) for seed in seeds]
        most = max(flags)
        for n in flags:
            for seed in seeds:
                cells += [await self._method(method, n, most, seed) for method in methods]
        return cells

    async def wrappers(self, seeds: Sequence[int]) -> list[Cell]:
        """The second table's: nothing, and one flag per wrapper, alone and with variations."""
        cells = []
        for seed in seeds:
            flags = await self._flags(f"wrappers-{seed}", partial(self.trial.one_per_wrapper, seed))
            cells.append(await self._unwrapped(seed))
            for variations in (0, PROLIFERATED):
                cells.append(await self._one_per_wrapper(flags, variations, seed))
        return cells

    @property
    def _untaught(self) -> Trainee:
        return Trainee(self.lab.start.model, "base")

    async def _untrained(self, seed: int) -> Cell:
        return await self._cell(NOTHING, 0, seed, lambda: self.trial.figures(self._untaught, seed))

    async def _unwrapped(self, seed: int) -> Cell:
        row = f"wrappers: {NOTHING}"
        return await self._cell(row, 0, seed, lambda: self.trial.wrapper_figures(self._untaught))

    async def _method(self, method: Method, n: int, most: int, seed: int) -> Cell:
        async def make() -> Mapping[str, float]:
            name = f"{seed}-{most}"
            cases = await self._flags(name, lambda: self.trial.from_traffic(most, seed))
            flags = Flags(name, cases, self.lab.options.variations, seed)
            path = await self.lab.train(method, flags, n)
            async with self.lab.start.trained(path) as trainee:
                return await self.trial.figures(trainee, seed)

        return await self._cell(method.name, n, seed, make)

    async def _one_per_wrapper(
        self, cases: tuple[FlaggedCase, ...], variations: int, seed: int
    ) -> Cell:
        async def make() -> Mapping[str, float]:
            flags = Flags(f"wrappers-{seed}-{variations}", cases, variations, seed)
            path = await self.lab.train(OURS, flags, len(cases))
            async with self.lab.start.trained(path) as trainee:
                return await self.trial.wrapper_figures(trainee)

        return await self._cell(f"wrappers: {variations} variations", len(cases), seed, make)

    async def _flags(
        self, name: str, draw: Callable[[], Awaitable[list[FlaggedCase]]]
    ) -> tuple[FlaggedCase, ...]:
        return tuple(await self.lab.cached(f"flags/{name}", list[FlaggedCase], draw))

    async def _cell(
        self,
        row: str,
        flags: int,
        seed: int,
        measure: Callable[[], Awaitable[Mapping[str, float]]],
    ) -> Cell:
        async def make() -> Cell:
            self.report(f"{row}, {flags} flags, seed {seed} ...")
            return Cell(row, flags, seed, await measure())

        return await self.lab.cached(f"cells/{file_name(row)}-{flags}-{seed}", Cell, make)
