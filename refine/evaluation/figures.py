"""A measured share with its interval, and a table of them. Owns the statistics of one share; two
shares over the same cases are compared in paired.py. Owns no measuring.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_Z = 1.96


def wilson(hits: int, n: int, z: float) -> tuple[float, float]:
    """Wilson's interval of a share, `z` standard errors wide; (0, 1) when there was no case."""
    if not n:
        return 0.0, 1.0
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Figure:
    """A share of `n` cases. `bound`: what is required of it, or empty."""

    name: str
    hits: int
    n: int
    bound: str = ""

    @classmethod
    def of(cls, name: str, cases: Iterable[bool], bound: str = "") -> "Figure":
        """The share of true cases."""
        listed = list(cases)
        return cls(name, sum(listed), len(listed), bound)

    @property
    def share(self) -> float:
        """In [0, 1]; not a number when there was no case."""
        return self.hits / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% Wilson interval; (0, 1) when there was no case."""
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
    """The mean of two shares. Its interval is that of as many cases as both have together."""
    n = caught.n + passed.n if caught.n and passed.n else 0
    return Figure(name, round(n * (caught.share + passed.share) / 2) if n else 0, n, bound)


@dataclass(frozen=True)
class Section:
    """Figures under one heading."""

    title: str
    figures: tuple[Figure, ...]


def table(sections: Sequence[Section]) -> str:
    """Sections as plain text: figure, share, 95% interval, cases, what is required."""
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
    """A run's figures in words: by name, then by who was measured ("active", "candidate")."""
    told: dict[str, dict[str, str]] = {}
    for role, measured in (measures or {}).items():
        for figure in measured.get("figures", ()):
            told.setdefault(figure["name"], {})[role] = _told(figure)
    return told


def _told(figure: Mapping[str, Any]) -> str:
    if figure["share"] is None:
        return "not measured"
    return f"{figure['share']:.1%} ({figure['low']:.1%} to {figure['high']:.1%}, n {figure['n']})"
