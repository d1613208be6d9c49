"""The report of `setback bench`. Owns the tables, the JSON file and the plot. Measures nothing."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATE = "requests/s"

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Cell:
    """One load and its rounds, each with the bare and the guarded figures. Some figures exist for
    the guarded server only."""

    kind: str
    clients: int
    output_tokens: int
    rounds: Sequence[tuple[Figures, Figures]]

    def ratios(self, name: str) -> list[float]:
        """Returns guarded to bare, by round, for a figure that both have."""
        return [guarded[name] / bare[name] for bare, guarded in self.rounds if bare[name]]

    def medians(self, name: str) -> tuple[float, float]:
        """Returns the bare and the guarded median of a figure that both have."""
        bare, guarded = (
            statistics.median(figures[name] for figures in side) for side in self._sides
        )
        return bare, guarded

    @property
    def names(self) -> list[str]:
        """The figures that both have."""
        bare, guarded = self.rounds[0]
        return [name for name in bare if name in guarded]

    @property
    def guard_medians(self) -> dict[str, float]:
        """The medians of the figures that only the guarded server has."""
        bare, guarded = self.rounds[0]
        _, side = self._sides
        return {
            name: statistics.median(figures[name] for figures in side)
            for name in guarded
            if name not in bare
        }

    @property
    def title(self) -> str:
        length = f", {self.output_tokens} output tokens" if self.output_tokens else ""
        return f"{self.kind}: {self.clients} clients{length}"

    @property
    def _sides(self) -> tuple[list[Figures], list[Figures]]:
        return [bare for bare, _ in self.rounds], [guarded for _, guarded in self.rounds]


def machine() -> str:
    """Returns the processor and the relevant versions."""
    from vllm import __version__ as vllm_version

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    processor = next(names, platform.machine())
    return f"{os.cpu_count()} x {processor}; vLLM {vllm_version}, PyTorch {version('torch')}"


def print_cell(cell: Cell) -> None:
    """Prints all figures of one load: medians over the rounds, and the ratio with its spread."""
    table = Table("", "bare", "guarded", "guarded to bare", title=cell.title)
    for name in cell.names:
        bare, guarded = cell.medians(name)
        table.add_row(name, f"{bare:.2f}", f"{guarded:.2f}", _spread(cell.ratios(name)))
    for name, middle in cell.guard_medians.items():
        table.add_row(name, "", f"{middle:.2f}", "")
    Console().print(table)


def _spread(ratios: Sequence[float]) -> str:
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def print_summary(title: str, cells: Sequence[Cell]) -> None:
    """Prints the throughput of every load as a Markdown table, and the machine."""
    lines = [
        f"{machine()}\n{title}\n",
        "| load | clients | output tokens | bare, requests/s | guarded | ratio | spread |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        bare, guarded = cell.medians(RATE)
        ratios = cell.ratios(RATE)
        fields = (
            cell.kind, cell.clients, cell.output_tokens or "", f"{bare:.1f}", f"{guarded:.1f}",
            f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f} to {max(ratios):.3f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, fields)) + " |")
    Console(soft_wrap=True, markup=False, highlight=False).print("\n".join(lines))


def write(title: str, cells: Sequence[Cell], path: Path) -> None:
    """Writes every figure of every round as JSON."""
    content = {"machine": machine(), "title": title, "cells": [asdict(cell) for cell in cells]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def plot(title: str, cells: Sequence[Cell], path: Path) -> None:
    """Plots throughput, guarded to bare, by answer length, with a panel for each kind that has
    lengths. Writes nothing if there is no such kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(cell.kind for cell in cells if cell.output_tokens))
    if not kinds:
        return
    figure, panels = pyplot.subplots(
        1, len(kinds), figsize=(4 * len(kinds), 3.2), sharey=True, squeeze=False
    )
    for panel, kind in zip(panels[0], kinds, strict=True):
        for clients in dict.fromkeys(cell.clients for cell in cells if cell.kind == kind):
            _line(panel, [c for c in cells if (c.kind, c.clients) == (kind, clients)])
        panel.axhline(1, color="0.6", linewidth=0.8)
        panel.set(title=kind, xscale="log", xlabel="output tokens")
        lengths = sorted({cell.output_tokens for cell in cells if cell.kind == kind})
        panel.set_xticks(lengths, map(str, lengths), minor=False)
        panel.minorticks_off()
        panel.legend(title="clients")
    panels[0][0].set_ylabel("requests/s, guarded to bare")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _line(panel: "Axes", cells: Sequence[Cell]) -> None:
    middles = [statistics.median(cell.ratios(RATE)) for cell in cells]
    below = [m - min(cell.ratios(RATE)) for m, cell in zip(middles, cells, strict=True)]
    above = [max(cell.ratios(RATE)) - m for m, cell in zip(middles, cells, strict=True)]
    lengths = [cell.output_tokens for cell in cells]
    panel.errorbar(
        lengths, middles, yerr=[below, above], marker="o", capsize=3, label=str(cells[0].clients)
    )
