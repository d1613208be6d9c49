"""What a model's world brings to the refine loop, and how a world with a model of its own is found.
Owns the shapes and the lookup by name; the real world's is ground.py's, a made-up one registers
itself under the entry point group `setback.worlds`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from refine.critic import BASE_ALONE, Critic
from refine.evaluation.sets import Sets
from refine.evaluation.truth import EXACT, Reliability, Truth

_GROUP = "setback.worlds"


@dataclass(frozen=True)
class Ground:
    """What a run stands on that no traffic can touch.

    ordinary: so many ordinary requests, drawn by a seed. wrappers: templates over `{request}`,
    put around harmful and around ordinary requests, so that a wrapper alone says nothing. sets,
    truth: of the gate. critic: checks what is learned. reliability: how often the truth is right
    about harm. too_long: how many cases of the sets were left out, since the context has no room.
    """

    ordinary: Callable[[int, int], list[str]]
    wrappers: Sequence[str]
    sets: Sets
    truth: Truth
    critic: Critic = BASE_ALONE
    reliability: Reliability = EXACT
    too_long: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """For the run's row."""
        left_out = {"gate cases that do not fit into the context": self.too_long}
        return {**self.reliability.counts, **(left_out if self.too_long else {})}


@dataclass(frozen=True)
class World:
    """A model that lives in a world of its own, served and refined by the world's name.

    served_as: the name that clients use. folder: of the model; raises ValueError when it is
    damaged. options: vLLM's, where the command line leaves them out. verdict_tokens: the most of an
    answer that one verdict bears. everyday: so many requests that the model can answer.
    """

    served_model_name: str
    folder: Callable[[], Path]
    verdict_tokens: int
    everyday: Callable[[int], list[str]]
    ground: Callable[[], Ground]
    options: Mapping[str, Any] = field(default_factory=dict)


def world_names() -> list[str]:
    """The registered worlds."""
    return sorted(entry_points(group=_GROUP).names)


def find_world(name: str) -> World | None:
    """The world of that name, or None."""
    for entry in entry_points(group=_GROUP, name=name):
        world: World = entry.load()
        return world
    return None
