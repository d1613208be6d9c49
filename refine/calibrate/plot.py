"""Plots the reliability of verdicts before and after a calibration. Owns the picture's layout."""

from pathlib import Path

from refine.benchmarks.reliability import draw_reliability
from refine.calibrate.fit import Fit


def save_plot(fit_result: Fit, title: str, path: Path) -> None:
    """Writes the picture in the format of the file's extension (png, svg, pdf)."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(4.6, 4.2), layout="constrained")
    panel = canvas.subplots()
    curves = {"before": fit_result.before.reliability, "after": fit_result.after.reliability}
    draw_reliability(panel, title, curves)
    panel.legend(frameon=False)
    canvas.savefig(path, dpi=150)
