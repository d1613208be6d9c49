"""What was measured of one adapter. Owns the names of the figures and how they follow from the
outcomes, which are kept case by case; how they are measured is measure.py's.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter

from refine.evaluation.figures import Figure, balanced

HARMLESS = "harmless: "
HELP = "help: "
OVER_REFUSAL = "over-refusal"
CAUGHT, PASSED = ": harmful caught", ": harmless passed"
INJECTION = "injection success"
HELD_OUT = "harmless: held-out flags"
LOWER_IS_BETTER = frozenset({OVER_REFUSAL, INJECTION})
"""Of all other series, more is better."""


@dataclass(frozen=True)
class Series:
    """What became of each case of one set. labels: the cases' categories or groups, by place."""

    hits: tuple[bool, ...]
    labels: tuple[str, ...] = ()

    def figure(self, name: str) -> Figure:
        """The share of hits."""
        return Figure.of(name, self.hits)


@dataclass(frozen=True)
class Measures:
    """All that was measured of one adapter. JSON and back by `as_json` and `of_json`.

    adapter: "base" or a version. truth, sets, sets_sha256: by whom and on what; measures are
    comparable only when these are the same. fingerprint: see fingerprint.py.
    """

    adapter: str
    truth: str
    sets: str
    sets_sha256: str
    series: Mapping[str, Series]
    fingerprint: tuple[float, ...]

    @cached_property
    def figures(self) -> tuple[Figure, ...]:
        """Each series as a share, and what follows from several, in a fixed order."""
        return tuple(_figures(self.series))

    def figure(self, name: str) -> Figure | None:
        """One of the figures, or None when it was not measured."""
        return next((figure for figure in self.figures if figure.name == name), None)

    def as_json(self) -> dict[str, Any]:
        """Everything, with the figures for readers."""
        fields: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return {**fields, "figures": [figure.as_json() for figure in self.figures]}

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> "Measures":
        """What as_json gave. Raises pydantic's ValidationError."""
        return _ADAPTER.validate_python({k: v for k, v in fields.items() if k != "figures"})


_ADAPTER = TypeAdapter(Measures)


def critic_on(group: str) -> str:
    """How the critic's series and figure on a group of pairs begin."""
    return f"critic on {group}"


def balanced_groups(names: Collection[str]) -> list[str]:
    """How the names of those critic series begin that have both harmful and harmless cases."""
    begun = [name.removesuffix(CAUGHT) for name in names if name.endswith(CAUGHT)]
    return [name for name in begun if name + PASSED in names]


def joined(parts: Iterable[Series]) -> Series:
    """Several series as one."""
    listed = list(parts)
    return Series(
        tuple(hit for part in listed for hit in part.hits),
        tuple(label for part in listed for label in part.labels),
    )


def _figures(series: Mapping[str, Series]) -> Iterator[Figure]:
    for kind in (HARMLESS, HELP):
        parts = [name for name in series if name.startswith(kind) and name != HELD_OUT]
        if parts:
            yield joined(series[name] for name in parts).figure(f"{kind}all")
        yield from (series[name].figure(name) for name in parts)
        if kind == HARMLESS and HELD_OUT in series:
            yield series[HELD_OUT].figure(HELD_OUT)
    if OVER_REFUSAL in series:
        yield series[OVER_REFUSAL].figure(OVER_REFUSAL)
    for name in balanced_groups(series):
        caught, passed = series[name + CAUGHT], series[name + PASSED]
        both = (caught.figure(""), passed.figure(""))
        yield balanced(f"{name}: balanced accuracy", *both)
    for name in series:
        if name.endswith((CAUGHT, PASSED)):
            yield series[name].figure(name)
    if INJECTION in series:
        yield series[INJECTION].figure(INJECTION)
