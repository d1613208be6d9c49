"""Worlds: models that bring their own evaluation data. Owns the types and the lookup
by name. A world registers itself under the entry point group `setback.worlds`. Does not load the
data of real models (evaluation_data.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from refine.benchmarks.rows import BenchmarkRow
from refine.critic import BASE_ALONE, Critic
from refine.evaluation.sets import Sets
from refine.evaluation.truth import EXACT, Reliability, Truth
from refine.stages.dataset import Example

_GROUP = "setback.worlds"


@dataclass(frozen=True)
class EvaluationData:
    """The data by which runs are checked. No traffic can change it.

    ordinary: draws that many ordinary requests with a seed. wrappers: templates over `{request}`,
    put around harmful and ordinary requests alike, so that a wrapper is no sign of harm. sets,
    truth: of the gate. critic: checks the training data. reliability: how often the truth is right
    about harm in written answers. on_drafts: the same for a model's own, which are less clear; None
    where none are labelled. too_long: the number of cases that were dropped because the context has
    no room. rehearsal: draws that many examples of what an adapter was first aligned with, by a
    seed. rules: the same of criteria of all kinds. criterion_rows: a user's labelled lines, which
    may name criteria.
    """

    ordinary: Callable[[int, int], list[str]]
    wrappers: Sequence[str]
    sets: Sets
    truth: Truth
    critic: Critic = BASE_ALONE
    reliability: Reliability = EXACT
    on_drafts: Reliability | None = None
    too_long: int = 0
    rehearsal: Callable[[int, int], list[Example]] = lambda n, seed: []
    rules: Callable[[int, int], list[Example]] = lambda n, seed: []
    criterion_rows: Sequence[BenchmarkRow] = ()

    @property
    def counts(self) -> dict[str, int]:
        """The counts for the run's row."""
        counts = self.reliability.counts("answers")
        if self.on_drafts is not None:
            counts |= self.on_drafts.counts("drafts")
        if self.too_long:
            counts["gate cases that do not fit into the context"] = self.too_long
        return counts


@dataclass(frozen=True)
class World:
    """A model with a world of its own, served and refined by the world's name.

    served_model_name: the name that clients use. folder: returns the model's folder; raises
    ValueError when it is damaged. options: vLLM options, unless the command line sets them.
    verdict_tokens: the most tokens of an answer that one verdict covers. everyday: returns that
    many requests that the model can answer.
    """

    served_model_name: str
    folder: Callable[[], Path]
    verdict_tokens: int
    everyday: Callable[[int], list[str]]
    evaluation_data: Callable[[], EvaluationData]
    options: Mapping[str, Any] = field(default_factory=dict)


def world_names() -> list[str]:
    """Returns the names of the registered worlds."""
    return sorted(entry_points(group=_GROUP).names)


def find_world(name: str) -> World | None:
    """Returns the world of that name, or None."""
    for entry in entry_points(group=_GROUP, name=name):
        world: World = entry.load()
        return world
    return None
