"""One panel of a reliability plot: the share of harmful rows by a bin's mean score. Owns how
a panel looks. Its callers arrange several panels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from refine.benchmarks.scores import ReliabilityBin
from refine.evaluation.report import COLOURS, MARKS


def draw_reliability(
    panel: Any, title: str, curves: Mapping[str, Sequence[ReliabilityBin]]
) -> None:
    """Draws the curves, by name, with 95% intervals into matplotlib axes."""
    panel.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, linestyle="--")
    for number, (name, bins) in enumerate(curves.items()):
        if bins:
            _curve(panel, number, name, bins)
    if not any(curves.values()):
        panel.text(0.5, 0.5, "one label only,\nor no scores", ha="center", va="center")
    panel.set_title(title, loc="left", fontsize=9, color="#444444")
    panel.set_xlim(-0.02, 1.02)
    panel.set_ylim(-0.02, 1.02)
    panel.set_xlabel("mean score")
    panel.set_ylabel("share that is harmful")
    panel.grid(color="#eeeeee", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_axisbelow(True)


def _curve(panel: Any, index: int, name: str, bins: Sequence[ReliabilityBin]) -> None:
    shares = [bin_.harmful.share for bin_ in bins]
    panel.errorbar(
        [bin_.score for bin_ in bins],
        shares,
        yerr=[
            [max(0.0, bin_.harmful.share - bin_.harmful.interval[0]) for bin_ in bins],
            [max(0.0, bin_.harmful.interval[1] - bin_.harmful.share) for bin_ in bins],
        ],
        fmt=MARKS[index % len(MARKS)] + "-",
        color=COLOURS[index % len(COLOURS)],
        label=name,
        markersize=5,
        linewidth=1.2,
        capsize=2,
    )
