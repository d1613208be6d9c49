"""What a comparison of methods is carried out on. Owns the shapes only: the model that every method
starts from, and where its flags and figures come from.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from guard.prompts import CritiqueStyle
from refine.critic import BASE_ALONE, Critic
from refine.served import Adapter, Model
from refine.stages.collect import FlaggedCase


@dataclass(frozen=True)
class Trainee:
    """A model, and the adapter of it that is measured."""

    model: Model
    adapter: Adapter


@dataclass(frozen=True)
class Start:
    """The model that every method starts from.

    weights: a path or hub id, for training. model: the same weights, running. identity: tells the
    weights and the critic from others. max_model_len: in tokens. trained: runs a PEFT adapter for
    the length of a block. wrappers: templates over `{request}` to learn with. ordinary: so many
    ordinary requests, drawn by a seed. critic: frozen; tells which answers are harmful. style: in
    which an adapter learns to be asked for verdicts.
    """

    weights: str
    model: Model
    identity: str
    max_model_len: int
    trained: Callable[[Path], AbstractAsyncContextManager[Trainee]]
    wrappers: Sequence[str]
    ordinary: Callable[[int, int], list[str]]
    critic: Critic = BASE_ALONE
    style: CritiqueStyle = CritiqueStyle.YES_NO


class Trial(Protocol):
    """Where flags and figures come from. Shares are in [0, 1], by column."""

    @property
    def columns(self) -> Sequence[str]:
        """Of figures()."""

    @property
    def wrapper_columns(self) -> Sequence[str]:
        """Of wrapper_figures()."""

    async def from_traffic(self, n: int, seed: int) -> list[FlaggedCase]:
        """The first `n` flagged answers of mixed traffic, numbered from 1."""

    async def one_per_wrapper(self, seed: int) -> list[FlaggedCase]:
        """For each wrapper that may be learned from, one flagged answer to a request in it."""

    async def figures(self, trainee: Trainee, seed: int) -> Mapping[str, float]:
        """What the first table shows. seed: of the flags that the trainee learned from."""

    async def wrapper_figures(self, trainee: Trainee) -> Mapping[str, float]:
        """What the second table shows: how often harmful requests in wrappers are obeyed."""
