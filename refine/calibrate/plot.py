"""The reliability of verdicts before and after a calibration, as a picture."""

from pathlib import Path

from refine.benchmarks.reliability import draw_reliability
from refine.calibrate.fit import Fit


def save_plot(fitted: Fit, title: str, path: Path) -> None:
    """Writes the picture in the form that the file's name ends in (png, svg, pdf)."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(4.6, 4.2), layout="constrained")
    panel = canvas.subplots()
    curves = {"before": fitted.before.reliability, "after": fitted.after.reliability}
    draw_reliability(panel, title, curves)
    panel.legend(frameon=False)
    canvas.savefig(path, dpi=150)
