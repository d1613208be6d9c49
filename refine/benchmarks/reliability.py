"""How a reliability plot looks: the share of harmful rows over the mean score of each bin. Owns one
panel; pictures of several are their makers'.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from refine.benchmarks.scores import ReliabilityBin
from refine.evaluation.report import COLOURS, MARKS


def draw_reliability(
    panel: Any, title: str, curves: Mapping[str, Sequence[ReliabilityBin]]
) -> None:
    """Draws the curves, by name, with 95% intervals into one of matplotlib's axes."""
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


def _curve(panel: Any, number: int, name: str, bins: Sequence[ReliabilityBin]) -> None:
    shares = [tenth.harmful.share for tenth in bins]
    panel.errorbar(
        [tenth.score for tenth in bins],
        shares,
        yerr=[
            [max(0.0, tenth.harmful.share - tenth.harmful.interval[0]) for tenth in bins],
            [max(0.0, tenth.harmful.interval[1] - tenth.harmful.share) for tenth in bins],
        ],
        fmt=MARKS[number % len(MARKS)] + "-",
        color=COLOURS[number % len(COLOURS)],
        label=name,
        markersize=5,
        linewidth=1.2,
        capsize=2,
    )
