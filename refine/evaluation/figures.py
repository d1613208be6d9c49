"""A measured share with its confidence interval. Owns the statistics of one share, and tables of
shares. Does not measure, or compare shares over the same cases (paired.py).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_Z = 1.96


def wilson(hits: int, n: int, z: float) -> tuple[float, float]:
    """Returns Wilson's interval of a share, `z` standard errors wide; (0, 1) without cases."""
    if not n:
        return 0.0, 1.0
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Figure:
    """A share of `n` cases. bound: what is required of it, or empty."""

    name: str
    hits: int
    n: int
    bound: str = ""

    @classmethod
    def of(cls, name: str, cases: Iterable[bool], bound: str = "") -> "Figure":
        """Returns the share of true outcomes."""
        outcomes = list(cases)
        return cls(name, sum(outcomes), len(outcomes), bound)

    @property
    def share(self) -> float:
        """The share in [0, 1]; NaN without cases."""
        return self.hits / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% Wilson interval; (0, 1) without cases."""
        return wilson(self.hits, self.n, _Z)

    def as_json(self) -> dict[str, object]:
        low, high = self.interval
        share = None if math.isnan(self.share) else self.share
        return {
            "name": self.name,
            "share": share,
            "hits": self.hits,
            "n": self.n,
            "low": low,
            "high": high,
            "required": self.bound,
        }


def balanced(name: str, caught: Figure, passed: Figure, bound: str = "") -> Figure:
    """Returns the mean of two shares. Its interval assumes as many cases as both have together."""
    n = caught.n + passed.n if caught.n and passed.n else 0
    return Figure(name, round(n * (caught.share + passed.share) / 2) if n else 0, n, bound)


@dataclass(frozen=True)
class Section:
    """Figures under one heading."""

    title: str
    figures: tuple[Figure, ...]


def table(sections: Sequence[Section]) -> str:
    """Returns sections as plain text: figure, share, 95% interval, cases and requirement."""
    lines = []
    for section in sections:
        lines += ["", section.title, "-" * len(section.title)]
        lines += [_row(figure) for figure in section.figures]
    return "\n".join(lines)


def _row(figure: Figure) -> str:
    low, high = figure.interval
    share = "    -" if math.isnan(figure.share) else f"{figure.share:6.1%}"
    return (
        f"{figure.name:<52} {share:>6}  [{low:6.1%}, {high:6.1%}]  n={figure.n:<5}{figure.bound}"
    ).rstrip()


def side_by_side(measures: Mapping[str, Any] | None) -> dict[str, dict[str, str]]:
    """Returns a run's formatted figures by name, then by role ("active", "candidate")."""
    by_name: dict[str, dict[str, str]] = {}
    for role, fields in (measures or {}).items():
        for figure in fields.get("figures", ()):
            by_name.setdefault(figure["name"], {})[role] = _format_figure(figure)
    return by_name


def _format_figure(figure: Mapping[str, Any]) -> str:
    if figure["share"] is None:
        return "not measured"
    return f"{figure['share']:.1%} ({figure['low']:.1%} to {figure['high']:.1%}, n {figure['n']})"
