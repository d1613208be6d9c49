"""The options of the refine loop. Owns their names, defaults and bounds. Does not read the
environment (server/settings.py). Acts on none of them.

Defaults marked "measured" were chosen with the practice model; docs/practice.md has the figures.
"""

import shlex
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from refine.stages.training import PLAN


def _naming_the_plan(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"is not a command line: {error}") from error
    if not any(PLAN in word for word in words):
        raise ValueError(f"must contain {PLAN}, which stands for the path of the training's plan")
    return command


Share = Annotated[float, Field(ge=0, le=1)]


class RefineOptions(BaseModel):
    """All options, validated and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    server_url: str = "http://127.0.0.1:8000"
    """The running server whose model is used and which serves the adapters."""

    api_key: SecretStr | None = None
    """Sent to the server as a bearer token: for one with --api-key, and for `setback evaluate
    --benchmark` also for one with keys."""

    work_dir: Path = Path("data/refine")
    """Folder for the runs' files, one subfolder each."""

    min_flags: int = Field(default=20, ge=1)
    """The fewest flags to train on; a run with fewer ends with the status too_few."""

    max_flags: int = Field(default=400, ge=1)
    """The most flags that one run trains on; the others wait for the next run."""

    per_user: int = Field(default=20, ge=1)
    """The most flags of one user hash that one run trains on."""

    per_category: int = Field(default=150, ge=1)
    """The most flags of one category that one run trains on."""

    per_unnamed: int = Field(default=400, ge=1)
    """The most flags without a user hash; lower it if callers are not trusted."""

    require_review: bool = False
    """Learn only from flags that a reviewer has labelled."""

    near_duplicate: Share = 0.8
    """Requests whose words overlap by this Jaccard similarity count as duplicates."""

    held_out_share: Share = 0.15
    """Share of the flags that are held out: never trained on, and measured by the gate."""

    variations: int = Field(default=2, ge=0)
    """Variations of each flagged request to train on: paraphrases and uses in a wrapper, in
    turns."""

    replay: int = Field(default=600, ge=0)
    """Ordinary requests to train on, with the base model's own answers, to keep it helpful. Answers
    that decline or repeat themselves do not count."""

    replay_file: Path | None = None
    """Ordinary requests to replay, one a line. Unset: those of the seed corpus."""

    reminder_share: Share = 0.7
    """Share of the training requests that carry the reminder of guided answering."""

    start: Literal["active", "fresh"] = "active"
    """`active`: train on from the active adapter. `fresh`: train a new one on everything learned so
    far."""

    rehearsal: int = Field(default=600, ge=0)
    """The most examples of earlier runs that are trained on again, to prevent forgetting. As many
    of the seed corpus come in addition."""

    rank: int = Field(default=16, ge=1)
    """LoRA rank, on all linear layers; an alignment adapts the upper half of the layers only."""

    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Peak learning rate. Unset: 1e-4 for a hidden size of 4096, more for smaller models and for an
    alignment, half as much to train on from an adapter."""

    epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Passes over the dataset. Unset: 3, or 1.5 to train on from an adapter, and 0.42 in an
    alignment."""

    batch_size: int = Field(default=16, ge=1)
    """Examples per step, over all devices."""

    max_length: int = Field(default=2048, ge=64)
    """Tokens per example; longer ones are dropped and counted. At most the model's context."""

    train_command: Annotated[str, AfterValidator(_naming_the_plan)] | None = None
    """The command that trains, with {plan} for the path of the plan, such as `torchrun
    --nproc-per-node 2 -m refine.stages.train {plan}`. Unset: a child process, one for each GPU."""

    seed: int = 0
    """The seed of all random draws in a run."""

    lease_s: float = Field(default=60, gt=0, allow_inf_nan=False)
    """Seconds after which a silent job counts as dead."""

    judge_url: str | None = None
    """OpenAI-compatible server, with /v1, whose model judges answers for the gate. Unset: a frozen
    critic of the served model judges them."""

    judge_model: str | None = None
    """The judge's model name on that server."""

    judge_api_key: SecretStr | None = None
    """The judge's API key, sent as a bearer token."""

    gate_margin: float = Field(default=0.05, gt=0, le=0.5)
    """How much worse a candidate may be on any figure of the gate, as a share. One that is worse by
    this much passes at most once in forty. A smaller margin needs more cases."""

    gate_file: Path | None = None
    """A labelled JSONL file that the gate measures as well; see `setback evaluate`."""

    @model_validator(mode="after")
    def _judge_is_named(self) -> Self:
        if (self.judge_url is None) != (self.judge_model is None):
            raise ValueError("judge_url and judge_model go together: a server and its model")
        return self
