"""What can be set about the refine loop. Owns names, defaults and bounds; reads no environment
(server/settings.py does) and acts on none.

Defaults marked measured were chosen on the practice model; docs/practice.md has figures.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

Share = Annotated[float, Field(ge=0, le=1)]


class RefineOptions(BaseModel):
    """All of them, checked and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    server_url: str = "http://127.0.0.1:8000"
    """The running server whose model the job uses, and which takes the adapter."""

    api_key: SecretStr | None = None
    """Sent to the server as a bearer token: for one with --api-key, and for `setback evaluate
    --benchmark` also for one with keys."""

    work_dir: Path = Path("data/refine")
    """Where runs keep what they make, one folder each."""

    min_flags: int = Field(default=20, ge=1)
    """A run with fewer flags to learn from ends as too few."""

    max_flags: int = Field(default=400, ge=1)
    """How many flags one run learns from; the others wait for the next."""

    per_user: int = Field(default=20, ge=1)
    """How many flags of one user hash one run may learn from."""

    per_category: int = Field(default=150, ge=1)
    """How many flags of one category one run may learn from."""

    per_unnamed: int = Field(default=400, ge=1)
    """How many flags without a user hash; lower it where callers are not trusted."""

    require_review: bool = False
    """Learn only from flags that a reviewer has labelled."""

    near_duplicate: Share = 0.8
    """Requests whose words overlap by this Jaccard share count as one."""

    held_out_share: Share = 0.15
    """Share of the flags that is set aside, never learned from, and measured by the gate."""

    variations: int = Field(default=2, ge=0)
    """Paraphrases that widen what is learned from one flag; every other one gets a wrapper."""

    replay: int = Field(default=1300, ge=0)
    """How many ordinary requests, with the base's own answers, keep the model helpful."""

    replay_file: Path | None = None
    """Ordinary requests to replay, one a line. Unset: those of the seed corpus."""

    reminder_share: Share = 0.7
    """Share of the training requests that carry the reminder of guided answering."""

    start: Literal["active", "fresh"] = "active"
    """`active`: train on from the active adapter. `fresh`: train a new one on everything learned so
    far."""

    rehearsal: int = Field(default=600, ge=0)
    """Most examples of earlier runs that are learned again, so that they are not forgotten."""

    rank: int = Field(default=16, ge=1)
    """LoRA rank, on all linear layers; an alignment adapts the upper half of the layers only."""

    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Peak learning rate. Unset: 1e-4 for a hidden size of 4096, more for smaller models and for an
    alignment."""

    epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Passes over the dataset. Unset: 3, and 0.42 in an alignment."""

    batch_size: int = Field(default=16, ge=1)
    """Examples per step, over all devices."""

    max_length: int = Field(default=2048, ge=64)
    """Tokens per example; longer ones are left out and counted. Never above the model's context."""

    seed: int = 0
    """Everything drawn in a run follows from it."""

    lease_s: float = Field(default=60, gt=0, allow_inf_nan=False)
    """Seconds after which a job that went silent is taken for dead."""

    judge_url: str | None = None
    """OpenAI-compatible server, with /v1, whose model tells the gate what answers did. Unset: a
    frozen critic of the served model does."""

    judge_model: str | None = None
    """The judge's name on that server."""

    judge_api_key: SecretStr | None = None
    """Sent as a bearer token to the judge."""

    gate_margin: float = Field(default=0.05, gt=0, le=0.5)
    """By how much a candidate may truly be worse on any figure of the gate, as a share: one that is
    passes at most once in forty. A smaller one needs more cases."""

    gate_file: Path | None = None
    """A labelled JSONL file that the gate measures besides its own sets; see `setback evaluate`."""

    @model_validator(mode="after")
    def _judge_is_named(self) -> Self:
        if (self.judge_url is None) != (self.judge_model is None):
            raise ValueError("judge_url and judge_model go together: a server and the model there")
        return self
