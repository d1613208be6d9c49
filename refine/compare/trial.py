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
from refine.stages.flagged import FlaggedCase


@dataclass(frozen=True)
class Trainee:
    """A model, and the adapter of it that is measured."""

    model: Model
    adapter: Adapter


@dataclass(frozen=True)
class Start:
    """The model that every method starts from.

    weights: a path or Hub id, for training. model: the same model, running. identity: changes with
    the weights and the critic. max_model_len: in tokens. trained: a context manager that makes a
    PEFT adapter available to the model. wrappers: training templates with `{request}`. ordinary:
    draws a number of ordinary requests with a seed. critic: frozen; decides which answers are
    harmful. style: the critique style that adapters are trained for. chat_template: Jinja, if it is
    not the model's own.
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
    chat_template: str | None = None


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
