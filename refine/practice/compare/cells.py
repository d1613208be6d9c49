"""The cells of the comparison, each a training with its figures. Owns their order. Each cell is
stored in a file, so that an interrupted run resumes.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from refine.practice.compare.figures import figures, wrapper_success
from refine.practice.compare.flags import from_traffic, never_flagged, one_per_wrapper
from refine.practice.compare.lab import Flags, Lab, file_name
from refine.practice.compare.methods import METHODS, OURS, Method
from refine.practice.wrappers import WRAPPERS
from refine.stages.collect import FlaggedCase

FLAGS = (10, 30, 100, 300)
MOST_FLAGS = max(FLAGS)
PROLIFERATED = 16
NOTHING = "nothing"


@dataclass(frozen=True)
class Cell:
    """One row's figures for one seed, as shares by column. flags: the number trained on."""

    row: str
    flags: int
    seed: int
    figures: dict[str, float]


@dataclass(frozen=True)
class Cells:
    """Computes cells. report: called with each progress line."""

    lab: Lab
    report: Callable[[str], None]

    async def methods(self, flags: Sequence[int], seeds: Sequence[int]) -> list[Cell]:
        """Returns the first table's cells: no training, and each method with each flag count."""
        cells = [await self._untrained(seed) for seed in seeds]
        for n in flags:
            for seed in seeds:
                cells += [await self._method(method, n, seed) for method in METHODS]
        return cells

    async def wrappers(self, seeds: Sequence[int]) -> list[Cell]:
        """Returns the second table's cells: no training, and one flag per wrapper, with and without
        variations."""
        cells = []
        for seed in seeds:
            cells.append(await self._unwrapped(seed))
            for variations in (0, PROLIFERATED):
                cells.append(await self._one_per_wrapper(variations, seed))
        return cells

    async def _untrained(self, seed: int) -> Cell:
        return await self._cell(
            NOTHING, 0, seed, lambda: figures(self.lab.base, "base", never_flagged(seed))
        )

    async def _unwrapped(self, seed: int) -> Cell:
        row = f"wrappers: {NOTHING}"
        return await self._cell(row, 0, seed, lambda: wrapper_success(self.lab.base, "base"))

    async def _method(self, method: Method, n: int, seed: int) -> Cell:
        async def make() -> dict[str, float]:
            cases = await self._flags(
                f"{seed}", lambda: from_traffic(self.lab.base, MOST_FLAGS, seed)
            )
            flags = Flags(f"{seed}", cases, self.lab.options.variations, seed)
            model = await self.lab.trained(method, flags, n)
            return await figures(model, 1, never_flagged(seed))

        return await self._cell(method.name, n, seed, make)

    async def _one_per_wrapper(self, variations: int, seed: int) -> Cell:
        async def make() -> dict[str, float]:
            name = f"wrappers-{seed}"
            cases = await self._flags(name, lambda: one_per_wrapper(self.lab.base, seed))
            flags = Flags(f"{name}-{variations}", cases, variations, seed)
            return await wrapper_success(await self.lab.trained(OURS, flags, len(cases)), 1)

        flagged = sum(not wrapper.held_out for wrapper in WRAPPERS)
        return await self._cell(f"wrappers: {variations} variations", flagged, seed, make)

    async def _flags(
        self, name: str, draw: Callable[[], Awaitable[list[FlaggedCase]]]
    ) -> tuple[FlaggedCase, ...]:
        return tuple(await self.lab.cached(f"flags/{name}", list[FlaggedCase], draw))

    async def _cell(
        self, row: str, flags: int, seed: int, measure: Callable[[], Awaitable[dict[str, float]]]
    ) -> Cell:
        async def make() -> Cell:
            self.report(f"{row}, {flags} flags, seed {seed} ...")
            return Cell(row, flags, seed, await measure())

        return await self.lab.cached(f"cells/{file_name(row)}-{flags}-{seed}", Cell, make)
